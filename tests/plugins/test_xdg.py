"""`xdg`: gates, forward pass and penalty of two tasks by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_xdg import XdGOptions
from clbench_xdg.strategy import XdG
from helpers.per_task import as_batch, begin, make_model, make_stream_info, make_task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.testing import MODELS


def make(kind="mlp", scenario="task", **options):
    torch.manual_seed(0)
    return XdG(make_model(kind, dtype=torch.float64), make_stream_info(scenario), XdGOptions(**options)).double()


def double(index):
    task = make_task(index)
    return type(task)(task.index, task.classes, type(task.train)(task.train.x.double(), task.train.y, task.train.tasks))


def start(strategy, index, seed=0):
    task = double(index)
    begin(strategy, task, seed)
    strategy.double()
    return task


def sgd(strategy, task, count=3, lr=0.3):
    """Take steps as the harness does: gradients, edit_gradients, step."""
    for _ in range(count):
        learn = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
        found = dict(zip(learn, torch.autograd.grad(strategy.loss(as_batch(task)), list(learn.values())), strict=True))
        with torch.no_grad():
            for name, gradient in strategy.edit_gradients(found).items():
                learn[name] -= lr * gradient
    strategy.after_task(task)


def layers(strategy):
    return [m for m in strategy.model.blocks.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


def by_hand(kind, weights, gates, head, x):
    """The gated network in torch functions, without any of the strategy's code."""
    for (w, b), gate in zip(weights, gates, strict=True):
        on = gate.double()
        if kind == "mlp":
            x = torch.relu(x.flatten(1) @ w.T + b) * on
        else:
            x = F.max_pool2d(torch.relu(F.conv2d(x, w, b, padding=1)), 2) * on.reshape(1, -1, 1, 1)
    return x.flatten(1) @ head.weight.T + head.bias


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_each_task_runs_through_its_own_units(kind):
    strategy = make(kind, gated=0.5)
    tasks = [start(strategy, 0)]
    strategy.after_task(tasks[0])
    tasks.append(start(strategy, 1))
    weights = [(m.weight, m.bias) for m in layers(strategy)]
    assert any(not torch.equal(a, b) for a, b in zip(strategy.gates(0), strategy.gates(1), strict=True))
    for task in tasks:
        gates = strategy.gates(task.index)
        logits = by_hand(kind, weights, gates, strategy.heads[task.index], task.train.x)
        own = strategy.forward(task.train.x, task.index)[:, list(task.classes)]
        torch.testing.assert_close(own, logits, rtol=1e-12, atol=1e-12)
        dark = strategy.forward_task(task.train.x, task.index)  # a unit that is off makes no difference
        with torch.no_grad():
            off = (~gates[0]).nonzero()[0, 0]
            kept = weights[0][0][off].clone()
            weights[0][0][off] += 5.0
            assert torch.equal(strategy.forward_task(task.train.x, task.index), dark)
            weights[0][0][off] = kept


@pytest.mark.parametrize(("gated", "on"), [(0.8, 2), (0.5, 6), (0.0, 12), (0.99, 1)])  # round(9.6) = 10 of 12 are off
def test_an_exact_number_of_units_is_on_and_gates_stay(gated, on):
    strategy = make(gated=gated)
    start(strategy, 0)
    first = [gate.clone() for gate in strategy.gates(0)]
    strategy.after_task(double(0))
    start(strategy, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, strategy.gates(0), strict=True))
    assert [int(gate.sum()) for index in (0, 1) for gate in strategy.gates(index)] == [on] * 4
    again = make(gated=gated)
    again.stream_info.generator.manual_seed(1)
    start(again, 0)
    assert gated in (0.0, 0.99) or any(not torch.equal(a, b) for a, b in zip(first, again.gates(0), strict=True))


