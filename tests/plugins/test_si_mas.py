import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_mas import MASOptions
from clbench_mas.strategy import MAS
from clbench_si import SIOptions
from clbench_si.strategy import SI
from helpers.methods import CLASSES, deep_model, linear_model, make, move, task
from helpers.training import loop

from clbench.experiment.spec import Recipe


def fit(strategy, index, **recipe):
    one = task(index)
    strategy.before_task(one)
    loop([strategy], Recipe(batch_size=len(one.train), **recipe), [0]).take_task_steps([one])
    strategy.after_task(one)


def by_hand(model, tasks, strength, damping, steps, lr, total=False):
    """SI as the paper writes it, on full batches: plain gradient descent, everything in dictionaries."""
    own = dict(model.named_parameters())
    omega = {n: torch.zeros_like(p) for n, p in own.items()}
    anchor = {n: p.detach().clone() for n, p in own.items()}
    for index in range(tasks):
        train = task(index).train
        start = {n: p.detach().clone() for n, p in own.items()}
        small = {n: torch.zeros_like(p) for n, p in own.items()}
        for _ in range(steps):
            logits = model(train.x)[:, 2 * index:2 * index + 2]
            data = F.cross_entropy(logits, train.y - 2 * index)
            pull = torch.autograd.grad(data, list(own.values()), retain_graph=True)
            held = sum((omega[n] * (p - anchor[n]).square()).sum() for n, p in own.items())
            whole = torch.autograd.grad(data + strength * held, list(own.values()))
            with torch.no_grad():
                for (n, p), g, unregularized in zip(own.items(), whole, pull, strict=True):
                    p -= lr * g
                    small[n] += (g if total else unregularized) * lr * g
        for n, p in own.items():
            omega[n] = omega[n] + small[n] / ((p.detach() - start[n]).square() + damping)
            omega[n] = omega[n] if total else omega[n].clamp_min(0)
            anchor[n] = p.detach().clone()
    return omega, anchor


