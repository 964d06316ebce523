import importlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from clbench.core.compat import tomllib
from clbench.core.registry import discover
from clbench.execution import explaining
from clbench.experiment import references, spec
from clbench.experiment.plan import plan
from clbench.report import explained
from clbench.report.formats import verified
from clbench.results import verification
from clbench.results.store import Store
from clbench.testing.checks import CHECKS
from clbench.testing.tiny import bench

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
    listed = subprocess.run([sys.executable, "-m", "clbench", "methods", "near"], env=installed, capture_output=True,
                            text=True, check=True).stdout
    assert "clbench-near 0.1.0" in " ".join(listed.split())
    run = subprocess.run([sys.executable, "-m", "clbench", "run", "--methods", "near,near:strength=100", "--seeds", "1",
                          "--iterations", "10", "--out", tmp_path], env=installed,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "near:strength=100" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_method_of_the_guide_passes_the_tests_of_the_guide(installed, tmp_path):
    tests, = (block for block in blocks("docs/writing-a-strategy.md", "python") if "def test_" in block)
    (tmp_path / "test_l2.py").write_text(tests)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], env=installed, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(CHECKS) + 1} passed" in done.stdout


def test_the_study_of_the_guide_is_valid():
    text, = blocks("docs/study-files.md", "toml")
    planned = plan(spec.build(tomllib.loads(text)), discover())
    assert len(planned) == 2 * 5 * 4


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda p: p.name)
def test_the_committed_experiments_are_valid(path):
    values = {**spec.read_toml(path), "weights": "none"}  # which are fetched, and not committed
    assert plan(spec.build(values, str(path)), discover())


