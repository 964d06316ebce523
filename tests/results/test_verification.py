import math
import statistics

import pytest
from helpers.records import make_record
from helpers.references import CELLS, HEAD, write

from clbench.core.registry import discover
from clbench.experiment import references
from clbench.report.formats import verified
from clbench.results.verification import allowed, check, seeds_needed

TASKS = 5


def ending_in(accuracy):
    """An R whose final accuracies are all this."""
    return [[0.5] * TASKS] * TASKS + [[accuracy / 100] * TASKS]


@pytest.fixture
def reference(tmp_path):
    return references.read_reference(write(tmp_path))


def judged(reference, finals, statuses=()):
    """Return the verdicts where `finals` are our accuracies of each cell."""
    trials = [[p.trial for p in cell] for cell in reference.plan(reference.cells, discover())]
    records = []
    for cell, values in zip(trials, finals, strict=True):
        for seed, value in enumerate(values):
            trial = cell[0].model_copy(update={"seed": seed})
            status = dict(statuses).get((trial.method.name, seed), "done")
            record = make_record(R=ending_in(value), status=status)
            records.append(record.model_copy(update={"trial": trial, "key": trial.key}))
    return check(reference, trials, records)


def test_the_tolerance_is_welchs_interval_and_the_rounding_and_the_allowance(reference):
    from scipy.stats import t

    task, _, er = reference.cells
    ours = [89.0, 90.0, 92.5]
    own = statistics.variance(ours) / 3
    df = (own + 0.25)**2 / (own**2 / 2 + 0.25**2 / 15)
    assert allowed(reference, task, ours) == pytest.approx(t.ppf(0.995, df) * math.sqrt(own + 0.25) + 0.005)
    assert allowed(reference, er, ours) == pytest.approx(t.ppf(0.995, 2) * math.sqrt(own) + 0.505)


def test_a_published_deviation_counts_over_the_published_seeds(reference):
    _, deviation, _ = reference.cells
    error = deviation.model_copy(update={"sd": None, "sem": deviation.sd / math.sqrt(reference.seeds)})
    ours = [19.0, 20.0, 22.0]
    assert allowed(reference, deviation, ours) == allowed(reference, error, ours)


@pytest.mark.parametrize(("ours", "verdict"), [
    ([90.0, 90.2, 89.9, 90.1], "reproduced"), ([94.0, 94.2, 93.9, 94.1], "not reproduced"),
    ([86.0, 86.1], "not reproduced"),
    ([80.0, 99.0, 91.0], "inconclusive"), ([90.0], "inconclusive"), ([40.0], "inconclusive"), ([], "not run"),
    ([20.0, 20.1, 20.0], "not reproduced"),
])
def test_verdicts(reference, ours, verdict):
    first, *_ = judged(reference, [ours, [], []])
    assert first.verdict == verdict
    assert (first.mean is None) == (not ours)
    if len(ours) > 1 and verdict != "inconclusive":
        assert (abs(first.difference) <= first.tolerance) == (verdict == "reproduced")


def test_within_a_tolerance_that_is_too_wide_nothing_is_told_but_how_many_seeds_would_do(reference):
    first, *_ = judged(reference, [[80.0, 99.0, 91.0], [], []])
    assert first.tolerance > reference.tolerance.widest >= abs(first.difference)
    enough = seeds_needed(reference, first.cell, first.accuracies)
    assert allowed(reference, first.cell, first.accuracies, enough) <= 2.0
    assert allowed(reference, first.cell, first.accuracies, enough - 1) > 2.0
    assert f"about {enough} seeds would do" in first.remarks[0]


def test_a_cell_may_be_allowed_a_wider_tolerance(reference):
    wide = reference.model_copy(update={"cells": (reference.cells[0].model_copy(update={"widest": 60.0}),)})
    first, = judged(wide, [[80.0, 99.0, 91.0]])
    assert first.verdict == "reproduced"
    assert first.remarks == (f"agreement within {first.tolerance:.1f} points shows little",)
    assert "naive, Task-IL: decides up to a tolerance of 60 points" in verified.markdown(wide, [first])


def test_no_number_of_seeds_helps_against_their_own_spread(reference):
    cell = reference.cells[0].model_copy(update={"sem": 1.9})
    assert seeds_needed(reference, cell, [80.0, 99.0, 91.0]) is None


def test_a_seed_that_diverged_is_a_miss_and_one_that_failed_is_told(reference):
    diverged, _, failed = judged(reference, [[90.0, 90.1, 89.9], [], [60.0, 60.1, 59.9]],
                                 {("naive", 1): "diverged", ("er", 2): "failed"})
    assert (diverged.verdict, diverged.remarks, diverged.failed) == ("not reproduced", ("seed 1 diverged",), True)
    assert (failed.remarks[0], failed.failed, len(failed.accuracies)) == ("seed 2 failed", True, 2)


def test_all_seeds_of_a_cell_count_and_nothing_else_does(reference):
    first, second, _ = judged(reference, [[90.0] * 7, [20.0] * 2, []])
    assert (len(first.accuracies), len(second.accuracies)) == (7, 2)


