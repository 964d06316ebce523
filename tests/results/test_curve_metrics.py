"""Metrics of the accuracy, or another metric, while tasks are learned, beside a plain walk through the steps."""

from statistics import fmean

import pytest
from helpers.curves import make_curve, make_lm_curve, with_curve
from helpers.records import make_lm_record
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clbench.core.errors import StoreError
from clbench.core.objective import METRICS
from clbench.results import curve as metrics
from clbench.results import diff
from clbench.results.curve import Curve
from clbench.results.diff import merge_runs
from clbench.results.records import Record, select_metric
from clbench.results.store import Store

# Two tasks of 10 and 20 test samples; points of task 2 after 0, 1, 2, 4 and 6 steps.
HAND = Curve(every=2, samples=[10, 20], steps=[[0, 1, 2], [0, 1, 2, 4, 6]],
             right=[[[5, 8, 10]], [[9, 4, 3, 7, 8], [0, 10, 20, 20, 18]]], after=[[10], [8, 18]])


@st.composite
def curves(draw):
    tasks = draw(st.integers(1, 4))
    samples = draw(st.lists(st.integers(1, 50), min_size=tasks, max_size=tasks))
    found = {"steps": [], "right": [], "after": []}
    for t in range(tasks):
        steps = sorted({0, *draw(st.sets(st.integers(1, 30), max_size=8))})
        counts = [st.integers(0, n) for n in samples[:t + 1]]
        found["steps"].append(steps)
        found["right"].append([draw(st.lists(c, min_size=len(steps), max_size=len(steps))) for c in counts])
        found["after"].append([draw(c) for c in counts])
    return Curve(every=1, samples=samples, **found)


def test_a_curve_worked_by_hand():
    assert metrics.min_acc(HAND) == pytest.approx(0.3)
    assert metrics.wc_acc(HAND) == pytest.approx(0.5 * 0.9 + 0.5 * 0.3)
    second = [(0.4 + 0.5) / 2, (0.3 + 1.0) / 2, *[(0.7 + 1.0) / 2] * 2, *[(0.8 + 0.9) / 2] * 2]
    assert metrics.anytime(HAND) == pytest.approx(((0.8 + 1.0) / 2 + fmean(second)) / 2)
    gap, = metrics.gaps(HAND)
    assert (gap.before, gap.worst, gap.end, gap.worst_step, gap.length) == (1.0, 0.3, 0.8, 2, 6)
    assert (gap.depth, gap.recovery) == pytest.approx((0.7, 0.5))


def test_a_fall_for_good_has_no_length():
    gap, *_ = metrics.gaps(make_curve(back=False))
    assert (gap.depth, gap.length) == (pytest.approx(0.3), None)
    assert metrics.mean_length(make_curve(back=False)) is None
    assert [g.length for g in metrics.gaps(make_curve())] == [15, 15]
    assert metrics.mean_depth(make_curve(tasks=1)) is metrics.wc_acc(make_curve(tasks=1)) is None


@given(curves())
def test_definitions_on_any_curve(curve):
    """Walk through all points in order, as the paper's evaluator does, and keep the least accuracy of old tasks."""
    least, average = {}, []
    for t, (steps, right, after) in enumerate(zip(curve.steps, curve.right, curve.after, strict=True)):
        moments = [(step, [series[p] for series in right]) for p, step in enumerate(steps)][1:]
        for _, counts in [*moments, (None, after)]:
            for j in range(t):
                least[j] = min(least.get(j, 1.0), counts[j] / curve.samples[j])
        by_step = {step: fmean(c / n for c, n in zip(counts, curve.samples, strict=False)) for step, counts in moments}
        each = [by_step[min(s for s in by_step if s >= step)] for step in range(1, steps[-1] + 1)]
        average.append(fmean(each) if each else fmean(c / n for c, n in zip(after, curve.samples, strict=False)))
    assert metrics.anytime(curve) == pytest.approx(fmean(average))
    tasks = len(curve.samples)
    if tasks > 1:
        assert metrics.min_acc(curve) == pytest.approx(fmean(least.values()))
        last = curve.after[-1][-1] / curve.samples[-1]
        assert metrics.wc_acc(curve) == pytest.approx(last / tasks + (tasks - 1) / tasks * fmean(least.values()))
    for gap in metrics.gaps(curve):
        assert gap.recovery >= 0 and (gap.length is None) == (gap.recovery <= metrics.NEAR)
        assert gap.length is None or gap.length >= gap.worst_step


