"""Where the errors come from, as a report shows it: parts that sum, sentences, the figure, tables of confusions."""

from fractions import Fraction

import pytest
from helpers.figures import figure
from helpers.records import make_record, with_errors, with_names

from clbench.report import build
from clbench.report.analysis.errors import (
    BIAS,
    CONFUSED,
    MISGUIDED,
    OUTDONE,
    TITLE,
    UNGUIDED,
    WITHIN,
    Means,
    parts_of,
    sentence,
)
from clbench.report.formats import csv, html, json, latex, markdown
from clbench.results.metrics import acc
from clbench.results.records import ErrorCounts

INFERS = {"right": [190, 30, 80], "given": [195, 190, 180], "misguided": [5, 160, 101], "outdone": [2, 1, 0],
          "only_unguided": [2, 1, 1]}
PROBE = {"learned": [198, 196, 194], "end": [196, 190, 194], "together": [180, 160, 170]}


def study():
    """Records of two seeds: one method that does not infer the task, one that does, one without any counts."""
    return [record for seed in (0, 1) for record in (
        with_errors(made("ewc", seed), probe=PROBE), with_errors(made("lora", seed), INFERS, {"own": True, **{
            name: counts for name, counts in PROBE.items() if name != "together"}}), made("er", seed))]


def made(method, seed):
    return with_names(method=method, seed=seed, scenario="class")


@pytest.mark.parametrize("parts", [None, INFERS, {"right": [10, 10, 199], "given": [12, 11, 200],
                                                  "corrected": [8, 9, 200]}])
def test_parts_sum_to_what_acc_lacks(parts):
    record = with_errors(made("ewc", 0), parts)
    counts = record.errors[0]
    found = parts_of(counts)
    assert sum(found.values()) == pytest.approx(1 - acc(record.R), abs=1e-12)
    exact = [Fraction(c, 200) for c in counts.right]
    assert sum(map(Fraction.limit_denominator, map(Fraction, found.values()))) == 1 - sum(exact) / 3
    if parts and "corrected" in parts and parts["right"][0] == 10:
        assert found[BIAS] < 0


def test_the_table_has_the_means_and_dashes_where_nothing_is_known():
    section, = build(study()).sections
    table = next(t for t in section.details if t.title == TITLE)
    assert [row.label for row in table.rows] == [row.label for row in section.comparison.rows]
    titles = [c.title for c in table.columns]
    assert titles == ["seeds", "points lost", WITHIN, BIAS, CONFUSED, MISGUIDED, OUTDONE, UNGUIDED, "probe",
                      "probe in its task", "drift"]
    found = {row.label: {t: c.mean for t, c in zip(titles, row.cells, strict=True)} for row in table.rows}
    ewc, lora, er = (found[name] for name in ("EWC", "lora", "er"))
    assert {c.title: c.name for c in table.columns[2:5]} == {
        WITHIN: "within-task error", BIAS: "task-recency bias", CONFUSED: "inter-task confusion"}
    assert ewc[WITHIN] == pytest.approx(32 / 600)
    assert ewc[BIAS] == pytest.approx(120 / 600)
    assert ewc[CONFUSED] == pytest.approx(198 / 600)
    assert ewc["drift"] == pytest.approx(8 / 600)
    assert ewc["probe"] == pytest.approx(510 / 600)
    assert lora[MISGUIDED] == pytest.approx(266 / 600)
    assert lora[UNGUIDED] == pytest.approx(-4 / 600)
    assert (ewc[MISGUIDED], lora[BIAS], lora["probe"]) == (None, None, None)
    assert set(er.values()) == {None}


def test_nothing_is_said_where_nothing_is_known_and_rare_parts_are_left_out():
    report = build([make_record(m, s, scenario="class") for m in ("ewc", "er") for s in (0, 1)])
    section, = report.sections
    assert (section.anatomy, section.confusions) == ((), ())
    for text in (markdown.render(report), html.render(report), csv.render(report)):
        assert "Anatomy" not in text
        assert "<h3>Where the errors come from" not in text
    assert "errors come from" not in markdown.render(report)
    assert "anatomy" not in json.data(report)["sections"][0]
    plain, = build([with_errors(made("ewc", s)) for s in (0, 1)]).sections
    table = next(t for t in plain.details if t.title == TITLE)
    assert [c.title for c in table.columns][1:] == ["points lost", WITHIN, BIAS, CONFUSED, MISGUIDED][:4]


