"""The Python names and the files that the pages mention exist."""

import importlib
import re

import pytest
from helpers import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
NAME = re.compile(r"(?<![\w./-])clbench(?:_(?!near\b)\w+)?(?:\.\w+)+")  # not of the guide's own plugin
FILE = re.compile(r"`((?:clbench|plugins|tests|benchmarks|docs|examples)/[\w./-]+)`")
NO_NAMES = {"clbench.commands"}  # an entry-point group
ENDINGS = ("py", "json", "html")


def found(name):
    """Tell whether a dotted name leads to a module or to what is in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if attribute == parts[-1] and attribute in getattr(thing, "__all__", ()):
                return True  # perhaps imported only when it is used, which may need an extra
            thing = getattr(thing, attribute, None)
        return thing is not None
    return False


@pytest.mark.parametrize("page", PAGES)
def test_names_and_files_that_a_page_mentions_are_there(page):
    text = (ROOT / page).read_text()
    names = {name for name in NAME.findall(text) if name.rpartition(".")[2] not in ENDINGS} - NO_NAMES
    assert [name for name in sorted(names) if not found(name)] == []
    assert [path for path in FILE.findall(text) if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_bases_of_strategies_are_there():
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", (ROOT / "docs" / "writing-a-strategy.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    assert [name for name in rows if not found(f"clbench.strategy.{name}")] == []
