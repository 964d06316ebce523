"""Metrics of R whose direction follows from the metric of R, against numbers computed by hand."""

import math
import random
from statistics import fmean

import pytest
from helpers.records import make_lm_record, make_record

from clbench.core.errors import SpecError
from clbench.core.objective import ACCURACY, EXACT, NLL
from clbench.results import metrics
from clbench.results.diff import differences
from clbench.results.records import matrices, metric_of, select_metric
from clbench.results.tracking import final, steps

R = [[5.0, 6.0, 7.0], [1.0, 6.5, 7.5], [0.8, 2.0, 6.0], [3.0, 2.5, 1.5]]  # nll of three tasks
JOINT = [[5.0, 6.0, 7.0], [0.5, 6.0, 7.0], [0.5, 1.5, 7.0], [0.5, 0.5, 1.5]]


def test_nll_that_rises_is_forgetting():
    assert metrics.forgetting_per_task(R, NLL) == pytest.approx([3.0 - 0.8, 2.5 - 2.0])
    assert metrics.forgetting(R, NLL) == pytest.approx(1.35)
    assert metrics.bwt(R, NLL) == pytest.approx(((1.0 - 3.0) + (2.0 - 2.5)) / 2)


def test_nll_that_falls_is_transfer():
    assert metrics.fwt(R, NLL) == pytest.approx(((6.0 - 6.5) + (7.0 - 6.0)) / 2)
    better = [R[0], R[1], R[2], [0.5, 1.0, 1.5]]
    assert metrics.forgetting(better, NLL) == pytest.approx(((0.5 - 0.8) + (1.0 - 2.0)) / 2)
    assert metrics.bwt(better, NLL) == pytest.approx(((1.0 - 0.5) + (2.0 - 1.0)) / 2)


def test_means_have_no_direction():
    assert metrics.acc(R) == pytest.approx(7 / 3)
    assert metrics.learning_accuracy(R) == pytest.approx(1.5)
    assert metrics.aia(R) == pytest.approx((1.0 + 1.4 + 7 / 3) / 3)


def test_what_joint_training_learns_better_is_intransigence():
    assert metrics.intransigence_per_task(R, JOINT, NLL) == pytest.approx([0.5, 0.5, 0.0])
    assert metrics.intransigence(R, JOINT, NLL) == pytest.approx(1 / 3)


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_a_metric_that_falls_is_one_that_rises_with_the_sign_turned(tasks):
    draw = random.Random(tasks)
    for _ in range(20):
        matrix = [[draw.random() for _ in range(tasks)] for _ in range(tasks + 1)]
        turned = [[-value for value in row] for row in matrix]
        for of in (metrics.forgetting, metrics.bwt, metrics.fwt):
            assert of(turned, NLL) == of(matrix)
        assert metrics.intransigence(turned, turned, NLL) == metrics.intransigence(matrix, matrix) == 0


def test_values_of_accuracy_are_those_of_before_to_the_last_bit():
    draw = random.Random(0)
    for _ in range(50):
        matrix = [[round(draw.random(), 2) for _ in range(4)] for _ in range(5)]
        matrix[-1][0] = max(row[0] for row in matrix[1:4])  # a forgetting of 0, which must not become -0
        formula = [max(row[j] for row in matrix[j + 1:4]) - matrix[4][j] for j in range(3)]
        for made, old in zip(metrics.forgetting_per_task(matrix), formula, strict=True):
            assert made == old and math.copysign(1, made) == math.copysign(1, old)
        assert metrics.bwt(matrix) == fmean([matrix[4][j] - matrix[j + 1][j] for j in range(3)])
        assert metrics.fwt(matrix) == fmean([matrix[j][j] - matrix[0][j] for j in range(1, 4)])


def test_a_metric_says_what_is_better_and_what_is_possible():
    assert (NLL.gain(3.0, 1.0), ACCURACY.gain(0.3, 0.1)) == (2.0, pytest.approx(-0.2))
    assert (NLL.best([3.0, 1.0]), EXACT.best([0.3, 0.1])) == (1.0, 0.3)
    assert sorted([3.0, 1.0, 2.0], key=NLL.rank) == [1.0, 2.0, 3.0]
    assert sorted([0.3, 0.1, 0.2], key=EXACT.rank) == [0.3, 0.2, 0.1]
    assert [NLL.clip(-0.5), NLL.clip(9.0), ACCURACY.clip(1.2), ACCURACY.clip(-0.2)] == [0.0, 9.0, 1.0, 0.0]


def test_a_record_by_another_metric_keeps_both_matrices():
    record = make_lm_record()
    exact, = select_metric([record], "exact")
    assert (exact.R, exact.metric) == (record.scores["exact"], "exact")
    assert (metric_of(exact), exact.scores) == (EXACT, {"nll": record.R})
    assert matrices(exact) == matrices(record)
    assert select_metric([exact], "nll") == [record] and record.metric == "nll"
    assert select_metric([record], None) == [record]
    classified = make_record()
    assert select_metric([classified], "accuracy") == [classified]


def test_a_metric_that_records_lack_is_an_error_with_those_there_are():
    with pytest.raises(SpecError, match=r"no metric 'exakt'; did you mean 'exact'\? \(.*acme have nll and exact\)"):
        select_metric([make_lm_record()], "exakt")
    with pytest.raises(SpecError, match=r"no metric 'nll' \(results of split-mnist-5k have accuracy\)"):
        select_metric([make_record()], "nll")


def test_a_trial_without_a_matrix_has_no_metric_to_choose():
    failed = make_record(status="failed").model_copy(update={"R": []})
    assert select_metric([failed], "exact") == [failed]


def test_a_record_is_described_by_its_metric():
    assert repr(make_lm_record()).endswith("scenario task: NLL 1.50)")
    assert repr(select_metric([make_lm_record()], "exact")[0]).endswith("scenario task: exact 70.0)")
    assert repr(make_record()).endswith("scenario task: ACC 80.0)")


def test_a_difference_of_two_records_is_in_the_unit_of_each_metric():
    before = make_lm_record()
    changed = [*before.R[:3], [2.0, 2.3, 0.5]]
    after = make_lm_record(nll=changed)
    assert list(differences(before, after)) == [
        "R: 1 of 12 cells, by up to 0.3 nats per token (after task 3, on task 2), NLL 1.5 -> 1.6",
        "exact: 1 of 12 cells, by up to 6.00 points (after task 3, on task 2)"]
    lost = make_record(status="failed", benchmark="instructions:acme", model="hf:base")
    assert any(line.startswith("metric: nll -> None") for line in differences(before, lost))


def test_loggers_get_each_metric_under_its_name():
    *_, last = steps(make_lm_record())
    assert last.values["nll/task1"] == 2.0 and last.values["nll/seen"] == 1.5
    assert last.values["exact/task3"] == 0.9 and last.values["exact/seen"] == pytest.approx(0.7)
    assert not any(name.startswith("accuracy") for name in last.values)
    assert final(make_lm_record()) == {"NLL": 1.5, "forgetting": 1.5, "BWT": -1.5, "exact": pytest.approx(0.7)}
    assert set(final(make_record())) == {"ACC", "forgetting", "BWT"}