def test_a_probe_alone_has_its_columns_and_no_bar():
    records = [with_errors(make_record("er", s, scenario="domain"), probe=PROBE).model_copy(update={"errors": []})
               for s in (0, 1)]
    section, = build(records).sections
    table = next(t for t in section.details if t.title == TITLE)
    assert [c.title for c in table.columns] == ["seeds", "probe", "probe in its task", "drift"]
    assert not [f for f in section.figures if f.kind == "errors"]


@pytest.mark.parametrize(("parts", "lost", "probes", "words"), [
    ({WITHIN: 0.07, BIAS: 0.52, CONFUSED: 0.19}, 0.78, {},
     "loses 78 points, 71 of them by confusing classes of different tasks (52 by task-recency bias). Try to align the "
     "head, or replay"),
    ({WITHIN: 0.02, BIAS: -0.01, CONFUSED: 0.39}, 0.40, {"probe": 0.95},
     "loses 40 points, 39 of them by confusing classes of different tasks (none by task-recency bias). A linear probe "
     "on its features loses only 5 points. Try to refit the head, or replay"),
    ({WITHIN: 0.02, BIAS: 0.1, CONFUSED: 0.28}, 0.40, {"probe": 0.65},
     "A linear probe is hardly better, so the features must separate tasks better"),
    ({WITHIN: 0.02, BIAS: 0.1, CONFUSED: 0.28}, 0.40, {},
     "loses 40 points, 38 of them by confusing classes of different tasks (10 by task-recency bias). Try replay, or "
     "--probe to check whether the features separate tasks"),
    ({WITHIN: 0.02, BIAS: 0.0, CONFUSED: 0.38}, 0.40, {}, "(none by task-recency bias). Try replay, or --probe"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.95, "drift": 0.0},
     "loses 40 points, 30 of them even if the task is given. The features still separate its classes: a linear probe "
     "within the task has 25 points more. Try to refit the head"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.72, "drift": 0.25},
     "Representation drift costs a linear probe 25 points. Try to protect the features"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.72, "drift": 0.0}, "with more steps"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {}, "--probe shows which of them helps"),
    ({WITHIN: 0.02, MISGUIDED: 0.45, OUTDONE: 0.0, UNGUIDED: 0.0}, 0.47, {},
     "loses 47 points, 45 of them by inferring the wrong task. Try another way to infer the task"),
    ({WITHIN: 0.02, MISGUIDED: 0.05, OUTDONE: 0.4, UNGUIDED: 0.0}, 0.47, {},
     "40 of them to outputs of other tasks although the task was inferred correctly"),
    ({WITHIN: 0.005, BIAS: 0.0, CONFUSED: 0.038}, 0.043, {}, "loses 4.3 points, 3.8 of them by confusing classes"),
])
def test_the_sentence(parts, lost, probes, words):
    known = {"probe": None, "probe_within": None, "drift": None, **probes}
    assert words in sentence(Means(parts, lost, **known))


def test_a_method_without_errors_has_no_sentence():
    perfect = {"right": [200] * 3, "given": [200] * 3, "corrected": [200] * 3}
    section, = build([with_errors(made("ewc", s), perfect) for s in (0, 1)]).sections
    assert not section.anatomy


def test_a_method_that_replays_is_advised_to_replay_more():
    means = Means({WITHIN: 0.02, BIAS: 0.1, CONFUSED: 0.28}, 0.40, None, None, None, replays=True)
    assert "Try more replay, or --probe" in sentence(means)


