import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_hat import HATOptions
from clbench_hat.strategy import HAT, spread
from helpers.per_task import (
    IMAGE,
    answer,
    as_batch,
    begin,
    check_stacking,
    make_model,
    make_stream_info,
    make_task,
    steps,
)
from helpers.training import loop

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.models.network import Block, Network
from clbench.strategy.granted import PhaseSpec
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.costs import measure


def make(kind="mlp", scenario="task", **options):
    torch.manual_seed(0)
    return HAT(make_model(kind, dtype=torch.float64), make_stream_info(scenario), HATOptions(**options)).double()


def double(task):
    return type(task)(task.index, task.classes, type(task.train)(task.train.x.double(), task.train.y, task.train.tasks))


def start(strategy, index, s=None):
    """Begin a task; return it as double, with its embeddings moved to float64."""
    task = double(make_task(index))
    begin(strategy, task)
    strategy.double()
    strategy.before_phase(task, PhaseSpec(0, 6, 0.1))
    if s is not None:
        strategy.s.fill_(s)
    return task


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward(strategy, weights, embeddings, s, x, task, kind):
    """The gated network in plain numpy (mlp) or torch functions (cnn), without any of the strategy's code."""
    masks = [torch.sigmoid(s * e) for e in embeddings]
    for number, (w, b) in enumerate(weights):
        if kind == "mlp":
            x = torch.relu(x.flatten(1) @ w.T + b) * masks[number]
        else:
            x = F.max_pool2d(torch.relu(F.conv2d(x, w, b, padding=1)), 2) * masks[number].reshape(1, -1, 1, 1)
    head = strategy.heads[task]
    return x.flatten(1) @ head.weight.T + head.bias, masks


def layers(strategy):
    return [m for m in strategy.model.blocks.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("s", [1 / 400, 1.0, 37.0])
def test_loss_and_edited_gradients_are_the_papers(kind, s):
    strategy = make(kind, strength=0.6)
    start(strategy, 0)
    strategy.after_task(make_task(0))
    g = torch.Generator().manual_seed(1)
    for used in strategy.used():
        used.copy_(torch.rand(used.shape, generator=g, dtype=torch.float64))
    task = start(strategy, 1, s)
    weights = [(m.weight, m.bias) for m in layers(strategy)]
    embeddings = strategy.embedding(1)
    logits, masks = forward(strategy, weights, embeddings, s, task.train.x, 1, kind)
    taken = sum((m * (1 - u)).sum() for m, u in zip(masks, strategy.used(), strict=True))
    penalty = taken / sum((1 - u).sum() for u in strategy.used())
    expected = F.cross_entropy(logits, task.train.y - 2) + 0.6 * penalty
    loss = strategy.loss(as_batch(task))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)

    own = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    found = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    edited = strategy.edit_gradients(found)
    leaves = [p for pair in weights for p in pair] + embeddings
    plain = torch.autograd.grad(expected, leaves)
    names = {id(p): n for n, p in own.items()}
    used = [u.numpy() for u in strategy.used()]
    for number in range(len(weights)):
        factor = np.zeros(weights[number][0].shape)
        for i in range(factor.shape[0]):
            for j in range(factor.shape[1]):
                before = used[number][i] if number == 0 else used[number - 1][j]
                factor[i, j] = 1 - min(used[number][i], before)
        for p, gradient, scale in ((weights[number][0], plain[2 * number], factor),
                                   (weights[number][1], plain[2 * number + 1], 1 - used[number])):
            torch.testing.assert_close(edited[names[id(p)]], gradient * torch.from_numpy(scale), rtol=1e-10, atol=1e-15)
        e = embeddings[number]
        gradient, values = plain[2 * len(weights) + number].numpy(), e.detach().numpy()
        # at the size for s = 1: the derivative of the gate, sigmoid' of s e times s, is replaced by s_max sigmoid'(e)
        inside = np.abs(s * values) < 15  # beyond, too little is left of a float64
        assert inside.any()
        gradient, values = gradient[inside], values[inside]
        at_one = sigmoid(values) * (1 - sigmoid(values)) * 400
        here = sigmoid(s * values) * (1 - sigmoid(s * values)) * s
        np.testing.assert_allclose(edited[names[id(e)]].numpy()[inside], gradient / here * at_one, rtol=1e-6)
    for name in found:
        if name.startswith("heads"):
            assert torch.equal(edited[name], found[name])
    assert edited.keys() == found.keys()


def test_the_penalty_of_the_first_task_is_the_mean_mask_and_none_is_left_where_all_is_used():
    strategy = make(strength=2.0)
    task = start(strategy, 0, 3.0)
    without = copy.deepcopy(strategy)
    without.options = HATOptions(strength=0.0)
    mean = torch.cat([torch.sigmoid(3.0 * e) for e in strategy.embedding(0)]).mean()
    batch = as_batch(task)
    torch.testing.assert_close(strategy.loss(batch) - without.loss(batch), 2 * mean, rtol=1e-10, atol=1e-13)
    for used in strategy.used():
        used.fill_(1.0)
    assert torch.equal(strategy.loss(batch) * 1, without.loss(batch) * 1)


