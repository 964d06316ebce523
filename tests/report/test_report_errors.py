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
    ewc, lora, er = (found[name] for name in ("ewc", "lora", "er"))
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
     "71 of 78 points lost are confusion of tasks, 52 of them bias of the head: align the head, or replay"),
    ({WITHIN: 0.02, BIAS: -0.01, CONFUSED: 0.39}, 0.40, {"probe": 0.95}, "38 of 40 points lost are confusion of tasks, "
     "none of them bias of the head: a linear probe on its features loses only 5, so refit the head, or replay"),
    ({WITHIN: 0.02, BIAS: 0.1, CONFUSED: 0.28}, 0.40, {"probe": 0.65}, "the features must tell tasks apart better"),
    ({WITHIN: 0.02, BIAS: 0.1, CONFUSED: 0.28}, 0.40, {}, "38 of 40 points lost are confusion of tasks, 10 of them "
     "bias of the head: constants for the tasks' outputs would mend those 10 and leave 28; replay, or --probe"),
    ({WITHIN: 0.02, BIAS: 0.0, CONFUSED: 0.38}, 0.40, {}, "none of them bias of the head: no constants for the tasks' "
     "outputs mend them; replay, or --probe"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.95, "drift": 0.0},
     "30 of 40 points lost are wrong even when the task is given: the features still hold it, a linear probe in the "
     "task gets 25 more"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.72, "drift": 0.25}, "the features have drifted"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {"probe_within": 0.72, "drift": 0.0}, "with more steps"),
    ({WITHIN: 0.3, BIAS: 0.1, CONFUSED: 0.0}, 0.40, {}, "--probe tells which"),
    ({WITHIN: 0.02, MISGUIDED: 0.45, OUTDONE: 0.0, UNGUIDED: 0.0}, 0.47, {},
     "45 of 47 points lost are tasks that were guessed wrong: infer the task better"),
    ({WITHIN: 0.02, MISGUIDED: 0.05, OUTDONE: 0.4, UNGUIDED: 0.0}, 0.47, {}, "although the task was guessed right"),
    ({WITHIN: 0.005, BIAS: 0.0, CONFUSED: 0.038}, 0.043, {}, "3.8 of 4.3 points lost"),
])
def test_the_sentence(parts, lost, probes, words):
    known = {"probe": None, "probe_within": None, "drift": None, **probes}
    assert words in sentence(Means(parts, lost, **known))


def test_confusions_have_the_names_of_classes_and_rows_the_parts_after_each_task():
    records = study()
    rows = [r.errors[0].model_copy(update={"learned": k, **{
        name: getattr(r.errors[0], name)[:k] for name in ("samples", "right", "given", "corrected")}})
        for r in records[:1] for k in (1, 2)]
    records = [records[0].model_copy(update={"errors": [*rows, *records[0].errors]}), *records[1:3]]
    section, = build(records).sections
    second, first, third = section.confusions  # by accuracy: lora, ewc
    assert first.title.startswith("ewc: task of the winning output")
    assert second.title.startswith("lora: task that was guessed")
    assert [c.title for c in first.columns] == ["task 1 (cat, dog)", "task 2 (hen, cow)", "task 3 (<b>ox</b>, pig)"]
    assert [c.mean for c in first.rows[2].cells] == [0.05, 0.0, 0.95]
    assert [row.label for row in third.rows] == ["after task 1", "after task 2", "after task 3"]
    assert third.rows[0].cells[0].mean == pytest.approx(0.9)


def test_every_format_has_it_and_names_stay_text():
    report = build(study())
    for text in (markdown.render(report), html.render(report)):
        assert BIAS in text
    assert r"bias of\\the head" in latex.render(report)
    page = html.render(report)
    assert "Which tasks are taken for which" in page
    assert "<b>ox</b>" not in page
    assert f"ewc,ewc,false,0,done,{BIAS},fraction,,,0." in csv.render(report)
    assert json.data(report)["sections"][0]["anatomy"][1].startswith("ewc: ")


def test_the_bars_of_the_figure_are_the_parts():
    drawn, _ = figure(build(study()), "errors")
    axes = drawn.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["lora", "ewc"]
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
    assert "left of 0" in with_all and "Bias of the head" in with_all and "Diamond" in with_all
    assert caption([with_errors(made("lora", s), {**INFERS, "only_unguided": [0, 0, 0]}) for s in (0, 1)]) == (
        "Points lost after the last task, mean over seeds, split into parts that sum to the error.")
