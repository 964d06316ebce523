"""The documentation as Sphinx builds it, and its pages that are made from the code."""

import importlib.util
import re
import subprocess
import sys

import pytest
from helpers.doc_blocks import ROOT

from clbench import cli
from clbench.core.registry import discover
from clbench.report.formats.markdown import escape


@pytest.fixture(scope="module")
def pages():
    """Import docs/pages.py."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["commands", "methods"])
def test_a_page_made_from_the_code_is_current(pages, name):
    made = getattr(pages, name)()
    assert made == (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), f"make docs-pages: {name}.md is old"


def test_every_command_and_option_is_on_its_page(pages):
    text = pages.commands()
    for command in cli.COMMANDS:
        assert f"\n## clbench {command}\n" in text
    assert "\n## clbench adapters merge\n" in text
    assert "```bash\nclbench check lora:rank=2    # an installed method, with options\n" in text
    assert "| `--seeds N\\|LIST` | A number of seeds (3 is 0,1,2) or a list such as 0,4. " in text


def test_everything_that_comes_with_clbench_is_on_its_page(pages):
    sections = dict(part.split("\n", 1) for part in re.split("^### ", pages.methods(), flags=re.MULTILINE)[1:])
    registry = discover()
    for _, kind, attribute, _ in pages.KINDS:
        for name, info in getattr(registry, attribute).items():
            if pages.ours(registry, kind, name):
                assert escape(info.summary) in sections[name]
                assert re.findall(r"^\| `(\w+)` \|", sections[name].split("\n## ")[0], re.MULTILINE) == list(
                    info.options.model_fields)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the documentation; return the folder and what Sphinx said."""
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package, reason="needs clbench[docs]")
    home = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d",
                           home / "doctrees", ROOT / "docs", home / "html"], capture_output=True, text=True)
    return home / "html", (done.returncode, done.stderr)


def test_sphinx_builds_the_documentation_without_a_warning(built):
    html, said = built
    assert said == (0, "")
    assert {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")} <= {
        p.relative_to(html) for p in html.rglob("*.html")}
    assert "max over l with j" in (html / "metrics.html").read_text()
    assert 'id="clbench.Strategy.loss"' in (html / "api.html").read_text()


def test_every_committed_report_is_a_page_of_the_site(built):
    html, _ = built
    index = (html / "results" / "index.html").read_text()
    for path in ROOT.glob("reports/**/report.md"):
        name = "-".join(path.parent.relative_to(ROOT / "reports").parts) + ".html"
        assert f'href="{name}"' in index
        page = (html / "results" / name).read_text()
        assert '<a href="index.html">' in page and "<script>" in page
        first = re.search(r"^\| ([\w-]+) \| \d+ \| ([\d.]+ ± \S+)", path.read_text(), re.MULTILINE)
        assert first is None or (first[1] in page and first[2] in page)
    assert ">12 reproduced, 2 missed, 1 cannot tell" in (html / "results" / "verify.html").read_text().replace(
        "Final average accuracy: ", ">")
    for source in ROOT.glob("reports/speed/**/*.md"):
        row = [cell.strip() for cell in source.read_text().splitlines()[-1].strip("|").split("|")]
        assert f"<td><p>{row[-1]}</p></td>" in (html / "results" / "speed.html").read_text().replace(
            ' class="text-right"', "").replace(' class="text-left"', "")


def test_local_links_of_the_site_lead_somewhere(built):
    html, _ = built
    ids = {}
    for path in html.glob("results/*.html"):
        for target, anchor in re.findall(r'href="(?!https?:|#|mailto:|data:)([^"#]+)(?:#([^"]+))?"', path.read_text()):
            to = (path.parent / target).resolve()
            assert to.exists(), f"{path.name}: {target}"
            if anchor and to.suffix == ".html":
                known = ids.setdefault(to, set(re.findall(r'id="([^"]+)"', to.read_text())))
                assert anchor in known, f"{path.name}: {target}#{anchor}"