def test_gates_get_steeper_within_each_pass():
    strategy = make(s_max=100.0)
    task = double(make_task(0))
    begin(strategy, task)
    strategy.before_phase(task, PhaseSpec(0, 7, 0.1))
    batch = as_batch(make_task(0, count=8))  # three batches of 8, of 24
    seen = []
    for _ in range(7):
        strategy.prepare_batch(batch)
        seen.append(float(strategy.s))
    low = 1 / 100
    expected = [low, low + (100 - low) / 2, 100.0]
    assert seen == pytest.approx([*expected, *expected, low])
    strategy.before_phase(task, PhaseSpec(0, 2, 0.1))  # fewer steps than a pass has batches
    seen = [float(strategy.prepare_batch(batch) and strategy.s) for _ in range(2)]
    assert seen == pytest.approx([low, 100.0])


def test_embeddings_stay_within_reach():
    strategy = make()
    start(strategy, 0)
    for e in strategy.embedding(0):
        e.data.fill_(9.0)
        e.data[0] = -7.0
    strategy.prepare_batch(as_batch(make_task(0, count=8)))
    assert all(e[0] == -6 and (e[1:] == 6).all() for e in strategy.embedding(0))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_saturated_tasks_answer_bit_for_bit_the_same(kind, optimizer, monkeypatch):
    recipe = (Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, epochs=3) if optimizer == "sgd"
              else Recipe(optimizer="adam", lr=0.003, batch_size=8, epochs=3))
    monkeypatch.setattr(tiny, "RECIPE", recipe)
    b = bench(discover().strategy("hat"), {}, "task", model=kind)
    x = b.stream.prepare(b.stream.tasks[0].test.x)
    answers, weights = [], []
    for index in range(3):
        task = b.replica.begin(index)
        with b.replica.seed_training(index):
            loop([b.strategy], recipe, [0]).take_task_steps([task])
        for number, e in enumerate(b.strategy.embedding(index)):  # every third unit, exactly
            on = torch.arange(len(e)) % 3 == (index + number) % 3
            e.data = torch.where(on, 6.0, -6.0)
        b.replica.finish(task)
        assert all(set(mask.tolist()) == {0.0, 1.0} for mask in b.strategy.masks(index))
        with torch.no_grad():
            answers.append([b.strategy.eval()(x, t) for t in range(index + 1)])
        weights.append([m.weight.detach().clone() for m in layers(b.strategy)])
    for later in answers[1:]:
        for t, first in enumerate(answers):
            if t < len(later):
                assert torch.equal(later[t], first[t])
    assert all((new != old).any() for new, old in zip(weights[-1], weights[0], strict=True))


def test_a_task_is_a_plain_network_without_the_units_that_are_off():
    strategy = make("cnn")
    start(strategy, 0)
    for e in strategy.embedding(0):
        e.data = torch.where(torch.arange(len(e)) % 2 == 0, 6.0, -6.0).double()
    strategy.after_task(make_task(0))
    first, second = layers(strategy)
    x = torch.rand(5, *IMAGE, dtype=torch.float64)
    y = F.max_pool2d(F.conv2d(x, first.weight[::2], first.bias[::2], padding=1).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, second.weight[::2, ::2], second.bias[::2], padding=1).relu(), 2)
    head = strategy.heads[0]
    own = head.weight.view(2, 8, -1)[:, ::2].flatten(1)
    torch.testing.assert_close(answer(strategy, 0, x).logits[:, :2], y.flatten(1) @ own.T + head.bias)


def test_masks_of_maps_cover_each_channel():
    assert spread(torch.tensor([1.0, 2.0, 3.0]), 6).tolist() == [1, 1, 2, 2, 3, 3]


def test_a_real_task_trains_masks_that_are_nearly_binary_and_less_than_all(monkeypatch):
    monkeypatch.setattr(tiny, "RECIPE", Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=30))
    b = bench(discover().strategy("hat"), {}, "task", model="mlp")
    shares = []
    for index in range(2):
        b.learn(index)
        masks = torch.cat(b.strategy.masks(index))
        assert ((masks < 0.01) | (masks > 0.99)).float().mean() > 0.7
        shares.append(float(torch.cat(b.strategy.used()).mean()))
    assert 0 < shares[0] < 0.9 and shares[0] <= shares[1] <= 1


def test_two_seeds_stack():
    check_stacking(lambda seed: HAT(make_model(seed=seed), make_stream_info(), HATOptions()))


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype"])
def test_an_unknown_task_is_inferred(infer):
    strategy = HAT(make_model(), make_stream_info("class"), HATOptions(infer=infer))
    for index in range(2):
        task = make_task(index)
        begin(strategy, task)
        strategy.before_phase(task, PhaseSpec(0, 4, 0.1))
        steps(strategy, task)
        strategy.after_task(task)
    found = answer(strategy)
    assert set(found.task.tolist()) <= {0, 1}
    for row, t in zip(found.logits, found.task.tolist(), strict=True):
        assert math.isfinite(row[2 * t]) and row.isfinite().sum() == 2


def test_units_per_task_are_what_is_kept():
    strategy = HAT(make_model(), make_stream_info(), HATOptions())
    for index in range(2):
        begin(strategy, make_task(index))
        strategy.after_task(make_task(index))
    assert measure(strategy).bytes["masks"] == 4 * 24 * (2 + 1)  # two tasks' embeddings, and what is used


def test_other_networks_are_refused():
    stream_info = make_stream_info()
    for body, what in ((torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8)), "BatchNorm1d"),
                       (torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 8)), "other layers")):
        blocks = [Block(torch.nn.Sequential(torch.nn.Flatten(), body), torch.nn.ReLU())]
        with pytest.raises(SpecError, match=f"block 0 of this model has {what}"):
            HAT(Network(blocks, torch.nn.Linear(8, 6)), stream_info)
