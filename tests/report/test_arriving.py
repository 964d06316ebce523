import pytest
from helpers.records import make_record

from clbench.experiment.arrival import Arrival
from clbench.report.figures.arrival import TITLE, arrivals, shares
from clbench.report.figures.draw import draw_report
from clbench.report.formats import csv, html, markdown
from clbench.report.tables import build
from clbench.results.records import Record


def blurred(method="er", seed=0, counts=((90, 90, 10, 10), (10, 10, 90, 90)), names=(), scenario="class", **arrival):
    record = make_record(method, seed, tasks=2, scenario=scenario)
    trial = record.trial.model_copy(update={"arrival": Arrival(**(arrival or {"blur": 0.1}))})
    stream = record.stream.model_copy(update={"arrivals": [list(row) for row in counts], "class_names": list(names)})
    return record.model_copy(update={"trial": trial, "key": trial.key, "stream": stream})


def cells(table):
    return {row.label: [cell.mean for cell in row.cells] for row in table.rows}


def test_counts_are_means_over_seeds_by_class():
    other = ((70, 90, 30, 10), (30, 10, 70, 90))
    table = arrivals([blurred(), blurred("naive"), blurred(seed=1, counts=other)])
    assert cells(table) == {"class 0": [80, 20], "class 1": [90, 10], "class 2": [20, 80], "class 3": [10, 90]}
    assert [c.title for c in table.columns] == ["during task 1", "during task 2"]
    assert shares(table)[0] == [0.8, 0.2]
    named = arrivals([blurred(names=[["cat", "dog"], ["owl", "<b>"]])])
    assert [row.label for row in named.rows] == ["cat", "dog", "owl", "<b>"]


def test_many_classes_and_shared_outputs_are_shown_by_task():
    assert cells(arrivals([blurred(counts=((150, 50), (50, 150)), scenario="domain")])) == {
        "task 1": [150, 50], "task 2": [50, 150]}
    wide = make_record("er", tasks=2, scenario="class")
    stream = wide.stream.model_copy(update={"classes": [list(range(15)), list(range(15, 30))],
                                            "arrivals": [[2] * 15 + [1] * 15, [1] * 15 + [2] * 15]})
    assert cells(arrivals([wide.model_copy(update={"stream": stream})])) == {"task 1": [30, 15], "task 2": [15, 30]}


def test_seeds_with_other_classes_in_a_task_are_shown_by_task():
    first, second = blurred(), blurred(seed=1, counts=((10, 90, 90, 10), (90, 10, 10, 90)))
    second = second.model_copy(update={"stream": second.stream.model_copy(update={"classes": [[1, 2], [0, 3]]})})
    assert cells(arrivals([first, second])) == {"task 1": [180, 20], "task 2": [20, 180]}


def test_a_report_says_how_samples_arrived_and_shows_it():
    report = build([blurred(), blurred("naive"), make_record("er", tasks=2, scenario="class")])
    section, plain = report.sections
    assert section.title == "split-mnist-5k, Class-IL, mlp, blur 0.1"
    assert ("arrival of samples", "blur 0.1") in section.setting
    assert ("arrival of training samples", "blur 0.1 (docs/task-free-streams.md)") in section.settings
    figure = section.figures[-1]
    assert figure.kind == "arrival" and figure.brief and "10%" in figure.alt
    drawn = draw_report(report)
    assert drawn[f"{figure.name}.svg"].startswith(b"<?xml") and drawn == draw_report(report)
    text, page = markdown.render(report), html.render(report)
    assert text.count(f"### {TITLE}") == 1 and text.count(f"**{TITLE}**") == 1 and f"figures/{figure.name}.svg" in text
    assert page.count('data-kind="arrival"') == 1 and "during task 2" in page
    assert plain.arrivals is None and not any(f.kind == "arrival" for f in plain.figures)


def test_a_method_that_failed_before_its_stream_was_made_does_not_hide_the_arrival():
    failed = make_record("ewc", tasks=2, scenario="class", status="failed").model_copy(update={"stream": None, "R": []})
    assert cells(arrivals([blurred(), failed])) == cells(arrivals([blurred()]))


def test_the_csv_file_leaves_out_the_table_of_arrivals_which_has_fewer_rows_than_methods():
    records = [blurred(m, counts=((100, 20), (20, 100)), scenario="domain") for m in ("er", "ewc", "naive")]
    text = csv.render(build(records))
    assert text.count(",ACC,") == 3 and "during task" not in text


def test_hidden_boundaries_are_in_title_and_recipe():
    section, = build([blurred(blur=0.0, boundaries="hidden", counts=())]).sections
    assert section.title.endswith(", boundaries hidden")
    assert dict(section.setting)["budget"] == "one pass over the stream, batch size 128"
    assert section.arrivals is None and not any(f.kind == "arrival" for f in section.figures)


def test_records_without_it_are_written_as_they_were():
    plain = make_record("er", tasks=2)
    assert "arriv" not in plain.model_dump_json(by_alias=True)
    record = blurred()
    assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record
    with pytest.raises(ValueError, match="key"):
        Record.model_validate({**record.model_dump(by_alias=True), "key": plain.key})