@pytest.fixture(scope="module")
def script():
    """Import docs/readme_table.py, which writes the tables of two pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module("readme_table")


WRITTEN = ["README.md", "docs/should-i-use-lora.md"]  # by that script


def prose(text):
    """Return Markdown without blocks of code, tables, comments, images and the targets of links."""
    text = re.sub(r"<!--.*?-->|^```.*?^```$|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("    ", "|"))]
    return re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))


def numbers(text):
    """Return the numbers in prose, without those of code, of names, of versions of Python, and of "95%"."""
    text = re.sub(r"`[^`]*`|Python \d[\d.]*|\b95%", "", text)
    return re.findall(r"(?<![\w.,/=-])\d+(?:[.,]\d+)*(?![\w/])", text)


def test_what_is_prose_and_what_is_a_number_in_it():
    page = ("Python 3.10: [LoRA r=4](a/7.md) on a ViT-S/14 has 66.3% (95% interval)\nafter 3,200 steps, 5 times.\n\n"
            "    clbench run --seeds 8\n\n```text\n9\n```\n| 10 |\n<!-- 11\n12 -->\n![13](14.svg) and `15`")
    assert numbers(prose(page)) == ["66.3", "3,200", "5"]
    assert len(prose("One [link](to/a/page.md), `code`\n    no prose").split()) == 3


@pytest.mark.parametrize("page", WRITTEN)
def test_the_table_of_a_page_is_what_the_records_give(script, page):
    text = (ROOT / page).read_text()
    table = text[text.index(script.BEGIN) + len(script.BEGIN):text.index(script.END)].strip()
    assert table == script.TABLES[page](), f"{page} is old: python docs/readme_table.py"
    assert sum(line.startswith("|") for line in text.splitlines()) == len(table.splitlines()), "a second table"


@pytest.mark.parametrize("page", WRITTEN)
def test_the_numbers_in_the_prose_of_a_page_come_from_records(script, page):
    found = numbers(prose((ROOT / page).read_text()))
    assert [number for number in found if number not in script.facts().values()] == []


def test_the_readme_counts_the_methods():
    from clbench.core.registry import discover

    count, = re.findall(r"`clbench methods` lists (\d+) methods", (ROOT / "README.md").read_text())
    assert int(count) == len(discover().strategies)


@pytest.mark.parametrize(("page", "begin", "objective"), [
    ("language-models.md", "These methods fine-tune language models:", "causal-lm"),
    ("regression.md", "These methods are for regression:", "regression")])
def test_a_page_lists_the_methods_of_its_objective(page, begin, objective):
    from clbench.core.registry import discover

    sentence = (ROOT / "docs" / page).read_text().partition(begin)[2].partition(".")[0]
    methods = {name for name, info in discover().strategies.items() if objective in info.objectives}
    assert sorted(re.findall(r"`([\w-]+)`", sentence)) == sorted(methods)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    words = len(prose(text).split())
    assert len(text.splitlines()) <= 120
    assert words <= 600
    assert len(numbers(prose(text))) <= words / 50
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) - 2 <= 6 and {len(row) for row in rows} <= set(range(1, 7))
    assert text.count("![") == 1
    assert "](docs/should-i-use-lora.md)" in "".join(text.splitlines(keepends=True)[:25])


def test_the_page_on_lora_is_short():
    lines = prose((ROOT / "docs/should-i-use-lora.md").read_text()).splitlines()
    assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= 10


def raw(study):
    """Return the records of a study, or of one of its scenarios, as they are on disk, by label and seed."""
    grouped = {}
    folder, _, scenario = study.partition(":")
    for path in (ROOT / "reports/lora_question" / folder / "records").glob("*.json"):
        record = json.loads(path.read_text())
        if scenario in ("", record["trial"]["scenario"]):
            grouped.setdefault(record["label"], {})[record["trial"]["seed"]] = record
    return grouped


def test_a_row_of_the_readme_is_the_mean_of_its_records(script):
    records = raw("answer:task")["lora:recipe.lr=3e-3"].values()
    accuracy = statistics.fmean(100 * statistics.fmean(r["R"][-1]) for r in records)
    stored = {sum(r["costs"]["bytes"][-1].values()) for r in records}
    compute = {sum(r["costs"]["train_flops"]) for r in records}
    row, = (line.split("|") for line in script.comparison().splitlines() if "LoRA r=4 (one per task)" in line)
    cells = [cell.strip() for cell in row[2:7]]
    assert cells[0].startswith(f"{accuracy:.1f} ±") and cells[1] == "0.0 ± 0.0"
    assert [f"{count:,}" for count in {r["costs"]["trainable"][-1] for r in records}] == [cells[2]]
    assert [f"{value / 1e6:.1f} MB" for value in stored] == [cells[3]]
    assert [f"{value / 1e12:.1f} TFLOP" for value in compute] == [cells[4]]


def test_what_the_readme_says_that_the_first_command_prints_is_what_committed_records_give():
    found = {}
    for path in (ROOT / "reports/all_methods/records").glob("*.json"):
        record = json.loads(path.read_text())
        if record["trial"]["scenario"] == "task" and record["label"] in ("ewc", "lora"):
            found.setdefault(record["label"], []).append(record)
    accuracy = {label: 100 * statistics.fmean(statistics.fmean(r["R"][-1]) for r in records)
                for label, records in found.items()}
    lora, ewc = (found[label][0]["costs"] for label in ("lora", "ewc"))
    storage = sum(lora["bytes"][-1].values()) / sum(ewc["bytes"][-1].values())
    compute = sum(lora["train_flops"]) / sum(ewc["train_flops"])
    output, = blocks("README.md", "text")
    assert output.startswith(f"EWC {accuracy['ewc']:.1f}%, LoRA r=4 {accuracy['lora']:.1f}%: no significant difference")
    assert (f"trains {ewc['trainable'][-1] / lora['trainable'][-1]:.0f} times fewer parameters per task, stores "
            f"{100 * (1 - storage):.0f}% less and needs {100 * (1 - compute):.0f}% less training compute.") in output


@pytest.mark.parametrize(("study", "reference"), [("answer:task", None), ("vision_task_full", None),
                                                  ("vision_class", "joint:recipe.lr=1e-5"),
                                                  ("ranks", None), ("ranks", "independent:recipe.lr=1e-5")])
def test_verdicts_are_those_of_an_independent_computation_with_holms_correction(script, study, reference, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    recompute = importlib.import_module("recompute_samples")
    every = [record for by_seed in raw(study).values() for record in by_seed.values()]
    values = {label: {seed: recompute.values_of(r, every) for seed, r in by_seed.items()}
              for label, by_seed in raw(study).items()
              if label == reference or not next(iter(by_seed.values()))["reference"]}
    pairs = [pair for pair in itertools.combinations(values, 2) if reference in (None, *pair)]
    p = {(a, b): recompute.p_value(values[a], values[b], len(pairs)) for a, b in pairs}
    sign = {(a, b): statistics.fmean(values[a][s][0] - values[b][s][0] for s in values[a].keys() & values[b].keys())
            for a, b in pairs}
    left, significant = len(p), set()
    for pair in sorted(p, key=p.get):  # Holm: the smallest p times the number of tests, and so on until one fails
        if p[pair] * left > 0.05:
            break
        significant.add(pair)
        left -= 1
    assert 0 < len(significant) < len(p) or study in ("vision_class", "answer:task")
    for a, b in p:
        expected = "open" if (a, b) not in significant else "better" if sign[a, b] > 0 else "worse"
        assert script.verdict((study, a), (study, b)) == expected, (a, b)


def best_of_tuning(folder, row, seeds=(1000, 1001)):
    """Return the best mean of a row's candidates over development seeds with task IDs, from tuning records."""
    paths = (ROOT / "benchmarks/lora_question" / folder).glob("*.json")
    finals = defaultdict(list)
    for record in [json.loads(path.read_text()) for path in paths]:
        if (record["label"].partition(":")[0] == row and record["trial"]["scenario"] == "task"
                and record["trial"]["seed"] in seeds):
            finals[record["label"]].append(statistics.mean(record["R"][-1]))
    return max(statistics.mean(values) for values in finals.values() if len(values) == len(seeds))