def test_confusions_have_the_names_of_classes_and_rows_the_parts_after_each_task():
    records = study()
    rows = [r.errors[0].model_copy(update={"learned": k, **{
        name: getattr(r.errors[0], name)[:k] for name in ("samples", "right", "given", "corrected")}})
        for r in records[:1] for k in (1, 2)]
    records = [records[0].model_copy(update={"errors": [*rows, *records[0].errors]}), *records[1:3]]
    section, = build(records).sections
    second, first, third = section.confusions  # by accuracy: lora, ewc
    assert first.title.startswith("EWC: task of the winning output")
    assert second.title.startswith("lora: inferred task")
    assert [c.title for c in first.columns] == ["task 1 (cat, dog)", "task 2 (hen, cow)", "task 3 (<b>ox</b>, pig)"]
    assert [c.mean for c in first.rows[2].cells] == [0.05, 0.0, 0.95]
    assert [row.label for row in third.rows] == ["after task 1", "after task 2", "after task 3"]
    assert third.rows[0].cells[0].mean == pytest.approx(0.9)
    assert [c.name for c in third.columns] == [
        "points lost", "within-task error", "task-recency bias", "inter-task confusion"]


def test_every_format_has_it_and_names_stay_text():
    report = build(study())
    for text in (markdown.render(report), html.render(report)):
        assert "task-recency bias" in text
    assert r"bias of\\the head" in latex.render(report)
    page = html.render(report)
    assert "Which tasks are confused with which" in page
    assert "<b>ox</b>" not in page
    with_ids = build(study(), ids=True)
    assert f"ewc,ewc,false,0,done,{BIAS},fraction,,,0." in csv.render(with_ids)
    assert json.data(with_ids)["sections"][0]["anatomy"][1].startswith("ewc loses ")


def test_the_bars_of_the_figure_are_the_parts():
    drawn, _ = figure(build(study()), "errors")
    axes = drawn.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["lora", "EWC"]
    assert "task-recency bias" in [t.get_text() for t in axes.get_legend().texts]
    spans = {}
    for bar in axes.patches:
        spans.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append((bar.get_x(), bar.get_width()))
    right = [sum(w for _, w in bars if w > 0) for bars in spans.values()]
    left = [sum(w for _, w in bars if w < 0) for bars in spans.values()]
    assert right == pytest.approx([(35 + 266 + 3) / 600, 350 / 600])
    assert left == pytest.approx([-4 / 600, 0])
    for bars in spans.values():  # beside each other, from 0 on
        assert min(x for x, w in bars if w > 0) == 0
        edges = sorted((x, x + w) for x, w in bars if w > 0)
        assert [a for _, a in edges[:-1]] == pytest.approx([b for b, _ in edges[1:]])
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "D"] == pytest.approx([90 / 600])


def test_the_legend_of_the_figure_fits_beside_long_names():
    drawn, _ = figure(build([record.model_copy(update={"label": record.label + " with a very long name"})
                             for record in study()], ids=True), "errors")
    legend = drawn.axes[0].get_legend()
    assert [text.get_text() for text in legend.texts] == [
        "within-task error", "task-recency bias", "inter-task confusion", "wrong task inferred",
        "another task's output", "right only without task ID", "linear probe"]
    box = legend.get_window_extent()
    assert box.x0 > 0 and box.x1 < drawn.bbox.x1 and box.y0 > drawn.axes[0].bbox.y1


def test_counts_of_a_shorter_row_are_no_result():
    record = with_errors(made("ewc", 0))
    first = record.errors[0].model_copy(update={"learned": 2})
    assert isinstance(first, ErrorCounts)
    section, = build([record.model_copy(update={"errors": [first]})]).sections
    assert TITLE not in [t.title for t in section.details]


def test_the_figure_explains_only_the_marks_that_it_has():
    def caption(records):
        section, = build(records).sections
        return next(f.caption for f in section.figures if f.kind == "errors")

    with_all = caption(study())
    assert "left of 0" in with_all and "Task-recency bias" in with_all and "Diamond" in with_all
    assert caption([with_errors(made("lora", s), {**INFERS, "only_unguided": [0, 0, 0]}) for s in (0, 1)]) == (
        "Points lost after the last task, mean over seeds, divided into parts that sum to the error.")


def test_the_comparison_has_the_accuracy_with_task_ids_next_to_that_without():
    records = [with_errors(make_record("er", 0, scenario="class")), make_record("ewc", 0, scenario="class")]
    table = build(records).sections[0].comparison
    cells = {row.label: row.cells[table.index("ACC with task IDs")] for row in table.rows}
    assert table.index("ACC with task IDs") == table.index("ACC") + 1
    assert cells["er"].mean == (180 + 190 + 198) / 600
    assert cells["EWC"].mean is None  # its record has no counts
