"""The figure of accuracy over steps, and the words and the table beside it."""

import json
import re
from itertools import pairwise

import pytest
from helpers.curves import make_curve, make_lm_curve, with_curve
from helpers.figures import figure
from helpers.records import make_lm_record, make_nll_matrix, make_record

from clbench.report import build
from clbench.report.figures.steps import MOST, mean_curves, thin_steps
from clbench.report.formats.html import render as page
from clbench.report.formats.markdown import render
from clbench.report.formatting import NONE


def study(**made):
    return [record for seed in (0, 1) for record in (
        with_curve("er", seed, make_curve(dip=30 + 2 * seed), **made),
        with_curve("naive", seed, make_curve(dip=80, back=False), **made))]


def test_lines_are_means_over_seeds_and_break_where_old_tasks_change():
    drawn, _ = figure(build(study()), "steps")
    er, naive = drawn.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in er.lines if line.get_label().startswith("task")}
    assert lines["task 1"][11:13] == [[15, 0.9], [20, 0.9]]
    assert lines["task 1"][14:16] == [[20, 0.9], [21, pytest.approx(0.59)]], "the mean of 0.60 and 0.58"
    assert lines["task 3"][0] == [40, 0.9]
    dark = [line.get_xydata().tolist() for line in naive.lines if line.get_linewidth() == 1.6 and len(line.get_xdata())]
    assert [(part[0][0], part[-1][0]) for part in dark] == [(20, 40), (40, 60)]
    assert [sorted({*line.get_xdata()}) for line in er.lines if line.get_linestyle() == "--"][:2] == [[20], [40]]
    assert drawn.legends[0].get_texts()[-1].get_text() == "mean over old tasks"


def test_the_page_has_all_methods_and_does_not_say_that_some_are_left_out():
    records = [with_curve("er", 0, make_curve(dip=10 + k), label=f"er-{k}", options={"capacity": k + 1})
               for k in range(22)]
    report = build(records)
    assert not any("22 of 22 methods" in data.caption for data in report.sections[0].figures)
    text = page(report)
    curves = json.loads(re.search(r'data-curves="([^"]*)"', text)[1].replace("&#34;", '"').replace("&quot;", '"'))
    assert len(curves["curves"]) == 22
    figcaption = text[text.index("data-curves="):]
    assert "report.html has all methods" not in figcaption[:figcaption.index("</figure>")]


def test_the_label_of_the_last_step_is_inside_the_figure():
    records = [with_curve(name, 0, make_curve(steps=100_015, every=10_000)) for name in ("er", "naive")]
    drawn, _ = figure(build(records), "steps")
    labels = [label for axes in drawn.axes for label in axes.get_xticklabels()
              if label.get_position()[0] <= axes.get_xlim()[1]]
    assert max(float(label.get_text()) for label in labels) == 300_000
    assert max(label.get_window_extent().x1 for label in labels) <= drawn.bbox.x1


def test_seeds_whose_tasks_differ_in_length_share_points_and_ends():
    records = [with_curve("er", 0, make_curve(steps=20)), with_curve("er", 1, make_curve(steps=30))]
    mean_curve, = mean_curves(build(records).sections[0].results)
    assert mean_curve.ends == (30, 60, 90)
    assert [x for x, _ in mean_curve.tasks[0]][:14] == [*range(11), 15, 20, 30]


def test_a_method_that_is_trained_by_steps_in_its_first_task_only_is_shown():
    curve = make_curve(tasks=2)
    curve = curve.model_copy(update={"steps": [curve.steps[0], [0]], "right": [curve.right[0], [[90], [40]]]})
    report = build([with_curve("ranpac", s, curve, tasks=2) for s in (0, 1)])
    mean_curve, = mean_curves(report.sections[0].results)
    assert mean_curve.ends == (20, 20) and len(mean_curve.tasks) == 2
    drawn, _ = figure(report, "steps")
    assert len(drawn.axes) == 1


def test_many_points_are_thinned_behind_the_first_ones():
    steps = [*range(51), *range(60, 100_000, 10)]
    kept = thin_steps(steps)
    assert kept[:51] == steps[:51] and len(kept) <= 51 + MOST + 1
    assert len({b - a for a, b in pairwise(kept[51:])}) == 1