def test_weights_between_units_that_are_off_do_not_move_and_have_no_importance():
    strategy = make(gated=0.5, strength=0.2)
    task = start(strategy, 0)
    before = copy.deepcopy(strategy.model.blocks)
    sgd(strategy, task)
    first, second = layers(strategy)
    gates = [gate.numpy() for gate in strategy.gates(0)]
    moved = (second.weight - [m for m in before.modules() if isinstance(m, torch.nn.Linear)][1].weight).detach().numpy()
    name = next(n for n, p in strategy.named_parameters() if p is second.weight)
    importance = strategy.importance_and_anchor(name)[0].numpy()
    both = np.outer(gates[1], gates[0])
    assert (moved[~both] == 0).all() and (importance[~both] == 0).all() and (moved[both] != 0).any()
    assert first.weight.shape[0] == len(gates[0])


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_weights_between_units_that_are_on_count_as_trainable(kind):
    strategy = make(kind, gated=0.5)
    task = start(strategy, 0)
    count = strategy.trainable()
    with torch.no_grad():
        for p in strategy.model.blocks.parameters():
            p.abs_()  # so that ReLU and pooling pass gradients of all units that are on
    learn = [p for p in strategy.parameters() if p.requires_grad]
    batch = as_batch(task)
    gradients = torch.autograd.grad(strategy.loss(type(batch)(batch.x + 1, batch.y, batch.tasks, 0)), learn)
    assert count == sum(int((gradient != 0).sum()) for gradient in gradients)


def test_gates_come_from_the_generator_of_the_stream():
    gates = []
    for seed in (0, 1):  # of torch's global generator, from which layers are initialized
        strategy = make(gated=0.5)
        start(strategy, 0, seed)
        gates.append(strategy.gates(0))
    assert all(torch.equal(a, b) for a, b in zip(*gates, strict=True))


def test_the_penalty_is_that_of_si_on_the_layers_behind_the_gates():
    strategy = make(gated=0.5, strength=0.3, damping=0.02)
    task, lr = start(strategy, 0), 0.3
    gates, head = strategy.gates(0), copy.deepcopy(strategy.heads[0])
    weights = [(m.weight.detach().clone().requires_grad_(), m.bias.detach().clone().requires_grad_())
               for m in layers(strategy)]
    leaves = [p for pair in weights for p in pair]
    everything = [*leaves, head.weight, head.bias]
    starting, omega = [p.detach().clone() for p in leaves], [torch.zeros_like(p) for p in leaves]
    for _ in range(3):
        loss = F.cross_entropy(by_hand("mlp", weights, gates, head, task.train.x), task.train.y)
        gradients = torch.autograd.grad(loss, everything)
        with torch.no_grad():
            for p, g in zip(everything, gradients, strict=True):
                p -= lr * g
            for small, g in zip(omega, gradients, strict=False):
                small += lr * g * g
    sgd(strategy, task, 3, lr)
    names = [n for m in layers(strategy) for p in (m.weight, m.bias) for n, q in strategy.named_parameters() if q is p]
    expected = []
    for name, p, small, begun in zip(names, leaves, omega, starting, strict=True):
        expected.append(small / ((p.detach() - begun).square() + 0.02))
        torch.testing.assert_close(strategy.importance_and_anchor(name)[0], expected[-1], rtol=1e-9, atol=1e-13)
    second = start(strategy, 1)
    assert not any(strategy.covers(n) for n, _ in strategy.named_parameters() if "head" in n)
    with torch.no_grad():
        for p in strategy.model.blocks.parameters():
            p += 0.1
    data = F.cross_entropy(by_hand("mlp", [(m.weight, m.bias) for m in layers(strategy)], strategy.gates(1),
                                   strategy.heads[1], second.train.x), second.train.y - 2)
    held = 0.3 * sum(omega.sum() for omega in expected) * 0.01
    torch.testing.assert_close(strategy.loss(as_batch(second)), data + held, rtol=1e-9, atol=1e-12)


def test_other_networks_are_refused():
    with pytest.raises(SpecError, match=r"xdg gates the units of a chain of Linear and Conv2d layers .* packnet"):
        XdG(MODELS["vit"]((1, 8, 8), 6), make_stream_info(), XdGOptions())
    assert discover().strategy("xdg").parts_per_task


def test_outputs_is_refused_because_each_task_has_a_head():
    with pytest.raises(ValueError, match="outputs = own has no effect, because each task has a head"):
        XdGOptions(outputs="own")
    assert XdGOptions(outputs="seen").model_dump() == XdGOptions().model_dump()
