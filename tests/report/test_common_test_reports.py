"""Reports of records whose tasks share one test set."""

import pytest
from helpers.records import make_record

from clbench.report import build
from clbench.report.analysis.method_records import test_samples as count_test_samples
from clbench.report.analysis.method_records import test_set_interval as interval_of_tests
from clbench.report.formats.html import render as render_html
from clbench.report.formats.markdown import render
from clbench.report.formatting import NONE
from clbench.results import tracking
from clbench.results.items import wilson_interval

ROWS = (0.1, 0.3, 0.5, 0.6)
WITHOUT_VALUE = ("forgetting", "BWT")
SENTENCE = ("All tasks share one test set. Forgetting, BWT, FWT, learning accuracy and intransigence need one for each "
            f"task, so they have no value ({NONE}).")


def with_common_test(method, seed, common=True):
    """Return a record of three tasks with the accuracy of `ROWS` on one test set of 200 samples."""
    record = make_record(method, seed, [[accuracy + 0.01 * seed] * 3 for accuracy in ROWS], scenario="class",
                         test_samples=200)
    return record.model_copy(update={"stream": record.stream.model_copy(update={"common_test": common})})


def section(common=True):
    built, = build([with_common_test(method, seed, common) for method in ("naive", "lora", "joint")
                    for seed in (0, 1)]).sections
    return built


def test_metrics_that_need_a_test_set_for_each_task_are_dashes():
    found = section()
    for title in WITHOUT_VALUE:
        assert {cell.text for cell in found.comparison.cells(title)} == {NONE}
    more, = (table for table in found.details if table.title == "More metrics")
    for title in ("learning accuracy", "FWT"):
        assert {cell.text for cell in more.cells(title)} == {NONE}
    assert "intransigence" not in [column.title for column in more.columns]
    assert {NONE} != {cell.text for cell in section(common=False).comparison.cells("forgetting")}


def test_accuracies_keep_their_meaning():
    found = section()
    assert found.comparison.cells("ACC")[0].mean == pytest.approx(0.605)
    more, = (table for table in found.details if table.title == "More metrics")
    assert more.cells("AIA")[0].mean == pytest.approx((0.3 + 0.5 + 0.6) / 3 + 0.005)
    assert "ACC-pooled" not in [column.title for column in more.columns]


def test_one_sentence_says_why():
    assert section().notes.count(SENTENCE) == 1 and SENTENCE not in section(common=False).notes
    pairs = dict(section().setting)
    assert pairs["tasks"] == "3 tasks with 2 classes, 800 training samples each, and 200 test samples for all"
    assert dict(section(common=False).setting)["tasks"].endswith("800 training and 200 test samples each")
    assert dict(section().settings)["test samples for all tasks"] == "200"


def test_samples_that_all_tasks_share_count_once():
    records = [with_common_test("lora", 0)]
    assert count_test_samples(records) == 200
    assert interval_of_tests(records) == pytest.approx(wilson_interval(0.6, 200))
    assert count_test_samples([with_common_test("lora", 0, common=False)]) == 600


def test_figures_and_pages_show_nothing_by_task():
    assert [figure.kind for figure in section().figures if figure.kind in ("curves", "forgetting", "heatmaps")] == [
        "curves"]
    report = build([with_common_test(method, 0) for method in ("naive", "lora")])
    assert SENTENCE in render(report)
    page = render_html(report)
    assert "Forgetting of each task" not in page and "the task tested" not in page
    whole = render_html(build([with_common_test(method, 0, common=False) for method in ("naive", "lora")]))
    assert "Forgetting of each task" in whole and "the task tested" in whole


def test_experiment_loggers_get_no_forgetting():
    assert tracking.final(with_common_test("lora", 0)) == {"ACC": pytest.approx(0.6)}
