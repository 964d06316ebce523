"""The comparisons of the protocol of the study `answer` are computed as the protocol says, from records alone."""

import importlib
import json
import re

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats


@pytest.fixture(scope="module")
def primary():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks/lora_question")
        return importlib.import_module("primary")


def write_study(primary, folder, seeds, offset=None, **changes):
    """Write a record for each row, scenario and seed; `offset` gives the accuracy in percent of a row and a seed."""
    (folder / "records").mkdir(parents=True)
    for row in primary.ROWS:
        for scenario in primary.scenarios_of(row):
            for seed in seeds:
                accuracy = (offset or (lambda *_: 50.0))(row, scenario, seed) / 100
                record = {"label": f"{row}:recipe.lr=1e-3", "status": "done", "R": [[0.1, 0.1], [accuracy, accuracy]],
                          "trial": {"scenario": scenario, "seed": seed, "own_recipe": {"lr": 1e-3}},
                          "provenance": {"git": "abc123", "machine": "AMD"}, "stream": {"fingerprint": f"{seed}"},
                          "errors": [{"given": [6, 9], "samples": [10, 10]}] if scenario == "class" else []}
                record |= changes if (row, scenario, seed) == ("ewc", "task", 3) else {}
                (folder / "records" / f"{row}{scenario}{seed}.json").write_text(json.dumps(record))
    return folder


def accuracy_of(row, scenario, seed):
    """Return an accuracy with a difference to LoRA whose mean is known and whose deviation over seeds is not zero."""
    means = {"lora": 60.0, "er": 59.0, "ewc": 40.0, "pnn": 60.5, "shared-private": 70.0}
    noise = np.random.default_rng(sum(map(ord, row + scenario))).normal(size=10)
    return means.get(row, 50.0) + {"er": 0.1, "pnn": 9.0}.get(row, 1.0) * noise[seed] * (row != "lora")


def cells(lines, rival, scenario):
    """Return the cells of the row of a rival."""
    return next(cells for line in lines if (cells := [c.strip() for c in line.strip("|").split("|")])[:2]
                == [rival, scenario])


def test_the_differences_have_the_intervals_the_p_values_and_the_verdicts_of_the_protocol(primary, tmp_path):
    accuracies = primary.read(write_study(primary, tmp_path / "s", range(10), accuracy_of), primary.ROWS, range(10))
    lines = primary.compare(accuracies, "lora", primary.PRIMARY, True)
    assert len(lines) == 2 + 8 and "99.375% interval" in lines[0]
    ps = []
    for scenario, title in primary.SCENARIOS.items():
        for rival in primary.PRIMARY:
            d = np.array([accuracy_of("lora", scenario, s) - accuracy_of(rival, scenario, s) for s in range(10)])
            se = d.std(ddof=1) / 10**0.5
            half = stats.t.ppf(1 - 0.05 / 8 / 2, 9) * se
            ps.append(2 * stats.t.sf(abs(d.mean() / se), 9))
            interval = f"{d.mean() - half:+.2f} to {d.mean() + half:+.2f}"
            assert cells(lines, rival, title)[2:4] == [f"{d.mean():+.2f}", interval]
    order = np.argsort(ps)
    holm = np.empty(8)
    for place, i in enumerate(order):
        holm[i] = min(1, max((8 - k) * ps[order[k]] for k in range(place + 1)))
    titles = [(rival, title) for title in primary.SCENARIOS.values() for rival in primary.PRIMARY]
    assert [cells(lines, *title)[4] for title in titles] == [f"{p:.2g}" for p in holm]
    verdicts = {rival: cells(lines, rival, "with task IDs")[5] for rival in primary.PRIMARY}
    assert verdicts == {"ewc": "better by more than the margin", "er": "equivalent", "pnn": "inconclusive",
                        "shared-private": "worse by more than the margin"}


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (2.1, 9, "better by more than the margin"), (-9, -2.1, "worse by more than the margin"), (-1, 1, "equivalent"),
    (-1, 5, "not worse"), (-5, 1, "not better"), (-5, 5, "inconclusive"), (2, 9, "not worse")])