@pytest.mark.parametrize("model", [linear_model, deep_model])
def test_si_is_the_papers_path_integral(model):
    strategy = make(SI, SIOptions(strength=0.3, damping=0.01), model=model)
    twin = copy.deepcopy(strategy.model)
    for index in range(3):
        fit(strategy, index, optimizer="sgd", lr=0.2, iterations=9)
    omega, anchor = by_hand(twin, 3, 0.3, 0.01, 9, 0.2)
    for name, value in omega.items():
        importance, held = strategy.importance_and_anchor(f"model.{name}")
        torch.testing.assert_close(importance, value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(held, anchor[name], rtol=1e-9, atol=1e-12)
    assert (sum(v.sum() for v in omega.values()) > 0) and strategy.penalty() == 0


def test_si_of_the_total_gradient_is_van_de_vens_code():
    """Its update of W and omega: -grad of the whole loss times the change, over change^2 + epsilon, without a ReLU."""
    strategy = make(SI, SIOptions(strength=3.0, damping=0.1, gradient="total"), model=deep_model)
    twin = copy.deepcopy(strategy.model)
    for index in range(3):
        fit(strategy, index, optimizer="sgd", lr=0.2, iterations=9)
    omega, _ = by_hand(twin, 3, 3.0, 0.1, 9, 0.2, total=True)
    for name, value in omega.items():
        torch.testing.assert_close(strategy.importance_and_anchor(f"model.{name}")[0], value, rtol=1e-9, atol=1e-12)
    papers = make(SI, SIOptions(strength=3.0, damping=0.1), model=deep_model)
    for index in range(3):
        fit(papers, index, optimizer="sgd", lr=0.2, iterations=9)
    assert any(not torch.allclose(*(method.importance_and_anchor(f"model.{name}")[0] for method in (strategy, papers)))
               for name in omega)


def test_without_the_relu_an_importance_may_be_negative():
    minimum = {}
    for gradient in ("loss", "total"):
        strategy = make(SI, SIOptions(damping=0.1, gradient=gradient), model=deep_model)
        one = task(0)
        strategy.before_task(one)
        for name, parameter in strategy.named_parameters():  # a step uphill
            strategy.edit_gradients({name: torch.ones_like(parameter)})
            with torch.no_grad():
                parameter += 0.5
        strategy.after_task(one)
        minimum[gradient] = min(strategy.importance_and_anchor(name)[0].min().item()
                                for name, _ in strategy.named_parameters())
    assert minimum == {"loss": 0.0, "total": pytest.approx(-0.5 / (0.25 + 0.1))}


def test_the_path_of_small_steps_adds_up_to_the_fall_of_the_loss():
    strategy = make(SI, SIOptions(damping=1e-9), model=deep_model)
    one = task(0)
    strategy.before_task(one)
    loss = [F.cross_entropy(strategy.model(one.train.x)[:, :2], one.train.y).item()]
    loop([strategy], Recipe(batch_size=12, optimizer="sgd", lr=0.01, iterations=200), [0]).take_task_steps([one])
    loss.append(F.cross_entropy(strategy.model(one.train.x)[:, :2], one.train.y).item())
    for name, p in strategy.named_parameters():
        strategy._account(name, p)
    path = sum(b.sum().item() for n, b in strategy.named_buffers() if n.startswith("path__"))
    assert path == pytest.approx(loss[0] - loss[1], rel=0.01)


def test_si_keeps_two_numbers_per_parameter_once_a_task_is_over():
    strategy = make(SI, SIOptions())
    fit(strategy, 0, optimizer="adam", lr=0.1, iterations=3)
    kept = sum(b.numel() for n, b in strategy.named_buffers() if n not in ("class_mask", "offset"))
    assert kept == 2 * sum(p.numel() for p in strategy.parameters())


@pytest.mark.parametrize("model", [linear_model, deep_model])
def test_mas_importance_sample_by_sample(model):
    strategy = make(MAS, MASOptions(), model=model)
    strategy.before_task(task(0))
    expected = {n: torch.zeros_like(p) for n, p in strategy.named_parameters()}
    for index in range(2):
        move(strategy, index)
        train = task(index).train
        for x in train.x:
            length = strategy.model(x[None])[0, 2 * index:2 * index + 2].square().sum()
            for n, g in zip(expected, torch.autograd.grad(length, list(strategy.parameters())), strict=True):
                expected[n] += g.abs() / len(train)
        strategy.after_task(task(index))
    for name, value in expected.items():
        torch.testing.assert_close(strategy.importance_and_anchor(name)[0], value, rtol=1e-10, atol=1e-14)
    move(strategy, 9)
    held = sum((value * (p - strategy.importance_and_anchor(n)[1]).square()).sum()
               for (n, p), value in zip(strategy.named_parameters(), expected.values(), strict=True))
    torch.testing.assert_close(strategy.penalty(), held, rtol=1e-10, atol=0)


def test_mas_of_a_linear_model_in_closed_form():
    strategy = make(MAS, MASOptions())
    one = task(1)
    strategy.before_task(one)
    strategy.after_task(one)
    f = strategy.model(one.train.x).detach()
    f[:, :2] = f[:, 4:] = 0
    weight = strategy.importance_and_anchor("model.head.weight")[0]
    torch.testing.assert_close(weight, (2 * f.abs()).T @ one.train.x.abs() / len(f))
    assert weight.shape[0] == CLASSES and (weight[:2] == 0).all() and (weight[2:4] > 0).all()


@pytest.mark.parametrize("batch", [12, 50])
def test_mas_of_whole_batches_is_the_magnitude_of_the_mean_gradient(batch):
    strategy = make(MAS, MASOptions(batch=batch), model=deep_model)
    one = task(1)
    strategy.before_task(one)
    length = strategy.model(one.train.x)[:, 2:4].square().sum(1).mean()
    expected = torch.autograd.grad(length, list(strategy.parameters()))
    strategy.after_task(one)
    for (name, _), value in zip(strategy.named_parameters(), expected, strict=True):
        torch.testing.assert_close(strategy.importance_and_anchor(name)[0], value.abs(), rtol=1e-10, atol=1e-14)


def test_mas_of_batches_lies_between_single_samples_and_the_whole_task():
    # |mean| <= mean |.|: the fewer samples a gradient is of, the less they cancel. A batch that is one sample is none.
    sums = []
    for batch in (1, 5, 12):
        strategy = make(MAS, MASOptions(batch=batch), model=deep_model)
        strategy.before_task(task(0))
        strategy.after_task(task(0))
        sums.append(sum(strategy.importance_and_anchor(n)[0].sum().item() for n, _ in strategy.named_parameters()))
    assert sums[0] > sums[1] > sums[2] > 0