def test_what_the_pages_say_of_more_steps_is_what_the_tuning_records_say():
    few, many = "answer_tuning/records", "answer_tuning/budget/records"

    def leads_of_rivals(seeds):
        return {row: [best_of_tuning(folder, row, seeds) - best_of_tuning(folder, "lora", seeds)
                      for folder in (few, many)] for row in ("naive", "joint-equal-steps", "ewc", "er")}

    leads = leads_of_rivals([1000])
    assert all(many_steps < few_steps - 0.03 for few_steps, many_steps in leads.values())  # LoRA gains most
    assert leads["ewc"][0] > 0.13 and 0 < leads["ewc"][1] < 0.05 and leads["er"][1] < 0 < leads["er"][0]
    leads = leads_of_rivals([1000, 1001])
    assert all(many_steps < few_steps - 0.02 for few_steps, many_steps in leads.values())
    assert leads["ewc"][0] > 0.12 and 0.02 < leads["ewc"][1] < 0.05  # a few points
    assert leads["er"][0] > 0.05 and abs(leads["er"][1]) < 0.005  # LoRA matches ER
    protocol = (ROOT / "benchmarks/lora_question/PROTOCOL.md").read_text()
    for row in ("naive", "joint-equal-steps", "lora", "er", "ewc"):
        assert f"| `{row}` | {100 * best_of_tuning(few, row):.2f} | {100 * best_of_tuning(many, row):.2f} |" in protocol


def test_what_the_pages_say_of_more_steps_is_what_the_study_says():
    tables = (ROOT / "reports/lora_question/answer/primary.md").read_text()
    order = {steps: {row: float(value) for row, value in re.findall(r"(\S+) (\d+\.\d)", line)}
             for steps, line in re.findall(r"^\| (64|256) \| (.*) \|$", tables, re.MULTILINE)}
    assert {steps: (next(iter(means)), list(means)[-1]) for steps, means in order.items()} == {
        steps: ("ewc", "lora") for steps in ("64", "256")}  # the best and the last row
    leads = [round(order["256"][rival] - order["256"]["lora"]) for rival in ("ewc", "er")]
    assert leads == [5, 2]  # "EWC's lead shrinks to five points and ER's to two"
    assert all(order["64"][rival] - order["64"]["lora"] > 10 for rival in ("ewc", "er"))


def planned(rival, task_ids):
    """Return difference, p-value and verdict of LoRA against a rival in the planned comparisons of `answer`."""
    tables = (ROOT / "reports/lora_question/answer/primary.md").read_text()
    cells, = re.findall(rf"^\| {rival} \| {task_ids} \| (\S+) \| [^|]+ \| (\S+) \| ([^|]+) \|$", tables, re.MULTILINE)
    return float(cells[0]), float(cells[1]), cells[2]


