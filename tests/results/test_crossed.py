"""The mean over seeds and shared test samples: its variance, its test, and what reports make of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.records import make_record
from scipy import stats

from clbench import report
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.families import NEAR, SAME, PairedTest
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.paired_tests import all_pairs, flips_name
from clbench.report.columns import ACC, MEASURES
from clbench.report.figures.accuracy import draw_curves
from clbench.report.figures.style import assign_styles
from clbench.report.formats.page import section_view
from clbench.results.item_scores import ItemScores
from clbench.results.items import ItemResults, cross, task_numbers, weight_by_task
from clbench.results.paired import seeds_to_show
from clbench.results.sequential import seeds_to_decide, threshold, weight

SCORES = (np.random.default_rng(0).normal(size=(4, 50)) + np.random.default_rng(1).normal(size=50)
          + np.array([[-1.0], [0.0], [0.5], [1.0]]))


def by_hand(scores):
    """Return the mean squares of seeds, samples and rest, from sums over all cells in plain Python."""
    seeds, samples = scores.shape
    grand = sum(map(sum, scores.tolist())) / scores.size
    rows = [sum(row) / samples for row in scores.tolist()]
    columns = [sum(column) / seeds for column in scores.T.tolist()]
    ms_seed = samples * sum((r - grand) ** 2 for r in rows) / (seeds - 1)
    ms_sample = seeds * sum((c - grand) ** 2 for c in columns) / (samples - 1)
    rest = sum((scores[i, j] - rows[i] - columns[j] + grand) ** 2 for i in range(seeds) for j in range(samples))
    return ms_seed, ms_sample, rest / ((seeds - 1) * (samples - 1))


def test_the_variance_is_that_of_the_two_way_layout():
    found = cross(SCORES.mean(axis=1).tolist(), SCORES)
    ms_seed, ms_sample, rest = by_hand(SCORES)
    assert found.mean == pytest.approx(SCORES.mean())
    assert found.variance == pytest.approx((ms_seed + ms_sample - rest) / SCORES.size)
    df = (ms_seed + ms_sample - rest) ** 2 / (ms_seed**2 / 3 + ms_sample**2 / 49 + rest**2 / (3 * 49))
    assert found.df == pytest.approx(max(df, 3))
    half = stats.t.ppf(0.975, found.df) * math.sqrt(found.variance)
    assert found.interval.half_width == pytest.approx(half)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / math.sqrt(found.variance), found.df))


def test_without_an_effect_of_samples_it_is_at_least_the_t_test_over_seeds():
    scores = np.repeat(np.array([[0.1], [0.3], [0.2]]), 20, axis=1)  # samples are all alike
    found = cross(scores.mean(axis=1).tolist(), scores)
    assert found.variance == pytest.approx(np.var([0.1, 0.3, 0.2], ddof=1) / 3) and found.of_samples == 0
    assert found.p == pytest.approx(stats.ttest_1samp([0.1, 0.3, 0.2], 0).pvalue)


def test_equal_seeds_are_a_t_test_over_samples():
    row = np.random.default_rng(2).normal(0.2, 1, 30)
    found = cross([row.mean()] * 3, np.stack([row] * 3))
    assert found.variance == pytest.approx(np.var(row, ddof=1) / 30)
    assert found.p == pytest.approx(stats.ttest_1samp(row, 0).pvalue, rel=1e-6)


def test_more_seeds_lower_only_their_part_of_the_variance():
    found = cross(SCORES.mean(axis=1).tolist(), SCORES)
    assert found.with_seeds(4).p == pytest.approx(found.p) and found.with_seeds(4).df == pytest.approx(found.df)
    assert found.with_seeds(10**9).variance == pytest.approx(found.of_samples, rel=1e-6)
    ms_seed, ms_sample, rest = by_hand(SCORES)
    ms_sample = 10 * (ms_sample - rest) / 4 + rest  # that of 10 seeds with the same components
    total = ms_seed + ms_sample - rest
    assert found.with_seeds(10).variance == pytest.approx(total / (10 * 50))
    df = total**2 / (ms_seed**2 / 9 + ms_sample**2 / 49 + rest**2 / (9 * 49))
    assert found.with_seeds(10).df == pytest.approx(max(df, 9))


def test_the_seeds_that_are_needed_are_those_of_the_test_itself():
    found = cross((SCORES.mean(axis=1) + 0.6).tolist(), SCORES + 0.6)
    for family in (1, 3):
        needed = seeds_to_show([row.mean() for row in SCORES + 0.6], family, found)
        assert family * found.with_seeds(needed).p <= 0.05 < family * found.with_seeds(needed - 1).p
    rule = UntilDecided(first=3, most=40)
    needed = seeds_to_decide([row.mean() for row in SCORES + 0.6], rule, 3, found)
    enough = threshold(0.05 / 3, rule)
    assert found.with_seeds(needed).p <= enough * weight(needed, 40)
    assert found.with_seeds(needed - 1).p > enough * weight(needed - 1, 40)


def test_test_samples_are_too_few_if_no_number_of_seeds_is_enough_after_correction():
    found = cross(SCORES.mean(axis=1).tolist(), SCORES)
    found = replace(found, mean=2.5 * math.sqrt(found.of_samples))  # p = 0.012 if only samples are random
    for family, expected in ((1, None), (30, 50)):
        assert PairedTest("a", "b", (0.4,) * 4, found.p, 1.0, "crossed", family, crossed=found).limited == expected


SIZES = (30, 15, 5)


def by_task(scores):
    """Return the mean over tasks of `SIZES` of each row of scores."""
    return np.stack([part.mean(axis=1) for part in np.split(scores, np.cumsum(SIZES)[:-1], axis=1)]).mean(axis=0)


def test_samples_of_small_tasks_weigh_more():
    row = SCORES[0] + np.repeat([1.0, 0.0, -1.0], SIZES)
    mean, = by_task(row[None])
    weights = np.repeat([50 / 3 / size for size in SIZES], SIZES)  # of the mean over tasks, relative to a mean of 1
    assert (weights * row).mean() == pytest.approx(mean)
    weighted = weight_by_task(row, SIZES, mean, task_numbers(SIZES))
    assert weighted.mean() == pytest.approx(mean, abs=1e-6)
    assert weighted.var() == pytest.approx(((weights * (row - mean)) ** 2).mean(), rel=1e-5)
    unknown = weight_by_task(row, SIZES, mean, None)
    assert unknown.mean() == pytest.approx(mean, abs=1e-6)
    effective = 9 / sum(1 / size for size in SIZES)  # number of samples whose plain mean varies as much
    assert unknown.var() / 50 == pytest.approx(row.var() / effective, rel=1e-5)
    assert weight_by_task(row, (25, 25), mean, task_numbers((25, 25))) is row


@pytest.mark.parametrize(("spread", "known"), [((1, 1), True), ((1, 1), False), ((1, 3), True)])
def test_equal_methods_seldom_differ_if_tasks_have_unequal_numbers_of_samples(spread, known):
    draws, sizes, claims = np.random.default_rng(0), (400, 200, 100, 50, 20), 0
    starts, tasks = np.cumsum([0, *sizes[:-1]]), task_numbers(sizes)
    scale = np.linspace(*spread, len(sizes))[tasks]  # of the scores of each sample
    for _ in range(400):
        scores = scale * (0.6 * draws.normal(size=770) + 0.7 * draws.normal(size=(10, 770)))
        means = (np.add.reduceat(scores, starts, axis=1) / sizes).mean(axis=1)
        weighted = np.stack([weight_by_task(row, sizes, mean, tasks if known else None)
                             for row, mean in zip(scores, means, strict=True)])
        claims += cross(means.tolist(), weighted).p <= 0.05
    # 0.18 if all samples weigh the same, and 0.22 for a spread of (1, 3) if the tasks are not known.
    assert claims / 400 < 0.08


def test_reports_weight_samples_by_task():
    right = np.random.default_rng(4).random((3, 50)) < 0.7
    accuracies = [[float(part.mean()) for part in np.split(row, np.cumsum(SIZES)[:-1])] for row in right]
    made = [make_record("ewc", seed, [[0.5] * 3] * 3 + [accuracy]) for seed, accuracy in enumerate(accuracies)]
    rows = np.split(np.random.default_rng(5).permutation(50), np.cumsum(SIZES)[:-1])  # images are not in task order
    made = [r.model_copy(update={"stream": r.stream.model_copy(update={"test_samples": list(SIZES)}),
                                 "items": ItemResults.of(rows, row, "samples")})
            for r, row in zip(made, right, strict=True)]
    in_order = [r.model_copy(update={"items": None, "item_scores": ItemScores.of({"accuracy": row}, "samples")})
                for r, row in zip(made, right, strict=True)]
    older = [r.model_copy(update={"items": r.items.model_copy(update={"task_of": ""})}) for r in made]
    for records, tasks in ((made, task_numbers(SIZES)), (older, None), (in_order, task_numbers(SIZES))):
        setting, = group_by_setting(records)
        weighted = [weight_by_task(row.astype("float32"), SIZES, float(np.mean(accuracy)), tasks)
                    for row, accuracy in zip(right, accuracies, strict=True)]
        expected = cross([float(np.mean(accuracy)) for accuracy in accuracies], np.stack(weighted)).interval
        found = setting.interval(ACC, "ewc")
        assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def records(right, own_samples=False):
    """Return records of two methods, with which of 200 test samples in two tasks each seed has right."""
    made = []
    for method, by_seed in right.items():
        for seed, answers in enumerate(by_seed):
            accuracy = [float(answers[:100].mean()), float(answers[100:].mean())]
            record = make_record(method, seed, [[0.5, 0.5], [accuracy[0], 0.5], accuracy], test_samples=100)
            items = ItemResults.of(np.split(np.arange(200), 2), answers, f"samples{seed}" if own_samples else "samples")
            made.append(record.model_copy(update={"items": items}))
    return made


def drawn(seeds=4):
    """Return answers of two methods: one is right where the other is wrong, for the same samples in every seed."""
    draws = np.random.default_rng(3)
    hard = draws.random(200) < 0.3
    return {"ewc": [~hard ^ (draws.random(200) < 0.02) for _ in range(seeds)],
            "lora": [(draws.random(200) < 0.78) for _ in range(seeds)]}


def test_reports_use_the_samples_if_all_seeds_share_them():
    made = records(drawn())
    setting, = group_by_setting(made)
    pair, = all_pairs(setting)[ACC].pairs
    scores = np.stack([a.items.matrix()[0].astype(float) - b.items.matrix()[0] for a, b in zip(
        made[:4], made[4:], strict=True)])
    expected = cross(scores.mean(axis=1).tolist(), scores)
    assert pair.test == "crossed" and pair.p == pytest.approx(expected.p, rel=1e-4)
    over_seeds = stats.ttest_1samp(scores.mean(axis=1), 0).pvalue
    assert pair.p > over_seeds  # the samples are part of what might have been otherwise
    section, = report.build(made).sections
    assert "also cover the choice of test samples" in " ".join(section.footnote)
    assert "conditional on the training samples" in " ".join(section.footnote)
    cell = next(row.cells[section.comparison.index("ACC")] for row in section.comparison.rows if row.label == "EWC")
    one = np.stack([r.items.matrix()[0].astype(float) for r in made[:4]])
    assert cell.half_width == pytest.approx(cross(one.mean(axis=1).tolist(), one).interval.half_width, rel=1e-4)


def test_a_mean_has_one_interval_in_all_tables_and_figures():
    made = report.build(records(drawn()))
    section, styles = made.sections[0], assign_styles(made.strategies)
    page = section_view("s", "s", section, styles)
    cell = section.comparison.rows[0].cells[section.comparison.index("ACC")]
    tables = {table.title: table for _, table, _ in page.figure_tables}
    for title in ("Accuracy after each task", "Accuracy of each seed"):
        assert tables[title].rows[0].cells[-1] == replace(cell, bold=False, second=False)
    curves = next(figure for figure in section.figures if figure.kind == "curves")
    assert (curves.points[0].low, curves.points[0].high) == (cell.low, cell.high)
    drawn_curves = draw_curves(curves, styles)
    band = drawn_curves.axes[0].collections[0].get_paths()[0].vertices
    assert {cell.low, cell.high} <= set(band[band[:, 0] == 2, 1])


def test_footnotes_name_the_test_that_was_used():
    rule = UntilDecided(first=3, most=8)
    made = [r.model_copy(update={"until": rule}) for r in records(drawn())]
    assert "by sequential t-tests over seeds and test samples, " in " ".join(report.build(made).sections[0].footnote)
    assert flips_name(16) == "exact sign-flip tests" and flips_name(17) == "sign-flip tests with random signs"


def test_seeds_with_samples_of_their_own_are_tested_over_seeds():
    made = records(drawn(), own_samples=True)
    setting, = group_by_setting(made)
    pair, = all_pairs(setting)[ACC].pairs
    assert pair.test == "t" and not setting.answers(ACC) and setting.own_tests
    section, = report.build(made).sections
    assert "conditional on the training samples" in " ".join(section.footnote)


def test_records_without_samples_are_conditional_on_them():
    made = [r.model_copy(update={"items": None}) for r in records(drawn())]
    section, = report.build(made).sections
    assert "conditional on the training and test samples, which all seeds share" in " ".join(section.footnote)


def test_only_the_final_accuracy_is_known_by_sample():
    setting, = group_by_setting(records(drawn()))
    assert [m.column.title for m in MEASURES if setting.answers(m)] == ["ACC"]


def test_a_deterministic_method_is_tested_over_samples():
    same = drawn(1)["ewc"][0]
    other = same.copy()
    other[:40] = ~other[:40]
    setting, = group_by_setting(records({"ewc": [same] * 3, "lora": [other] * 3}))
    pair, = all_pairs(setting)[ACC].pairs
    assert pair.test == "crossed" and not pair.untested
    without, = group_by_setting([r.model_copy(update={"items": None}) for r in setting.records])
    assert all_pairs(without)[ACC].pairs[0].untested == SAME


def test_accuracies_near_100_percent_are_not_tested():
    found = [make_record(method, seed, [[0.5], [accuracy]]) for method, own in (
        ("ewc", (0.99, 0.97, 0.98)), ("lora", (0.90, 0.91, 0.92)), ("er", (0.80, 0.82, 0.81)))
        for seed, accuracy in enumerate(own)]
    setting, = group_by_setting(found)
    pairs = {(p.first, p.second): p for p in all_pairs(setting)[ACC].pairs}
    assert pairs["ewc", "lora"].untested == pairs["ewc", "er"].untested == NEAR
    assert pairs["lora", "er"].significant and pairs["lora", "er"].family == 3
    section, = report.build(found).sections
    assert section.headline[0][1].endswith(
        "because accuracies within three standard deviations (over seeds) of 100% are too skewed for a test.")


def test_a_baseline_against_which_nothing_is_tested_is_not_called_equal():
    found = [make_record(method, seed, [[0.5], [accuracy]], reference=method == "naive") for method, own in (
        ("ewc", (0.90, 0.91, 0.92)), ("er", (0.80, 0.82, 0.81)), ("naive", (0.99, 0.97, 0.98)))
        for seed, accuracy in enumerate(own)]
    references = dict(report.build(found).sections[0].headline[1:2])["Answer"]
    assert references == ("References: Fine-tuning 98.0%. None of 2 methods is tested against Fine-tuning because "
                          "accuracies within three standard deviations (over seeds) of 100% are too skewed for a test.")
