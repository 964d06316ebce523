import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from clbench.core.compat import tomllib
from clbench.core.registry import discover
from clbench.execution import explaining
from clbench.experiment import references, spec
from clbench.experiment.plan import plan
from clbench.report.formats import explained, verified
from clbench.results import verification
from clbench.results.store import Store
from clbench.testing.checks import CHECKS

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document, language):
    return [text for kind, text in BLOCK.findall((ROOT / document).read_text()) if kind == language]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the plugin of docs/writing-a-strategy.md as a distribution of its own."""
    home = tmp_path_factory.mktemp("plugin")
    (home / "clbench_near.py").write_text(blocks("docs/writing-a-strategy.md", "python")[0])
    (home / "pyproject.toml").write_text(blocks("docs/writing-a-strategy.md", "toml")[0])
    site = home / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--disable-pip-version-check", "--root-user-action=ignore", "--target", site, home], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.slow
def test_the_method_of_the_guide_is_installed_and_run(installed, tmp_path):
    listed = subprocess.run([sys.executable, "-m", "clbench", "methods"], env=installed, capture_output=True,
                            text=True, check=True).stdout
    assert "clbench-near 0.1.0" in " ".join(listed.split())
    run = subprocess.run([sys.executable, "-m", "clbench", "run", "--methods", "near,near:strength=100", "--seeds", "1",
                          "--iterations", "10", "--out", tmp_path], env=installed,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "near:strength=100" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_method_of_the_guide_passes_the_tests_of_the_guide(installed, tmp_path):
    (tmp_path / "test_l2.py").write_text(blocks("docs/writing-a-strategy.md", "python")[1])
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], env=installed, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(CHECKS) + 1} passed" in done.stdout


def test_the_experiment_of_the_tour_is_one():
    text, = blocks("docs/tour.md", "toml")
    planned = plan(spec.build(tomllib.loads(text)), discover())
    assert len(planned) == 2 * 5 * 4


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda p: p.name)
def test_the_committed_experiments_are_valid(path):
    values = {**spec.read_toml(path), "weights": "none"}  # which are fetched, and not committed
    assert plan(spec.build(values, str(path)), discover())


def test_the_table_of_the_readme_has_the_numbers_of_the_committed_records():
    """Rows are found by the method's id or its display name; headings and verdicts may be in other words."""
    from clbench.report import build

    def numbers(cells):
        return [re.findall(r"[-+]?\d[\d,.]*", cell) for cell in cells]

    rows = [[cell.strip(" *").replace("\\", "") for cell in line.strip("|").split("|")]
            for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|") and "±" in line]
    records, _ = Store(ROOT / "reports/lora_question/vision_task").read()
    ours = {row.label: [cell.text for cell in row.cells] for ids in (False, True) for row in
            build(records, ids=ids).sections[0].comparison.rows}
    assert rows and all(numbers(row[1:]) == numbers(ours[re.sub(r" [†‡§¶※△○]+$", "", row[0])]) for row in rows)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_committed_reports_are_what_their_records_give():
    from clbench import report
    from clbench.report.formats.markdown import render
    from clbench.results.merge import by_method

    for path in ROOT.glob("reports/**/report.md"):
        records, problems = Store(path.parent).read()
        assert not problems
        assert render(report.build(by_method(records))) == path.read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/verify/*/verify.md")), ids=lambda p: p.parent.name)
def test_the_committed_verdicts_are_what_their_records_give(path):
    _, reference = references.find(path.parent.name)
    records, problems = Store(path.parent).read()
    assert not problems
    trials = [[one.trial for one in cell] for cell in reference.plan(reference.cells, discover())]
    assert verified.markdown(reference, verification.check(reference, trials, records)) == path.read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/explain/*/explain.md")), ids=lambda p: p.parent.name)
def test_the_committed_explanations_are_what_their_records_give(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    records, problems = Store(path.parent).read()
    assert not problems
    a, b = map(Path, re.findall(r"benchmarks/\S+\.toml", path.read_text().replace("\\", ""))[:2])
    study = explaining.prepare(a, b, "ACC", {"seeds": sorted({r.trial.seed for r in records})}, discover(), 400,
                               path.parent)
    assert explained.markdown(explaining.conclude(study, {r.key: r for r in records})) == path.read_text()


def test_the_committed_figures_are_what_their_records_give():
    from clbench import report
    from clbench.report.figures.draw import draw_report
    from clbench.results.merge import by_method

    for path in ROOT.glob("reports/**/report.md"):
        drawn = {Path(name).stem: data.decode() for name, data in
                 draw_report(report.build(by_method(Store(path.parent).read()[0]))).items()}
        kept = {p.stem: p.read_text() for p in path.parent.glob("figures/*.svg")}
        words = re.compile(r"<!-- .* -->")  # a figure's text; its outlines may differ between versions of matplotlib
        assert {name: words.findall(text) for name, text in kept.items()} == {
            name: words.findall(text) for name, text in drawn.items()}
        assert set(re.findall(r"\(figures/(.*)\.svg\)", path.read_text())) == set(kept)


@pytest.mark.parametrize("document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
                                      "CONTRIBUTING.md"])
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text()):
        assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"
