import pytest
import torch
import torch.nn.functional as F
from clbench_agem import AGEMOptions
from clbench_agem.strategy import AGEM, project
from helpers.methods import batch, deep_model, make, task
from scipy.optimize import minimize


@pytest.mark.parametrize("seed", range(6))
def test_the_projection_solves_the_papers_problem(seed):
    g = torch.Generator().manual_seed(seed)
    gradient, reference = torch.randn(2, 4, generator=g, dtype=torch.float64)
    found = project({"a": gradient[:3], "b": gradient[3:]}, {"a": reference[:3], "b": reference[3:]})
    solution = minimize(lambda z: ((z - gradient.numpy()) ** 2).sum() / 2, gradient.numpy(), method="SLSQP", tol=1e-12,
                        constraints={"type": "ineq", "fun": lambda z: z @ reference.numpy()})
    torch.testing.assert_close(torch.cat(list(found.values())), torch.from_numpy(solution.x), rtol=1e-5, atol=1e-5)


def test_a_gradient_that_agrees_is_left_as_it_is_and_no_reference_changes_nothing():
    gradient = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5])}
    assert project(gradient, gradient)["a"].tolist() == [1.0, 2.0]
    zero = {"a": torch.zeros(2)}
    assert project(gradient, zero)["a"].tolist() == [1.0, 2.0] and project(gradient, zero)["b"].tolist() == [0.5]


def test_a_step_does_not_raise_the_loss_on_the_whole_memory():
    strategy = make(AGEM, AGEMOptions(capacity=8, samples=8), "class", deep_model)
    strategy.class_mask[:] = True
    own = dict(strategy.named_parameters())
    b = batch(1)
    given = dict(zip(own, torch.autograd.grad(strategy.loss(b), list(own.values())), strict=True))
    assert strategy.edit_gradients(given) is given  # nothing to refer to yet
    strategy.after_task(task(0))
    assert len(strategy.memory_y) == 8 and set(strategy.memory_tasks.tolist()) == {0}
    loss = F.cross_entropy(strategy.model(strategy.memory_x), strategy.memory_y)
    reference = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    against = {n: given[n] - 2 * reference[n] for n in own}  # points against the memory
    edited = strategy.edit_gradients(against)
    along = sum((edited[n] * reference[n]).sum() for n in own)
    assert sum((against[n] * reference[n]).sum() for n in own) < 0
    assert along.abs() < 1e-12
    assert all(p.grad is None for p in strategy.parameters())
