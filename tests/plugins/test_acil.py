"""`acil`: recursive least squares against one regression on all samples by least squares, and DS-AL's second stream."""

import numpy as np
import pytest
import torch
from clbench_acil import ACILOptions
from clbench_acil.strategy import ACIL, update
from clbench_prototypes import closed_form
from helpers.per_task import answer, inputs, learn, make_model, make_stream_info, make_task

from clbench.core.errors import DivergedError

M = 30


def make(scenario="class", **options):
    settings = ACILOptions(**{"base": "random", "projections": M, **options})
    return ACIL(make_model(), make_stream_info(scenario), settings)


def projected(strategy, x):
    with torch.no_grad():
        return (make_model().features(x).double() @ strategy.projection.double()).numpy()


def least_squares(rows, targets, ridge):
    """Return W [M, C] by least squares, with sqrt(ridge) times the identity below the samples."""
    below = np.sqrt(ridge) * np.eye(rows.shape[1])
    right = np.vstack([targets, np.zeros((rows.shape[1], targets.shape[1]))])
    return np.linalg.lstsq(np.vstack([rows, below]), right, rcond=None)[0]


def data(strategy, counts):
    tasks = [make_task(i, count=n) for i, n in enumerate(counts)]
    rows = [projected(strategy, t.train.x) for t in tasks]
    labels = [np.eye(6)[t.train.y.numpy()] for t in tasks]
    return tasks, rows, labels


@pytest.mark.parametrize("ridge", [0.1, 5.0])
@pytest.mark.parametrize(("counts", "chunk"), [((24, 24, 24), 1024), ((20, 31, 57), 7), ((40, 4, 12), 1)])
def test_recursion_gives_the_ridge_regression_on_all_samples_at_once(counts, chunk, ridge, monkeypatch):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    strategy = make(ridge=ridge)
    tasks, rows, labels = data(strategy, counts)
    for task, one_hot in zip(tasks, labels, strict=True):  # float32 features of one batch, whatever the chunks
        with torch.no_grad():
            strategy.take_in(make_model().features(task.train.x), torch.from_numpy(one_hot))
    strategy.learned = 3
    relu, targets = np.maximum(np.vstack(rows), 0), np.vstack(labels)
    weight = least_squares(relu, targets, ridge)
    np.testing.assert_allclose(strategy.weight.numpy().T, weight, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(strategy.inverse.numpy(), np.linalg.inv(relu.T @ relu + ridge * np.eye(M)), rtol=1e-7,
                               atol=1e-9)
    np.testing.assert_allclose(answer(strategy).logits.numpy(), np.maximum(projected(strategy, inputs()), 0) @ weight,
                               rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("chunk", [1024, 5])
def test_the_second_stream_fits_what_the_first_one_misses_of_the_tasks_own_classes(chunk, monkeypatch):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    strategy = make(compensation=0.6, ridge=0.5, compensation_ridge=2.0)
    tasks, rows, labels = data(strategy, (24, 18, 30))
    rests = []
    for index, task in enumerate(tasks):
        learn(strategy, task)
        so_far = np.maximum(np.vstack(rows[:index + 1]), 0)
        main = least_squares(so_far, np.vstack(labels[:index + 1]), 0.5)
        rest = labels[index] - np.maximum(rows[index], 0) @ main
        rest[:, [c for c in range(6) if c not in task.classes]] = 0
        rests.append(rest)
    second = least_squares(np.tanh(np.vstack(rows)), np.vstack(rests), 2.0)
    # The features are float32, which a chunk of another size may round otherwise.
    np.testing.assert_allclose(strategy.second_weight.numpy().T, second, rtol=1e-4, atol=1e-6)
    h = projected(strategy, inputs())
    np.testing.assert_allclose(answer(strategy).logits.numpy(), np.maximum(h, 0) @ main + 0.6 * np.tanh(h) @ second,
                               rtol=1e-4, atol=1e-6)


def test_one_update_is_the_formula_of_the_paper():
    g = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(4, 6, generator=g).double(), torch.randn(4, 3, generator=g).double()
    half = torch.randn(6, 6, generator=g).double()
    r, w = half @ half.T + torch.eye(6).double(), torch.randn(6, 3, generator=g).double()
    new_r = r - r @ rows.T @ torch.linalg.inv(torch.eye(4).double() + rows @ r @ rows.T) @ rows @ r
    new_w = w + new_r @ rows.T @ (targets - rows @ w)
    ours, transposed = r.clone(), w.T.clone()
    update(ours, transposed, rows, targets)
    torch.testing.assert_close(ours, new_r, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(transposed.T, new_w, rtol=1e-10, atol=1e-12)


def test_features_that_are_not_finite_end_the_trial_as_diverged():
    rows = torch.full((2, 3), 1e200, dtype=torch.float64)
    with pytest.raises(DivergedError, match="not finite or too large"):
        update(torch.eye(3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64), rows, rows[:, :2])


def test_what_it_stores_and_when_it_needs_the_ends_of_tasks():
    plain, both = make(), make(compensation=1.0)
    assert learn(plain, make_task(0)) == []  # nothing is trained by steps
    assert plain.second_weight.numel() == plain.sums.numel() == 0 and both.second_weight.shape == (6, M)
    assert (plain.inverse.shape, plain.second_inverse.numel()) == ((M, M), 0)
    assert not ACILOptions(base="random").needs_boundaries
    assert ACILOptions(base="random", compensation=0.6).needs_boundaries == "compensation fits the rest of each task"
    assert make(projections=None).projection.shape == (12, 60)
    assert plain.projection.abs().max() <= 12**-0.5 < plain.projection.abs().max() * 1.05