def test_table_words_and_page():
    report = build(study())
    text = render(report)
    section, = report.sections
    table, = [t for t in section.details if t.title == "Accuracy while tasks are learned"]
    assert [cell.text for cell in table.cells("gap length (steps)")] == ["15.0 ± 0.00", NONE]
    assert table.cells("gap depth")[1].mean == pytest.approx(0.6), "0.9 to 0.1, then the mean of 0.1 and 0.9 to 0.1"
    assert ("er falls by 31.0 points, rises again by 31.0 and recovers after 15 steps (4 of 4 gaps recover); "
            "Fine-tuning falls by 60.0 points and does not recover") in text.replace("\\", "")
    written = page(report)
    data = json.loads(re.search(r'data-curves="([^"]*)"', written)[1].replace("&#34;", '"'))
    assert [curve["row"] for curve in data["curves"]] == [0, 1] and data["curves"][0]["ends"] == [20, 40, 60]
    assert re.findall(r"<span>(all steps|boundary \d to \d)</span>", written) == ["all steps", "boundary 1 to 2",
                                                                                "boundary 2 to 3"]


def test_a_fall_that_is_too_small_to_recover_from_is_not_said_to_stay():
    text = render(build([with_curve("er", s, make_curve(dip=1)) for s in (0, 1)]))
    assert "er falls by 1.0 points, which is too little to measure a recovery" in text.replace("\\", "")


def test_nothing_appears_where_there_is_no_curve():
    plain = build([make_record(m, s) for m in ("er", "naive") for s in (0, 1)])
    assert "steps" not in {f.kind for f in plain.sections[0].figures}
    assert not any("learned" in t.title for t in plain.sections[0].details)
    assert 'data-curves="' not in page(plain)
    flat = make_curve().model_copy(update={"steps": [[0]] * 3, "right": [[[90]] * (t + 1) for t in range(3)]})
    stepless = build([with_curve("slda", s, flat) for s in (0, 1)])
    assert "steps" not in {f.kind for f in stepless.sections[0].figures}
    assert "stability gap" not in " ".join(stepless.sections[0].notes)


def test_every_format_takes_it():
    from clbench.report.formats import csv, json, latex

    report = build(study())
    section, = json.data(report)["sections"]
    assert section["results"][0]["curves"][0]["steps"][0] == "0 1 2 3 4 5 6 7 8 9 10 15 20"
    assert "curves" not in json.data(build([make_record("er", 0)]))["sections"][0]["results"][0]
    assert "gap depth" in csv.render(report) and "gap depth" in latex.render(report)


@pytest.mark.parametrize(("metric", "title", "depth", "words", "axis", "unit"), [
    (None, "max-NLL", 0.5, "lora rises by 0.500 nats, falls again by 0.500 and recovers after 15 steps",
     "NLL (nats)", "nats"),
    ("exact", "min-exact", 0.1, "lora falls by 10.0 points, rises again by 10.0 and recovers after 15 steps",
     "exact match (%)", "percent")])
def test_curves_of_language_models_are_about_their_metric(metric, title, depth, words, axis, unit):
    records = [make_lm_record(name, seed, make_nll_matrix(0.4, 0.5)).model_copy(update={"curve": make_lm_curve(rise)})
               for name, rise in (("lora", 0.5), ("naive", 2.0)) for seed in (0, 1)]
    report = build(records, ids=True, metric=metric)
    section, = report.sections
    table, = (t for t in section.details if t.title.endswith("while tasks are learned"))
    assert table.title.startswith("NLL" if metric is None else "Exact match")
    means = {column.title: table.cells(column.title)[0].mean for column in table.columns[1:]}
    assert means[title] == pytest.approx(0.9 if metric is None else 1 - 0.9 / 5)
    assert means["gap depth"] == pytest.approx(depth) and means["gap length (steps)"] == 15
    text = render(report)
    assert words in text and f"how the mean {section.metric.label} on old tasks changes" in text
    drawn, _ = figure(report, "steps")
    low, high = drawn.axes[1].get_ylim()
    assert drawn.axes[0].get_ylabel() == axis
    assert (low < 0.4 and 2.4 < high < 3) if metric is None else (low < 1 - 2.4 / 5 and high == 1.02)
    assert f"&#34;unit&#34;:&#34;{unit}&#34;" in page(report)
