"""What CONTRIBUTING says is to be touched, and the figure and the list of packages in docs/architecture.md."""

import importlib.util
import re
from xml.etree import ElementTree

import pytest
from helpers import ROOT

from clbench.core.compat import tomllib

PATH = re.compile(r"`((?:clbench|plugins|tests|docs)/[\w./]*|pyproject\.toml)`")
SVG = "{http://www.w3.org/2000/svg}"
THINGS = ["a method", "a replay method", "a regularization method", "a benchmark", "a data set",
          "a benchmark of published photos", "a model", "an optimizer", "a metric column", "a figure", "a scenario",
          "an executor", "a command"]


def table(first_header):
    """Return the rows of a table of CONTRIBUTING as lists of cells."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, _, *lines = text[text.index(f"| {first_header} |"):].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def rows():
    """Return the cells of the table of what to touch, by what is added."""
    return {cells[0]: cells[1:] for cells in table("to add")}


def matching(path):
    """Return the files that a path of the table stands for; NAME is that of what is added."""
    return sorted(ROOT.glob(path.replace("NAME", "*")))


def test_the_table_has_everything_that_is_added():
    assert list(rows()) == THINGS


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_touched_is_three_files_at_most_and_all_of_them_exist(thing):
    touch, imitate, test = rows()[thing]
    files = PATH.findall(touch)
    assert 1 <= len(files) <= 3
    assert [path for path in (*files, *PATH.findall(imitate), *PATH.findall(test)) if not matching(path)] == []
    assert len(PATH.findall(test)) == 1
    if there := re.fullmatch("`(.*)` there", imitate):
        assert any(there[1] in path.read_text() for name in files for path in matching(name))


def test_the_parts_of_features_exist_and_each_has_a_command():
    files = [PATH.findall(cells[2]) for cells in table("feature")]
    assert all(files) and [path for paths in files for path in paths if not matching(path)] == []
    assert [cells[0] for cells in table("feature") if cells[0]] == ["`clbench explain`", "`--until decided`",
                                                                    "`clbench choose`"]


def test_every_package_has_a_line_and_a_box():
    packages = {path.parent.name for path in ROOT.glob("clbench/*/__init__.py")}
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == packages
    texts = ElementTree.parse(ROOT / "docs" / "architecture.svg").iter(f"{SVG}text")
    assert {node.text for node in texts if node.get("class") == "name"} == packages


def test_the_figure_is_current():
    spec = importlib.util.spec_from_file_location("architecture_figure", ROOT / "docs" / "architecture_figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8"), "make docs-pages"


def test_every_plugin_of_ours_has_an_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {value.partition(":")[0] for value in project["entry-points"]["clbench"].values()}
    assert {name for name in named if not name.startswith("clbench.")} == {
        path.parent.name for path in ROOT.glob("plugins/*/__init__.py")}
