"""The documentation as Sphinx builds it, and its pages that are made from the code."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest
from helpers.doc_blocks import ROOT

from clbench import cli
from clbench.core.compat import tomllib
from clbench.core.registry import discover
from clbench.report.formats.markdown import escape


@pytest.fixture(scope="module")
def pages():
    """Import docs/pages.py."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("script", "name"), [("pages", "commands"), ("pages", "methods"),
                                              ("schema_pages", "toml-keys"), ("schema_pages", "record-schema")])
def test_a_page_made_from_the_code_is_current(script, name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = getattr(importlib.import_module(script), name.replace("-", "_"))()
    assert made == (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), f"make docs-pages: {name}.md is old"


@pytest.fixture(scope="module")
def methods_page(pages):
    return pages.methods()


def test_every_command_and_option_is_on_its_page(pages):
    text = pages.commands()
    for command in cli.COMMANDS:
        assert f"\n## clbench {command}\n" in text
    assert "\n## clbench adapters merge\n" in text
    assert "```bash\nclbench check lora:rank=2    # checks an installed method, with options\n" in text
    assert "| `--seeds N\\|LIST` | Number of seeds (3 is 0,1,2) or a list such as 0,4. " in text


def test_everything_that_comes_with_clbench_is_on_its_page(pages, methods_page):
    sections = dict(part.split("\n", 1) for part in re.split("^### ", methods_page, flags=re.MULTILINE)[1:])
    registry = discover()
    for _, kind, attribute, _ in pages.KINDS:
        for name, info in getattr(registry, attribute).items():
            if pages.ours(registry, kind, name):
                assert escape(info.summary) in sections[name]
                assert re.findall(r"^\| `(\w+)` \|", sections[name].split("\n## ")[0], re.MULTILINE) == list(
                    info.options.model_fields)


def test_the_tables_of_methods_say_what_each_stores_and_trains(pages, methods_page):
    registry = discover()
    listed = {}
    text = methods_page.split("## Benchmarks")[0]
    for heading, rows in re.findall(r"^([A-Z].*):\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        if not rows.startswith("| method |"):
            continue
        for row in rows.splitlines()[2:]:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            listed[cells[0].strip("`")] = heading.lower()
            assert all(cells[:-1]) and len(cells) == (3 if heading == "Avalanche strategies" else 5)
    assert listed == {name: info.family.lower() for name, info in registry.strategies.items()
                      if pages.ours(registry, "method", name)}
    stored = tomllib.loads((ROOT / "docs" / "stored_and_trained.toml").read_text())["methods"]
    assert set(stored) == {name for name in listed if not name.startswith("avalanche:")}


def test_every_method_says_which_published_numbers_hold_it_or_that_there_are_none(pages, methods_page):
    sections = dict(part.split("\n", 1) for part in re.split("^### ", methods_page, flags=re.MULTILINE)[1:])
    registry = discover()
    held = {name: set() for name in registry.strategies if pages.ours(registry, "method", name)}
    for path in (ROOT / "benchmarks" / "reference").glob("*.toml"):
        for cell in tomllib.loads(path.read_text())["cells"]:
            held[cell["method"]["name"]].add(path.stem)
    without = (ROOT / "docs" / "paper-vs-code.md").read_text().split("## Methods without a reference")[1]
    for name, references in held.items():
        line, = [line for line in sections[name].splitlines() if line.startswith("Published numbers")]
        assert set(re.findall(r"`([\w-]+)` \(\d+\)", line)) == references
        assert ("repeats none" in line) == (not references)
        assert references or name.startswith("avalanche:") or f"`{name}`" in without


def test_the_layers_of_every_paper_are_listed(pages):
    section = (ROOT / "docs" / "paper-vs-code.md").read_text().split("### Layers that papers adapt")[1].split("###")[0]
    listed = re.findall(r"^\| `([\w+-]+)` \|", section, re.MULTILINE)
    registry = discover()
    assert sorted(listed) == sorted(name for name, info in registry.strategies.items()
                                    if pages.ours(registry, "method", name) and hasattr(info.options, "PAPER"))


@pytest.mark.slow
def test_sphinx_builds_the_documentation_without_a_warning(tmp_path):
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package, reason="needs clbench[docs]")
    html = tmp_path / "html"
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d",
                           tmp_path / "doctrees", ROOT / "docs", html], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")} <= {
        p.relative_to(html) for p in html.rglob("*.html")}
    assert "max over l with j" in (html / "metrics.html").read_text()
    assert 'id="clbench.Strategy.loss"' in (html / "api.html").read_text()
    assert_committed_reports_are_pages(html / "results")
    assert_links_lead_somewhere([html / "index.html", *html.glob("results/*.html")])


def assert_committed_reports_are_pages(results):
    """Check that each report has an interactive page, and that tables of other reports are shown."""
    for path in ROOT.glob("reports/**/report.md"):
        slug = "-".join(path.parent.relative_to(ROOT / "reports").parts).replace("_", "-")
        assert f'href="{slug}.html"' in (results / "index.html").read_text()
        assert f'href="{slug}-report.html"' in (results / f"{slug}.html").read_text()
        page = (results / f"{slug}-report.html").read_text()
        assert f'<a href="{slug}.html">' in page and "<script>" in page
        first = re.search(r"^\| (\w[^|†‡§¶※△○]*?)(?: [†‡§¶※△○]+)? \| \d+ \| \**([\d.]+ ± [\w./]+)",
                          path.read_text(), re.MULTILINE)
        assert first[1].replace("\\", "") in page.replace("<wbr>", "") and first[2] in page
    for page, pattern in (("verify", "verify/*/verify.md"), ("speed", "speed/**/*.md"), ("explain", "explain/*/*.md"),
                          ("stability-gap", "stability_gap/gap.md")):
        shown = (results / f"{page}.html").read_text()
        for source in ROOT.glob(f"reports/{pattern}"):
            row = [line for line in source.read_text().splitlines() if line.startswith("|")][-1]
            assert f"<p>{row.strip('|').split('|')[-1].strip()}</p></td>" in shown


def assert_links_lead_somewhere(pages):
    """Check that the files and the places in them to which links of pages lead are there."""
    places = {}
    for path in pages:
        for target, place in re.findall(r'<a [^>]*href="(?!https?:)([^"#]*)(?:#([^"]+))?"', path.read_text()):
            to = (path.parent / target).resolve() if target else path
            assert to.exists(), f"{path.name}: {target}"
            if place:
                known = places.setdefault(to, {"", *re.findall(r'id="([^"]+)"', to.read_text())})
                assert place in known, f"{path.name}: {target}#{place}"
