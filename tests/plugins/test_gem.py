"""`gem`: its quadratic problem against scipy's SLSQP and against all active sets, its step against autograd."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_gem import GEMOptions
from clbench_gem.strategy import GEM, RIDGE, dual_weights, project
from helpers.methods import activate, batch, deep_model, make, task
from scipy.optimize import minimize


def by_active_sets(system, linear, margin):
    """Return the best v >= margin of 1/2 v^T A v + c^T v: of all choices of weights that are at the margin."""
    best, best_value = None, np.inf
    for at_margin in product([False, True], repeat=len(linear)):
        fixed = np.array(at_margin)
        v = np.full(len(linear), margin)
        if not fixed.all():
            rest = -linear[~fixed] - system[np.ix_(~fixed, fixed)] @ v[fixed]
            v[~fixed] = np.linalg.solve(system[np.ix_(~fixed, ~fixed)], rest)
        value = v @ system @ v / 2 + linear @ v
        if (v >= margin - 1e-12).all() and value < best_value:
            best, best_value = v, value
    return best


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")  # of old versions of scipy
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_the_dual_problem_is_solved_exactly(seed, margin):
    g = torch.Generator().manual_seed(seed)
    memory = torch.randn(4, 9, generator=g, dtype=torch.float64)
    gradient = torch.randn(9, generator=g, dtype=torch.float64)
    weights = dual_weights(memory @ memory.T, memory @ gradient, margin).numpy()
    system, linear = (memory @ memory.T).numpy() + RIDGE * np.eye(4), (memory @ gradient).numpy()
    np.testing.assert_allclose(weights, by_active_sets(system, linear, margin), rtol=1e-9, atol=1e-11)
    solution = minimize(lambda v: v @ system @ v / 2 + linear @ v, np.full(4, margin + 1.0), method="SLSQP",
                        bounds=[(margin, None)] * 4, options={"ftol": 1e-15, "maxiter": 500})
    np.testing.assert_allclose(weights, solution.x, atol=1e-5)


def test_more_tasks_than_parameters_still_have_one_solution():
    memory = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = torch.tensor([1.0, -1.0], dtype=torch.float64)
    weights = dual_weights(memory @ memory.T, memory @ gradient, 0.0).numpy()
    system = (memory @ memory.T).numpy() + RIDGE * np.eye(6)
    np.testing.assert_allclose(weights, by_active_sets(system, (memory @ gradient).numpy(), 0.0), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_margin_it_is_the_nearest_step_that_raises_no_loss(seed):
    g = torch.Generator().manual_seed(10 + seed)
    memory, gradient = torch.randn(3, 8, generator=g).double() * 30, torch.randn(8, generator=g).double()
    gradient -= memory.sum(0) / 60  # against at least one of them
    assert (memory @ gradient < 0).any()
    solution = minimize(lambda z: ((z - gradient.numpy()) ** 2).sum() / 2, gradient.numpy(), method="SLSQP", tol=1e-14,
                        constraints={"type": "ineq", "fun": lambda z: memory.numpy() @ z})
    np.testing.assert_allclose(project(gradient, memory, 0.0).numpy(), solution.x, atol=1e-4)


def test_a_gradient_that_agrees_with_all_tasks_is_left_as_it_is():
    memory = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    agreeing, against = torch.tensor([0.2, 0.0, 5.0]), torch.tensor([0.2, -0.1, 5.0])
    assert torch.equal(project(agreeing, memory, 0.5), agreeing)
    # The margin 0.5 of the first task is kept, and the second needs 0.1 / (1 + RIDGE), which is below the margin.
    torch.testing.assert_close(project(against, memory, 0.5), torch.tensor([0.7, 0.4, 5.0]))
    torch.testing.assert_close(project(against, memory, 0.0), torch.tensor([0.2, -0.1 + 0.1 / (1 + RIDGE), 5.0]))


def test_long_gradients_of_similar_tasks_have_a_projection():
    g = torch.Generator().manual_seed(0)
    memory = F.normalize(torch.randn(20000, generator=g) + 1e-4 * torch.randn(8, 20000, generator=g)) * 1000
    gradient = -memory[0] + 0.01 * torch.randn(20000, generator=g)
    step = project(gradient, memory, 0.0)
    assert (memory.double() @ step.double()).min() > -1e-4 * 1000 * gradient.norm()


@pytest.mark.parametrize("value", [1e15, float("inf"), float("nan")])
def test_gradients_beyond_float64_make_the_step_nan_so_the_trial_diverges(value):
    g = torch.Generator().manual_seed(0)
    memory = (1 + 1e-9 * torch.randn(5, 9, generator=g, dtype=torch.float64)) * value
    assert project(-torch.ones(9).double(), memory, 0.5).isnan().all()


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_step_has_a_constraint_for_each_earlier_task(scenario):
    strategy = make(GEM, GEMOptions(capacity=12, margin=0.0), scenario, deep_model)
    if scenario == "class":
        activate(strategy, 2)
    named = dict(strategy.named_parameters())
    own = dict(zip(named, torch.autograd.grad(strategy.loss(batch(2)), list(named.values())), strict=True))
    assert strategy.edit_gradients(own) is own  # no earlier task
    for index in (0, 1):
        strategy.after_task(task(index))
    assert sorted(set(strategy.slot_tasks)) == [0, 1]
    assert sorted(strategy.memory_y.tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    rows = []
    for index in (0, 1):
        chosen = strategy.memory_tasks == index
        logits = strategy.model(strategy.memory_x[chosen])
        labels = strategy.memory_y[chosen]
        if scenario == "task":
            logits, labels = logits[:, 2 * index:2 * index + 2], labels - 2 * index
        loss = F.cross_entropy(logits, labels)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(named.values()))]))
        torch.testing.assert_close(strategy.memory_gradient(index, list(named)), rows[-1])
    against = {name: g - 3 * part for (name, g), part in zip(own.items(), (
        part.view_as(own[name]) for name, part in zip(named, torch.split(rows[0] + rows[1], [
            p.numel() for p in named.values()]), strict=True)), strict=True)}
    edited = strategy.edit_gradients(against)
    assert list(edited) == list(named) and all(edited[n].shape == p.shape for n, p in named.items())
    flat, before = (torch.cat([g.flatten() for g in found.values()]) for found in (edited, against))
    memory = torch.stack(rows)
    weights = dual_weights(memory @ memory.T, memory @ before, 0.0)
    torch.testing.assert_close(flat, before + weights @ memory)
    assert (memory @ before).min() < 0 and (memory @ flat + RIDGE * weights).min() > -1e-10
    assert all(p.grad is None for p in strategy.parameters())
