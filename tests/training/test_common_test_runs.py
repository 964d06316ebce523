"""Training on streams whose tasks share one test set: what is evaluated, and what the record of a trial says."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.tiny_benchmarks import one_test

import clbench
from clbench.accounting.estimator import plain_work
from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.avalanche.build import as_raw, import_avalanche
from clbench.data.stream import to_stream
from clbench.execution.continuing import continue_trial
from clbench.execution.embedding import prepare
from clbench.execution.time_left import read_times
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Resolved
from clbench.persistence.snapshot import first_logits
from clbench.results.diff import merge_runs
from clbench.results.records import Record
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.tiny import bench
from clbench.training.evaluation import evaluate
from clbench.training.prediction_cache import PredictionCache

ONE_TEST = "helpers.tiny_benchmarks:one_test"
SIZES = {"model": "mlp:width=12", "iterations": 6, "batch_size": 12, "seeds": 1, "workers": 0}


@pytest.fixture(scope="module")
def stream():
    """Three tasks of two classes, and a test set with label + 1 samples of each label: 21 in all."""
    import_avalanche()
    return to_stream(as_raw(one_test(), "a test"), "class", "b")


class HighestFirst(Strategy):
    """Prefers classes with high numbers, and counts the samples that it predicts."""

    predicted = 0

    def predict(self, x, task=None):
        assert task is None
        self.predicted += len(x)
        return Prediction(torch.arange(6.0).expand(len(x), 6), torch.zeros(len(x), dtype=torch.int64))


def test_each_row_is_one_evaluation_among_the_classes_seen_so_far(stream):
    b = bench(StrategyInfo("x", HighestFirst, ""), {}, "class", stream=stream)
    for learned, highest in enumerate((1, 1, 3, 5)):  # before the first task, its classes compete
        row = evaluate(b.strategy, stream, "class", learned)
        assert row.accuracy == [pytest.approx((highest + 1) / 21)] * 3  # samples of classes to come count as wrong
        assert row.task_inference is None  # the task of a sample is not known, so no guess of it is right or wrong
        assert b.strategy.predicted == 21 * (learned + 1)


def test_a_model_per_task_answers_the_same_with_and_without_a_cache(stream):
    b = bench(discover().strategy("independent"), {}, "class", stream=stream)
    cache = PredictionCache(everything=True)
    for task in range(3):
        b.learn(task)
        plain = evaluate(b.strategy, stream, "class", task + 1)
        for _ in range(2):
            assert evaluate(b.strategy, stream, "class", task + 1, cache).accuracy == plain.accuracy
        assert plain.task_inference is None and len(set(plain.accuracy)) == 1


def test_what_is_read_of_tests_task_by_task_is_read_once(stream):
    b = bench(StrategyInfo("x", Strategy, ""), {}, "class", stream=stream)
    first = replace(stream, tasks=stream.tasks[:1])
    assert len(first_logits(b.strategy, stream)) == len(first_logits(b.strategy, first))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, {r.label: r for r in clbench.run(benchmark=ONE_TEST, methods="naive,er,ncm,independent,joint",
                                                    scenario="class", keep="state", out=folder, **SIZES)}


def test_a_record_has_a_square_matrix_of_one_value_by_row_and_says_why(run):
    for record in run[1].values():
        assert record.status == "done" and record.common_test and record.stream.common_test
        assert len(record.R) == 4 and all(len(row) == 3 and len(set(row)) == 1 for row in record.R)
        assert record.stream.test_samples == [21] * 3 and record.stream.tested == 21
        assert record.items.count == 21 and record.items.tasks == 1
        assert record.items.matrix().mean() == pytest.approx(record.R[-1][0])
        assert not record.errors and record.task_inference is None
    assert all(record.R[i][0] <= (1 + 2 + 3 + 4) / 21 for record in run[1].values() for i in (0, 1, 2))


def test_the_saved_model_gives_the_last_row_again(run):
    folder, records = run
    record = records["naive"]
    assert clbench.load_model(folder, "naive/0").evaluate(folder / "data") == pytest.approx(record.R[-1])


def test_the_time_of_a_trial_is_that_of_one_evaluation_by_row(run, stream):
    record = run[1]["naive"]
    work, _ = read_times(record)
    assert work.test_flops[1:] == [21 * flops for flops in record.costs.inference_flops]
    measured = type("Speed", (), {"train_flops": 1.0, "test_flops": 2.0})
    assert plain_work(measured, record.trial, stream).test_flops == [42] * 4


def test_runs_are_resumed_and_merged(run, tmp_path):
    folder, records = run
    again = clbench.run(benchmark=ONE_TEST, methods="naive,er", scenario="class", keep="state", out=folder, **SIZES)
    assert {r.label: r.provenance.started for r in again} == {
        label: records[label].provenance.started for label in ("naive", "er")}
    clbench.run(benchmark=ONE_TEST, methods="naive", scenario="class", out=tmp_path, **SIZES)
    merged = merge_runs([folder, tmp_path])
    assert len(merged.records) == len(records) and not merged.problems and not merged.notes


def test_the_fact_is_written_only_if_it_is_true(run):
    record = run[1]["naive"]
    written = json.loads(record.model_dump_json(by_alias=True))
    assert written["stream"]["common_test"] is True
    assert Record(**written).common_test
    plain = record.stream.model_copy(update={"common_test": False})
    assert "common_test" not in plain.model_dump() and plain.tested == 63


@pytest.mark.parametrize(("flag", "values"), [
    ("--probe", {"probe": True}), ("--anatomy", {"anatomy": "each"}), ("--evaluate-every", {"evaluate_every": 2})])
def test_what_needs_a_test_set_for_each_task_is_refused_but_not_for_validation(flag, values, tmp_path):
    asked = {"benchmark": ONE_TEST, "methods": "naive", "scenario": "class", "out": tmp_path, **SIZES, **values}
    with pytest.raises(SpecError, match=f"{flag} needs a test set for each task, and here all tasks share one") as it:
        clbench.run(**asked)
    assert ("in place of --online" in str(it.value)) == (flag == "--evaluate-every")
    record, = clbench.run(**asked, validation=0.2)
    assert record.status == "done" and not record.common_test and record.stream.test_samples == [6] * 3


def test_a_trial_does_not_continue_on_a_common_test_set(run):
    folder, records = run
    with pytest.raises(SpecError, match="has one test set for all tasks, and a trial that continues"):
        continue_trial(folder, records["naive"].key, Resolved(name=ONE_TEST), ExecutionSettings(), "cpu")


def test_a_trial_with_a_common_test_set_continues_without_results_on_old_tasks(run, tmp_path):
    folder, records = run
    more = continue_trial(folder, records["naive"].key, Resolved(name="helpers.tiny_benchmarks:pictures"),
                          ExecutionSettings(), "cpu", out=tmp_path, classes="new", recipe={"iterations": 2})
    assert more.status == "done" and more.earlier is None and not more.common_test
    assert any("what became of the old tasks is not known: all tasks of" in note for note in more.notes)


def test_features_are_not_written_without_a_test_set_for_each_task(run):
    trial = run[1]["naive"].trial.model_copy(update={"recipe": Recipe()})
    with pytest.raises(SpecError, match="and a file of features has those of each task"):
        prepare(trial, ExecutionSettings(), "cpu", discover())