def test_what_the_pages_say_without_numbers_is_what_the_tests_say(script):
    worse, better = "worse by more than the margin", "better by more than the margin"
    with_ids = {rival: planned(rival, "with task IDs")[2] for rival in script.RIVALS}
    assert with_ids == {"ewc": worse, "er": worse, "pnn": "not better", "shared-private": better, "ranpac": worse,
                        "ridge": worse, "joint-equal-steps": worse}
    without_ids = {rival: planned(rival, "without task IDs") for rival in script.RIVALS}
    assert without_ids["joint-equal-steps"][2] == worse and without_ids["shared-private"][2] == better
    assert {rival for rival, (difference, p, _) in without_ids.items() if p <= 0.05 and difference < 0} == {
        "er", "pnn", "ranpac", "ridge", "joint-equal-steps"}
    assert without_ids["ewc"][1] > 0.05
    assert {script.verdict(script.EWC, rival) for rival in (script.LORA, script.SHARED_LORA, script.ER, script.PNN,
                                                            script.SHARED, script.RIDGE)} == {"better"}
    assert 0 < script.mean(script.PNN) - script.mean(script.LORA) < 0.02
    for study, lora in (script.LORA, script.CLASS_LORA):
        assert abs(script.mean((study, script.HEAD_RATE)) - script.mean((study, lora))) < 0.01
    sharing = (script.EWC, script.SHARED_LORA, script.ER, script.NAIVE)
    assert script.mean(script.NAIVE) > script.mean(script.ER) and script.mean(script.NAIVE, script.FORGETTING) < 0.03
    assert min(script.mean(method, script.LEARNING) for method in sharing) > script.mean(script.LORA) + 0.05
    assert script.mean(script.LORA, script.COMPUTE) / script.mean(script.NAIVE, script.COMPUTE) == pytest.approx(
        2 / 3, abs=0.01)
    assert script.mean(script.RIDGE, script.COMPUTE) / script.mean(script.LORA, script.COMPUTE) == pytest.approx(
        1 / 4, abs=0.01)
    assert script.verdict(script.TEXT_CLASS_LORA, script.TEXT_CLASS_RANPAC) == "worse"
    assert script.mean(script.COPY) > script.mean(script.WORSE_COPY) and script.best_rate(4) == script.RANK_4
    assert script.verdict(script.RANK_4, script.COPY) == script.verdict(script.TEXT_LORA, script.TEXT_PROBE) == "open"
    assert script.mean(script.TEXT_PROBE) > script.mean(script.TEXT_LORA)
    assert script.verdict(script.FULL_RANPAC, script.FULL_LORA) == "better"


def test_the_planned_comparisons_are_what_the_committed_records_give():
    folder = "reports/lora_question/answer"
    printed = subprocess.run([sys.executable, "benchmarks/lora_question/primary.py", folder, f"{folder}_budget"],
                             cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed == (ROOT / folder / "primary.md").read_text()


@pytest.mark.slow
def test_the_committed_reports_are_what_their_records_give():
    from clbench import report
    from clbench.report.formats.markdown import render
    from clbench.results.diff import group_by_method

    for path in ROOT.glob("reports/**/report.md"):
        records, problems = Store(path.parent).read()
        assert not problems
        assert render(report.build(group_by_method(records))) == path.read_text()


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


@pytest.mark.slow
def test_the_committed_figures_are_what_their_records_give():
    from clbench import report
    from clbench.report.figures.draw import draw_report
    from clbench.results.diff import group_by_method

    for path in ROOT.glob("reports/**/report.md"):
        drawn = {Path(name).stem: data.decode() for name, data in
                 draw_report(report.build(group_by_method(Store(path.parent).read()[0]))).items()}
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


def test_the_example_of_explain_has_the_figures_of_its_report():
    page, report = ((ROOT / path).read_text().replace("&gt;", ">") for path in (
        "docs/explain.md", "reports/explain/hsu-van-de-ven/explain.md"))
    rows = [line for line in page.splitlines() if line.startswith(("> ACC", "| budget", "| class order", "| sum"))]
    assert len(rows) == 4 and all(row.removeprefix("> ") in report for row in rows)
    a, b = re.findall(r"ACC ([\d.]+) -> ([\d.]+)", report)[0]
    assert f"gets {a}% and {b}%" in page
    hsu, van_de_ven = ((ROOT / f"benchmarks/explain/{name}.toml").read_text() for name in ("hsu", "van_de_ven"))
    published = re.search(r"publish ([\d.]+)% \(Hsu.*?\) and\s([\d.]+)% \(van de Ven", page)
    assert f"report {published[1]} for" in hsu and f"report {published[2]} for" in van_de_ven


def test_the_average_of_the_guide_is_a_moving_average_of_what_was_trained():
    scope = {"__name__": "clbench_mean_er"}
    code, = (block for block in blocks("docs/writing-a-strategy.md", "python") if "class MeanER(" in block)
    exec(code, scope)
    info, = scope["clbench_strategies"]()
    made = bench(info, {"decay": 0.75, "capacity": 10}, "class")
    weight = made.strategy.model.head.weight
    average = weight.detach().double().clone()
    for step in range(5):
        with torch.no_grad():
            weight += step
        made.strategy.prepare_batch(made.batch(0))
        average = 0.75 * average + 0.25 * weight.detach().double()
    torch.testing.assert_close(made.strategy.teacher.head.weight.double(), average, atol=1e-5, rtol=1e-5)
    assert len(made.strategy.memory_y) == 10 and made.strategy.prepare_batch(made.batch(0)).replayed > 0
