from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.curves import make_curve, with_curve
from helpers.figures import NASTY, figure
from helpers.records import make_matrix, make_number_record, make_record

from clbench.report import build
from clbench.report.figures import data

FIRST = [[0.5, 0.5, 0.5], [0.9, 0.4, 0.5], [0.8, 0.7, 0.5], [0.6, 0.7, 0.8]]
SECOND = [[0.5, 0.5, 0.5], [0.7, 0.4, 0.5], [0.8, 0.9, 0.5], [0.7, 0.6, 0.9]]
T_95 = 12.706204736432095  # two-sided, one degree of freedom


def study(label=None):
    records = [make_record("lora", 0, FIRST, label=label), make_record("lora", 1, SECOND, label=label)]
    return build([*records, *(make_record(name, s, make_matrix(3, 0.02 * s)) for name in ("naive", "er")
                              for s in (0, 1))])


def test_curves_are_means_over_seeds_of_the_mean_over_tasks_seen_with_their_interval():
    drawn, looks = figure(study(), "curves")
    axes, = drawn.axes
    line, = [line for line in axes.lines if line.get_marker() == looks["lora"].marker]
    assert line.get_color() == looks["lora"].color.lower()
    assert line.get_xydata() == pytest.approx(np.array([[1, 0.8], [2, 0.8], [3, 4.3 / 6]]))
    band = axes.collections[1].get_paths()[0].vertices  # er is better
    assert band[:, 1].min() == pytest.approx(max(0, 0.8 - T_95 * 0.1)) and band[:, 1].max() == 1.0
    assert axes.get_ylim()[1] > 1.0, "the widest band is shown whole"
    last = [y for x, y in band if x == 3]
    assert max(last) - min(last) == pytest.approx(min(1, 4.3 / 6 + T_95 / 60) - (4.3 / 6 - T_95 / 60))
    assert [t.get_text() for t in axes.texts] == ["er", "lora", "Fine-tuning"]


@pytest.mark.parametrize("kind", ["curves", "pareto", "steps"])
def test_an_axis_of_accuracy_has_no_ticks_above_100_percent(kind):
    curve = make_curve(dip=2)
    curve = curve.model_copy(update={"right": [[[100] * len(row) for row in rows] for rows in curve.right],
                                     "after": [[100] * len(row) for row in curve.after]})
    report = build([with_curve(name, seed, curve, R=[[0.5] * 3, *[[1.0] * 3] * 3], trainable=[cost] * 3)
                    for name, cost in (("er", 10), ("naive", 20)) for seed in (0, 1)])
    drawn, _ = figure(report, kind)
    ticks = [float(text) for label in drawn.axes[0].get_yticklabels() if (text := label.get_text())]
    assert ticks and max(ticks) <= 100


@pytest.mark.parametrize("kind", ["curves", "growth"])
@pytest.mark.parametrize("words", [1, 20])
def test_the_figure_has_room_for_the_labels_of_all_curves(kind, words):
    report = build([make_record(f"m{i}", label=f"{i} " + "word " * words, trainable=[1] * 3,
                                parameters={"base": 1_000_000 + i}) for i in range(20)])
    data, = (f for f in report.every_figure if f.kind == "curves")
    axes, = figure(replace(report, sections=(replace(report.sections[0], figures=(replace(data, kind=kind),)),)),
                   kind)[0].axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 20 and min(box.y0 for box in boxes) > 0
    assert max(box.y1 for box in boxes) < axes.get_window_extent().y1 + 6, "below the title"


def test_forgetting_stands_side_by_side_for_each_task():
    drawn, looks = figure(study(), "forgetting")
    axes, = drawn.axes
    er, lora, naive = [bars.lines[0] for bars in axes.containers]
    assert lora.get_ydata() == pytest.approx([(0.3 + 0.1) / 2, (0 + 0.3) / 2])
    places = np.array([bars.get_xdata() for bars in (er, lora, naive)], dtype=float)
    assert np.round(places).tolist() == [[1, 2]] * 3
    assert (np.diff(places, axis=0) > 0).all()
    segments = axes.containers[1].lines[2][0].get_segments()
    assert [s[1][1] - s[0][1] for s in segments] == pytest.approx([2 * T_95 * 0.1, 2 * T_95 * 0.15])
    assert naive.get_markerfacecolor() == "white" and lora.get_marker() == looks["lora"].marker
    assert [t.get_text() for t in drawn.legends[0].texts] == ["er", "lora", "Fine-tuning"]