def test_a_verdict_needs_the_whole_interval(primary, low, high, verdict):
    assert primary.verdict(low, high) == verdict


def test_a_method_that_diverged_is_not_tested_and_counts_in_the_family(primary, tmp_path):
    study = write_study(primary, tmp_path / "s", range(10), accuracy_of, status="diverged")
    lines = primary.compare(primary.read(study, primary.ROWS, range(10)), "lora", primary.PRIMARY, True)
    assert cells(lines, "ewc", "with task IDs")[3:] == ["not tested: diverged on 1 of 10 seeds", "", ""]
    assert float(cells(lines, "shared-private", "with task IDs")[4]) < 1e-6


@pytest.mark.parametrize(("seeds", "changes", "message"), [
    (range(9), {}, "ewc, scenario task: 9 of 10 seeds"),
    (range(10), {"status": "failed"}, "ewc, scenario task: 9 of 10 seeds"),
    (range(10), {"status": "failed", "stream": None}, "ewc, scenario task: 9 of 10 seeds"),
    (range(10), {"provenance": {"git": "abc123+dirty"}}, "abc123+dirty"),
    (range(10), {"provenance": {"git": None}}, "commits: None, abc123"),
    (range(10), {"trial": {"scenario": "task", "seed": 3, "own_recipe": {"lr": 1e-4}}},
     "ewc, scenario task: its trials differ in more than the seed"),
    (range(10), {"stream": {"fingerprint": "x"}}, "scenario task, seed 3: rows have different images"),
    (range(10), {"trial": {"scenario": "task", "seed": 3, "recipe": {"iterations": 65}}},
     "rows differ in benchmark, model, weights or shared recipe")])
def test_a_study_that_is_incomplete_or_of_two_commits_is_refused(primary, tmp_path, seeds, changes, message):
    with pytest.raises(SystemExit, match="not complete") as error:
        primary.read(write_study(primary, tmp_path / "s", seeds, **changes), primary.ROWS, range(10))
    assert message in str(error.value)


def test_the_script_prints_all_tables(primary, tmp_path, capsys):
    larger = write_study(primary, tmp_path / "t", range(3), lambda row, *_: {"er": 80.0}.get(row, 60.0))
    for path in (larger / "records").glob("*class*.json"):  # the study with 256 steps has task IDs only
        path.unlink()
    primary.main(write_study(primary, tmp_path / "s", range(10), accuracy_of), larger)
    printed = capsys.readouterr().out
    assert "| lora | 60.00 (0.00) | 60.00 (0.00) | 75.00 (0.00) |" in printed
    assert re.search(r"\| seq-lora \| [0-9.]+ \([0-9.]+\) \|  \|  \|\n", printed) and "abc123: 210 on AMD." in printed
    assert printed.count("| with task IDs |") == printed.count("| without task IDs |") + 9  # seq-lora has one scenario
    assert "256 steps: All trials ran at commit abc123: 33 on AMD." in printed
    assert "| 256 | er 80.0, naive 60.0, ewc 60.0, lora 60.0, joint-equal-steps 60.0 |" in printed
    assert printed.count("\n## ") == 5


@pytest.mark.parametrize("row", ["ewc", "lora-head-rate"])
def test_a_row_without_records_is_refused(primary, tmp_path, row):
    study = write_study(primary, tmp_path / "s", range(10), accuracy_of)
    for path in (study / "records").glob(f"{row}*.json"):
        path.unlink()
    with pytest.raises(SystemExit, match=f"{row}, scenario task: 0 of 10 seeds"):
        primary.main(study)


def test_it_uses_nothing_of_clbench():
    assert "import clbench" not in (text := (ROOT / "benchmarks/lora_question/primary.py").read_text())
    assert "from clbench" not in text
