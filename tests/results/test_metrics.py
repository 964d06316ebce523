import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.core.errors import ClbenchError
from clbench.results import metrics

# Three tasks: task 1 peaks after task 2, task 2 is best just after its training.
R = [
    [0.10, 0.20, 0.30],
    [0.80, 0.25, 0.30],
    [0.90, 0.70, 0.40],
    [0.60, 0.50, 0.95],
]


@st.composite
def matrices(draw, min_tasks=1, max_tasks=5):
    tasks = draw(st.integers(min_tasks, max_tasks))
    row = st.lists(st.floats(0, 1), min_size=tasks, max_size=tasks)
    return draw(st.lists(row, min_size=tasks + 1, max_size=tasks + 1))


def test_a_matrix_worked_by_hand():
    assert metrics.acc(R) == pytest.approx((0.60 + 0.50 + 0.95) / 3)
    assert metrics.aia(R) == pytest.approx((0.80 + (0.90 + 0.70) / 2 + (0.60 + 0.50 + 0.95) / 3) / 3)
    assert metrics.forgetting_per_task(R) == pytest.approx([0.90 - 0.60, 0.70 - 0.50])
    assert metrics.forgetting(R) == pytest.approx(0.25)
    assert metrics.bwt(R) == pytest.approx(((0.60 - 0.80) + (0.50 - 0.70)) / 2)
    assert metrics.fwt(R) == pytest.approx(((0.25 - 0.20) + (0.40 - 0.30)) / 2)
    assert metrics.learning_accuracy(R) == pytest.approx((0.80 + 0.70 + 0.95) / 3)


def test_pooled_accuracies_count_test_samples():
    # Right answers by hand: after task 1 8 of 10; after task 2 9 + 14 of 30; after task 3 6 + 10 + 95 of 130.
    samples = [10, 20, 100]
    assert metrics.pooled_seen(R, samples) == pytest.approx([8 / 10, 23 / 30, 111 / 130])
    assert metrics.acc_pooled(R, samples) == pytest.approx(111 / 130)
    assert metrics.aia_pooled(R, samples) == pytest.approx((8 / 10 + 23 / 30 + 111 / 130) / 3)
    # Over all domains: 8 + 5 + 30, 9 + 14 + 40 and 6 + 10 + 95 of 130.
    assert metrics.aia_pooled_all(R, samples) == pytest.approx((43 + 63 + 111) / 130 / 3)


@given(matrices(), st.integers(1, 1000))
def test_pooling_equal_tasks_is_averaging_them(matrix, samples):
    samples = [samples] * (len(matrix) - 1)
    assert metrics.acc_pooled(matrix, samples) == pytest.approx(metrics.acc(matrix))
    assert metrics.aia_pooled(matrix, samples) == pytest.approx(metrics.aia(matrix))


def test_pooling_needs_the_size_of_every_task():
    with pytest.raises(ClbenchError, match=r"R has 3 task.* but 2 numbers of test samples"):
        metrics.acc_pooled(R, [1, 2])


def test_intransigence_is_the_gap_to_joint_on_the_diagonal():
    joint = [[0.0] * 3, [0.85, 0, 0], [0, 0.90, 0], [0, 0, 0.90]]
    assert metrics.intransigence_per_task(R, joint) == pytest.approx([0.05, 0.20, -0.05])
    assert metrics.intransigence(R, joint) == pytest.approx(0.20 / 3)


def test_forgetting_ignores_what_was_scored_before_the_task_was_trained_on():
    before = [[0.9, 0.99], [0.8, 0.99], [0.7, 0.5]]
    assert metrics.forgetting_per_task(before) == pytest.approx([0.1])


def test_forgetting_is_negative_where_the_last_task_helps_most():
    assert metrics.forgetting([[0.5, 0.5], [0.6, 0.5], [0.8, 0.9]]) == pytest.approx(-0.2)


def test_a_single_task_has_no_forgetting_and_no_transfer():
    single = [[0.5], [0.9]]
    assert metrics.forgetting(single) is None
    assert metrics.forgetting_per_task(single) == []
    assert metrics.bwt(single) is None
    assert metrics.fwt(single) is None
    assert metrics.acc(single) == metrics.aia(single) == metrics.learning_accuracy(single) == 0.9


@given(matrices())
def test_averages_stay_within_the_accuracies(matrix):
    for value in (metrics.acc(matrix), metrics.aia(matrix), metrics.learning_accuracy(matrix)):
        assert 0 <= value <= 1