def test_a_record_keeps_a_series_on_a_line_and_gives_it_back():
    record = with_curve(curve=HAND)
    written = record.model_dump_json(by_alias=True, indent=1)
    assert '"9 4 3 7 8"' in written
    assert Record.model_validate_json(written).curve == HAND
    assert "curve" not in with_curve().model_copy(update={"curve": None}).model_dump_json()


@pytest.mark.parametrize("wrong", [{"right": [[[5, 8]], HAND.right[1]]}, {"right": [[[5, 8, 11]], HAND.right[1]]},
                                   {"after": [[10], [8, 21]]}, {"steps": [[0, 1, 2]]}])
def test_numbers_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(ValidationError):
        Curve(**{**HAND.model_dump(), **wrong})


def test_what_a_curve_serves():
    there = [10, 20]
    assert HAND.serves(2, 20, there) and HAND.serves(5, 1000, there)
    assert not HAND.serves(1, 20, there)
    assert not HAND.model_copy(update={"samples": [10, 15]}).serves(2, 20, there)


def test_curves_count_where_both_records_have_them(tmp_path):
    plain, seen = with_curve().model_copy(update={"curve": None}), with_curve()
    other = with_curve(curve=make_curve(dip=31))
    assert not [*diff.differences(plain, seen)] and not [*diff.differences(seen, seen)]
    assert "of 42 points, by up to 1.00 points" in next(diff.differences(seen, other))
    for name, record in (("plain", plain), ("seen", seen), ("other", other)):
        Store(tmp_path / name).write(record)
    for order in (("plain", "seen"), ("seen", "plain")):
        assert merge_runs([tmp_path / name for name in order]).records == (seen,)
    with pytest.raises(StoreError, match="curve: "):
        merge_runs([tmp_path / "seen", tmp_path / "other"])


def test_of_a_metric_where_lower_is_better_the_highest_value_is_the_worst():
    curve = make_lm_curve(rise=0.5)
    gap, other = metrics.gaps(curve)
    assert gap == other and (gap.before, gap.worst, gap.end, gap.worst_step, gap.length) == (0.4, 0.9, 0.4, 1, 15)
    assert (gap.depth, gap.recovery) == pytest.approx((0.5, 0.5))
    assert metrics.min_acc(curve) == pytest.approx(0.9) and metrics.wc_acc(curve) == pytest.approx(0.4 / 3 + 0.6)
    assert 0.4 < metrics.anytime(curve) < 0.9
    exact = curve.by_metric("exact")
    assert metrics.min_acc(exact) == pytest.approx(1 - 0.9 / 5) and metrics.mean_depth(exact) == pytest.approx(0.1)


def test_a_small_gap_has_no_length_in_the_unit_of_the_metric():
    assert metrics.mean_length(make_lm_curve(rise=0.04)) is None and metrics.gaps(make_lm_curve(rise=0.04))[0].is_small
    assert metrics.mean_length(make_lm_curve(rise=0.06)) == 15
    assert metrics.near(2.0, METRICS["rmse"]) == pytest.approx(0.04)
    assert metrics.near(0.5, METRICS["r2"]) == metrics.near(0.5, METRICS["accuracy"]) == 0.02


def test_curves_of_values_come_back_from_json_and_older_ones_have_no_new_fields():
    curve = make_lm_curve()
    text = curve.model_dump_json()
    assert Curve.model_validate_json(text) == curve and '"0.4 0.9 0.9' in text
    assert {"metric", "values", "values_after"}.isdisjoint(make_curve().model_dump(mode="json"))
    with pytest.raises(ValueError, match="not one number for each point"):
        Curve.model_validate(curve.model_dump() | {"steps": [[0], [0], [0]]})


def test_a_record_by_another_metric_has_the_curve_of_that_metric():
    record = make_lm_record().model_copy(update={"curve": make_lm_curve()})
    selected, = select_metric([record], "exact")
    assert selected.curve.about.name == "exact" and select_metric([selected], "nll")[0].curve == record.curve