def test_an_interval_need_not_have_the_mean_in_its_middle():
    accuracies = (0.5, 0.52, 0.53, 0.54, 0.55, 0.56, 0.6, 0.95)
    report = build([make_record("lora", s, [[0.1, 0.1], [a, 0.1], [a - 0.3, 0.8]]) for s, a in enumerate(accuracies)])
    (row,) = data.values_over_tasks(report.sections[0].results).rows
    first = row.cells[0]
    assert first.high - first.mean > 1.2 * (first.mean - first.low), "eight skewed seeds: BCa"
    axes, = figure(report, "curves")[0].axes
    band = axes.collections[0].get_paths()[0].vertices
    assert {y for x, y in band if x == 1} == {first.low, first.high}
    bars, = figure(report, "forgetting")[0].axes[0].containers
    (((_, low), (_, high)),) = bars.lines[2][0].get_segments()
    assert high - low == pytest.approx(0.0, abs=1e-9), "0.3 is forgotten with every seed"


def test_heat_maps_share_a_scale_and_hold_the_means():
    drawn, _ = figure(study(), "heatmaps")
    panels = [axes for axes in drawn.axes if axes.images]
    np.testing.assert_allclose(panels[1].images[0].get_array(), np.mean([FIRST[1:], SECOND[1:]], axis=0))
    assert {axes.images[0].get_clim() for axes in panels} == {(0.4, 1.0)}
    assert [t.get_text() for t in panels[1].texts] == ["80", "40", "50", "80", "80", "50", "65", "65", "85", "lora"]


@pytest.mark.parametrize(("tasks", "methods", "across", "written"), [
    (5, 6, 4, True), (10, 6, 3, True), (20, 6, 4, False), (60, 1, 1, False)])
def test_numbers_stand_in_cells_where_they_fit(tasks, methods, across, written):
    records = [make_record("lora", tasks=tasks, label=f"m{i}", options={"i": i}) for i in range(methods)]
    drawn, _ = figure(build(records), "heatmaps")
    panels = [axes for axes in drawn.axes if axes.images]
    assert len({round(axes.get_position().x0, 3) for axes in panels}) == across
    assert len(panels[0].texts) == (tasks * tasks if written else 0) + 1
    assert drawn.get_figwidth() < 7.3
    if written:
        cell = panels[0].get_window_extent().width / tasks
        assert all(text.get_window_extent().width < cell for text in panels[0].texts[:-1])


@pytest.mark.parametrize("kind", ["curves", "forgetting", "heatmaps"])
def test_missing_seeds_long_and_hostile_labels_are_shown_as_they_are(kind):
    records = [make_record("lora", s, options={"i": i}, label=label) for s in (0, 1) for i, label in
               enumerate([NASTY, "lora:" + "x" * 90])][:-1]
    drawn, _ = figure(build([*records, make_record("er", 0), make_record("er", 1, status="diverged")]), kind)
    holder = drawn.legends[0].texts if kind == "forgetting" else [t for axes in drawn.axes for t in axes.texts]
    shown = " ".join(t.get_text().replace("\n", " ") for t in holder)
    assert "a$b_c$" in shown and "er (1 seed)" in shown and "x" * 30 not in shown


def test_methods_of_one_strategy_are_shades_of_its_color():
    records = [make_record("lora", s, make_matrix(3, i / 50), options={"i": i}, label=f"lora:i={i}")
               for s in (0, 1) for i in range(3)]
    drawn, looks = figure(build(records), "curves")
    colors = [line.get_color() for line in drawn.axes[0].lines if line.get_marker() == looks["lora"].marker]
    assert colors[0] == looks["lora"].color.lower() and len(set(colors)) == 3
    assert [int(c[1:3], 16) for c in colors] == sorted(int(c[1:3], 16) for c in colors)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 2e4])
def test_figures_of_numbers_fit_at_each_scale(scale):
    report = build([make_number_record(m, s, [[scale * (3 + i + 0.1 * s + j + k / 5) for j in range(3)]
                                              for k in range(4)],
                                       trainable=[100 * (i + 1)] * 3)
                    for i, m in enumerate(("er", "ewc", "naive")) for s in (0, 1)])
    for kind in ("curves", "forgetting", "pareto", "heatmaps"):
        drawn, _ = figure(report, kind)
        box = drawn.get_tightbbox()  # in inches
        assert box.x0 >= 0 and box.x1 <= drawn.get_figwidth()
        low, high = drawn.axes[0].get_ylim()
        assert high - low < 15 * scale or kind == "heatmaps", "values fill the axis"
    panel = figure(report, "heatmaps")[0].axes[0]
    boxes = [text.get_window_extent() for text in panel.texts[:9]]  # row by row
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes) if a.y0 == b.y0)