@given(matrices(min_tasks=2))
def test_differences_stay_within_one(matrix):
    for value in (metrics.forgetting(matrix), metrics.bwt(matrix), metrics.fwt(matrix)):
        assert -1 <= value <= 1


@given(matrices(min_tasks=2))
def test_forgetting_is_at_least_minus_bwt(matrix):
    assert metrics.forgetting(matrix) >= -metrics.bwt(matrix) - 1e-12


@given(matrices(min_tasks=2))
def test_forgetting_is_minus_bwt_where_each_task_was_best_just_after_it(matrix):
    tasks = len(matrix) - 1
    for j in range(tasks):
        for i in range(j + 2, tasks):
            matrix[i][j] = min(matrix[i][j], matrix[j + 1][j])
    assert metrics.forgetting(matrix) == pytest.approx(-metrics.bwt(matrix), abs=1e-12)


@given(st.floats(0, 1), st.integers(2, 6))
def test_a_constant_matrix_forgets_and_transfers_nothing(value, tasks):
    constant = [[value] * tasks for _ in range(tasks + 1)]
    assert metrics.forgetting(constant) == metrics.bwt(constant) == metrics.fwt(constant) == 0
    assert metrics.intransigence(constant, constant) == 0
    assert metrics.acc(constant) == pytest.approx(value)


@given(matrices(min_tasks=2))
def test_acc_is_learning_accuracy_less_what_was_lost(matrix):
    tasks = len(matrix) - 1
    lost = (tasks - 1) / tasks * metrics.bwt(matrix)
    assert metrics.acc(matrix) == pytest.approx(metrics.learning_accuracy(matrix) + lost, abs=1e-12)


@given(matrices(), st.data())
def test_no_metric_changes_its_argument(matrix, data):
    copy = [list(row) for row in matrix]
    function = data.draw(st.sampled_from([metrics.acc, metrics.aia, metrics.forgetting, metrics.bwt, metrics.fwt]))
    function(matrix)
    assert matrix == copy


@pytest.mark.parametrize(("matrix", "message"), [
    ([], "row before training"),
    ([[0.5]], "row before training"),
    ([[0.5, 0.5], [0.5, 0.5]], "row 0 holds 2"),
    ([[0.5, 0.5], [0.5, 0.5], [0.5]], "row 2 holds 1"),
    ([[0.5], [math.nan]], "row 1 of R holds NaN"),
])
@pytest.mark.parametrize("name", ["acc", "aia", "forgetting", "bwt", "fwt", "learning_accuracy"])
def test_a_matrix_of_the_wrong_shape_is_an_error(name, matrix, message):
    with pytest.raises(ClbenchError, match=message):
        getattr(metrics, name)(matrix)


def test_intransigence_needs_the_same_stream():
    with pytest.raises(ClbenchError, match="R of 3 tasks with joint's of 1"):
        metrics.intransigence(R, [[0.5], [0.5]])


def test_avalanche_agrees_where_the_definitions_do():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
        from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer
    tasks = len(R) - 1
    bwt, forgetting, fwt = BWT(), Forgetting(), ForwardTransfer()
    for j in range(tasks):
        fwt.update(j, R[0][j], initial=True)
    for i in range(1, tasks + 1):
        for metric in (bwt, forgetting):
            metric.reset_last()
            for j in range(tasks):
                metric.update(j, R[i][j], initial=j == i - 1)
        if i < tasks:
            fwt.update(i, R[i][i])
    ours = {j: R[tasks][j] - R[j + 1][j] for j in range(tasks - 1)}
    assert bwt.result() == pytest.approx(ours)
    assert sum(bwt.result().values()) / (tasks - 1) == pytest.approx(metrics.bwt(R))
    assert sum(fwt.result().values()) / (tasks - 1) == pytest.approx(metrics.fwt(R))
    # Avalanche's forgetting is first minus last: it misses that task 1 was best after task 2 (docs/metrics.md).
    assert sum(forgetting.result().values()) / (tasks - 1) == pytest.approx(0.20)
    assert metrics.forgetting(R) == pytest.approx(0.25)
    falling = [[0.1] * 3, [0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.6, 0.5, 0.9]]
    first_minus_last = Forgetting()
    for j in range(2):
        first_minus_last.update(j, falling[j + 1][j], initial=True)
        first_minus_last.update(j, falling[3][j])
    assert list(first_minus_last.result().values()) == pytest.approx(metrics.forgetting_per_task(falling))