def test_results_of_a_cpu_do_not_count_for_a_method_that_needs_a_gpu(tmp_path):
    reference = references.read_reference(write(tmp_path, cells=[CELLS[0] + "\ngpu = true"]))
    trials = [[planned.trial for planned in cell] for cell in reference.plan(reference.cells, discover())]
    for device, verdict in (("cpu", "inconclusive"), ("cuda: a card", "reproduced")):
        records = []
        for seed, value in enumerate([90.0, 90.2, 89.9, 90.1]):
            trial = trials[0][0].model_copy(update={"seed": seed})
            record = make_record(R=ending_in(value), device=device)
            records.append(record.model_copy(update={"trial": trial, "key": trial.key}))
        checked, = check(reference, trials, records)
        assert checked.verdict == verdict
        assert any("does not work on a CPU" in remark for remark in checked.remarks) == (device == "cpu")


def test_the_report_has_every_cell_the_rule_and_the_source(reference):
    checked = judged(reference, [[90.0, 90.2, 89.9, 90.1], [10.0, 10.1], []])
    text = verified.markdown(reference, checked)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[2][:5] == ["task", "naive", "90.00 ± 0.50", "90.05 ± 0.06", "4"]
    assert [row[-1] for row in rows[2:]] == ["reproduced", "not reproduced", "not run"]
    assert rows[3][2:6] == ["20.00 (sd 4.00)", "10.05 ± 0.05", "2", "-9.95"]
    for part in ("<https://example.org/paper>", "99 % interval", "beyond 2 points", "0.5 points, without its spread",
                 r"hand-written", "16 seeds", "1 reproduced, 1 not reproduced, 1 not run", "split-mnist-5k:"):
        assert part in text
    assert r"\| hand" in text
    plain = verified.format_plain(reference, checked)
    assert len([line for line in plain.splitlines() if line.startswith(("task", "class"))]) == len(CELLS)


def test_what_was_changed_of_the_rule_is_told_where_the_rule_stands(reference):
    assert "stated before the runs.\n" in verified.markdown(reference, [])
    rule = reference.tolerance.model_copy(update={"amended": "widest was 5."})
    text = verified.markdown(reference.model_copy(update={"tolerance": rule}), [])
    assert "stated before the runs, except: widest was 5.\n" in text


def test_a_report_of_nothing_has_no_setting(reference):
    assert "## Provenance" not in verified.markdown(reference, judged(reference, [[], [], []]))


def test_one_published_run_counts_as_without_spread_and_the_average_incremental_accuracy_has_its_own_cell(tmp_path):
    from scipy.stats import t

    head = HEAD.replace("seeds = 16", "seeds = 1")
    cell = 'scenario = "task"\nmethod = { name = "naive" }\npublished = 58.0\nallowance = 1.0\nreason = "one run"'
    reference = references.read_reference(write(tmp_path, head=head, cells=[
        cell.replace("58.0", "90.0"), cell + '\nmetric = "AIA"']))
    final, average = judged(reference, [[90.0, 90.01], []])
    assert (final.verdict, average.verdict) == ("reproduced", "reproduced")
    assert average.accuracies == pytest.approx([(4 * 50 + 90.0) / 5, (4 * 50 + 90.01) / 5])
    own = statistics.stdev(average.accuracies) / math.sqrt(2)
    assert average.tolerance == pytest.approx(t.ppf(0.995, 1) * own + 1.005)
    text = verified.markdown(reference, [final, average])
    assert "One run of each" in text and "naive (AIA)" in text


@pytest.mark.parametrize(("metric", "expected"), [
    ("ACC", (90 + 60) / 2), ("AIA", (80 + (90 + 60) / 2) / 2), ("ACC-pooled", (10 * 90 + 30 * 60) / 40),
    ("AIA-pooled", (80 + (10 * 90 + 30 * 60) / 40) / 2),
    ("AIA-pooled-all", ((10 * 80 + 30 * 20) / 40 + (10 * 90 + 30 * 60) / 40) / 2)])
def test_a_cell_is_compared_by_the_metric_of_its_source(tmp_path, metric, expected):
    """Two tasks with 10 and 30 test samples; the expected values are computed by hand."""
    reference = references.read_reference(write(tmp_path, cells=[CELLS[0] + f'\nmetric = "{metric}"']))
    trial = reference.plan(reference.cells, discover())[0][0].trial
    records = []
    for seed in (0, 1):
        own = trial.model_copy(update={"seed": seed})
        record = make_record(R=[[0.5, 0.5], [0.8, 0.2], [0.9, 0.6]])
        stream = record.stream.model_copy(update={"test_samples": [10, 30]})
        records.append(record.model_copy(update={"trial": own, "key": own.key, "stream": stream}))
    checked, = check(reference, [[trial]], records)
    assert checked.accuracies == pytest.approx([expected] * 2)
    text = verified.markdown(reference, [checked])
    assert (f"Numbers with ({metric}) are " in text) == (metric != "ACC") == (f"naive ({metric})" in text)
