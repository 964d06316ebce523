import dataclasses

import numpy as np
import pytest
import torch
from clbench_lora import LoRASubOptions
from clbench_lora.lorasub import LoRASub
from helpers.per_task import (
    answer,
    as_batch,
    begin,
    check_stacking,
    inputs,
    learn,
    make_model,
    make_stream_info,
    make_task,
)
from helpers.per_task import steps as train
from torch import nn

from clbench.data.samples import Samples
from clbench.models.network import Block, Network
from clbench.strategy.base import Task


def make(kind="mlp", scenario="class", model=None, **options):
    stream_info = dataclasses.replace(make_stream_info(scenario), prepare=lambda x: x.double())
    model = make_model(kind, dtype=torch.float64) if model is None else model
    return LoRASub(model, stream_info, LoRASubOptions(**{"rank": 2, "base": "random", **options}))


def double(task):
    return Task(task.index, task.classes, Samples(task.train.x.double(), task.train.y, task.train.tasks))


def dense(layer, sign=1.0):
    """Return W plus, or minus, the sum of BA, as numpy."""
    weight = layer.base_layer.weight.detach()
    change = sum(b.weight.flatten(1) @ a.weight.flatten(1) for a, b in zip(layer.lora_A, layer.lora_B, strict=True))
    return (weight + sign * change.view_as(weight)).detach()


def space_by_hand(x, threshold):
    """Return the projector onto the fewest directions of inputs [N, d] that hold a share of their energy, and k."""
    u, s, _ = np.linalg.svd(x.T @ x)
    shares = np.cumsum(s) / s.sum()
    k = int(np.argmax(shares >= threshold)) + 1
    return u[:, :k] @ u[:, :k].T, k


@pytest.mark.parametrize("scaled", [True, False])
def test_the_space_is_that_of_inputs_without_the_earlier_adapters(scaled):
    strategy = make(threshold=0.9, scaled=scaled)
    for i in range(2):
        learn(strategy, double(make_task(i)))
    task = double(make_task(2))
    begin(strategy, task)
    x = task.train.x
    for name, layer in strategy.adapted.items():
        flat = x.flatten(1)
        expected, k = space_by_hand(flat.numpy(), 0.9)
        assert 0 < k < flat.shape[1]
        found = strategy.get_buffer(f"space__{name.replace('.', '__')}").numpy()
        np.testing.assert_allclose(found, expected / np.sqrt(k) if scaled else expected, atol=1e-9)
        x = nn.functional.linear(flat, dense(layer, -1.0), layer.base_layer.bias.detach()).relu()


class Projected(torch.optim.Adam):
    """Adam whose steps, not gradients, are multiplied by a matrix: from the right for A, from the left for B."""

    def __init__(self, parameters, spaces, lr):
        super().__init__(parameters, lr=lr)
        self.spaces = spaces

    def step(self):
        before = {p: p.detach().clone() for p in self.spaces}
        super().step()
        with torch.no_grad():
            for p, (side, space) in self.spaces.items():
                step = p - before[p]
                p.copy_(before[p] + (step @ space if side == "right" else space @ step))


@pytest.mark.parametrize("project_b", [True, False])
def test_it_learns_as_by_an_optimizer_that_projects_its_steps(project_b):
    strategy, twin = (make(threshold=0.9, project_b=project_b) for _ in range(2))
    task = double(make_task(1))
    for one in (strategy, twin):
        learn(one, double(make_task(0)))
        begin(one, task)
        one.train()
    spaces = {}
    for name, layer in twin.adapted.items():
        space = twin.get_buffer(f"space__{name.replace('.', '__')}")
        newest = layer.parameters_of(-1)
        spaces[newest["lora_A.weight"]] = ("right", space)
        if project_b and layer.base_layer.in_features == layer.base_layer.out_features:
            spaces[newest["lora_B.weight"]] = ("left", space)
    assert len(spaces) == 2 + project_b  # the second layer of the mlp is square
    twin.projecting = False  # it sees its parameters as they are
    fits = [torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], lr=0.05),
            Projected([p for p in twin.parameters() if p.requires_grad], spaces, lr=0.05)]
    for _ in range(6):
        losses = []
        for one, fit in zip((strategy, twin), fits, strict=True):
            fit.zero_grad()
            losses.append(one.loss(as_batch(task)))
            losses[-1].backward()
            fit.step()
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
    x = inputs(dtype=torch.float64)
    seen = answer(strategy, None, x).logits
    torch.testing.assert_close(seen, answer(twin, None, x).logits, rtol=1e-8, atol=1e-10)
    features = strategy.model.features(x, strategy.projected()).detach()
    strategy.after_task(task)
    assert strategy.projected() == {}
    torch.testing.assert_close(strategy.model.features(x).detach(), features, rtol=1e-12, atol=1e-12)


def test_an_input_outside_the_space_is_answered_as_before():
    model = Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), nn.Identity())], nn.Linear(5, 6)).double()
    strategy = make(model=model, threshold=1.0)
    learn(strategy, double(make_task(0)))
    task = double(make_task(1))
    flat = task.train.x.flatten(1)
    outside = torch.linalg.svd(flat, full_matrices=True)[2][len(flat):].reshape(-1, 1, 8, 8)  # orthogonal to all
    begin(strategy, task)
    start, layer = strategy.model.features(outside, strategy.projected()).detach(), strategy.adapted["blocks.0.body.1"]
    a = layer.lora_A[-1].weight.detach().clone()
    train(strategy, task, lr=5.0)
    strategy.after_task(task)
    b = layer.lora_B[-1].weight.detach()
    torch.testing.assert_close(strategy.model.features(outside).detach(),
                               start + outside.flatten(1) @ a.T @ b.T, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(layer.lora_A[-1].weight, a)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_earlier_adapters_stay_bit_for_bit(kind):
    strategy = make(kind)
    learn(strategy, double(make_task(0)))
    old = [p.clone() for layer in strategy.adapted.values() for p in layer.parameters_of(0).values()]
    learn(strategy, double(make_task(1)))
    now = [p for layer in strategy.adapted.values() for p in layer.parameters_of(0).values()]
    assert all(torch.equal(p, was) for p, was in zip(now, old, strict=True))
    assert all(layer.lora_B[1].weight.any() for layer in strategy.adapted.values())


def triplet_by_hand(features, labels, centers, margin):
    """Return the loss by loops over samples, as the definition goes; centers are other classes' means by label."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    total = 0.0
    for i, y in enumerate(labels):
        distances = np.linalg.norm(unit - unit[i], axis=1)
        others = [*distances[labels != y], *(np.linalg.norm(unit[i] - c / np.linalg.norm(c))
                                             for own, c in centers.items() if own != y)]
        if others:
            total += max(0.0, distances[labels == y].max() - min(others) + margin)
    return total / len(labels)


@pytest.mark.parametrize("labels", [[2, 3, 2, 3, 3], [2, 2, 2, 2, 2], [0, 2, 0, 2, 3]])
@pytest.mark.parametrize("known", [[], [0, 1]])
def test_the_triplet_loss_by_hand(labels, known):
    strategy, generator = make(margin=0.3), torch.Generator().manual_seed(3)
    features = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    for c in known:
        strategy.means[c] = torch.randn(12, generator=generator, dtype=torch.float64)
        strategy.counts[c] = 4
    expected = triplet_by_hand(features.numpy(), np.array(labels), {c: strategy.means[c].numpy() for c in known}, 0.3)
    features.requires_grad_(True)
    found = strategy.triplet(features, torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    gradient, = torch.autograd.grad(found, features)
    assert torch.isfinite(gradient).all()


def test_under_bf16_the_triplet_loss_and_its_gradient_are_those_of_float32():
    strategy = make(margin=0.3).float()
    features = 1 + 0.1 * torch.randn(6, 12, generator=torch.Generator().manual_seed(3))  # close to each other
    y = torch.tensor([2, 3, 2, 3, 3, 2])

    x = features.bfloat16().requires_grad_()
    expected = strategy.triplet(x.float(), y)
    with torch.autocast("cpu", torch.bfloat16):
        found = strategy.triplet(x, y)
    assert torch.equal(found, expected)
    gradient, = torch.autograd.grad(found, x)
    assert torch.equal(gradient, *torch.autograd.grad(expected, x)) and gradient.any()


def test_the_loss_adds_the_triplet_loss_to_the_cross_entropy_of_the_own_classes():
    strategy = make(strength=0.7)
    for i in range(2):
        learn(strategy, double(make_task(i)))
    task = double(make_task(2))
    begin(strategy, task)
    features = strategy.model.features(task.train.x)
    own = nn.functional.cross_entropy(strategy.model.head(features)[:, 4:], task.train.y - 4)
    strategy.class_mask[:] = torch.block_diag(*[torch.ones(1, 2, dtype=torch.bool)] * 3)
    expected = own + 0.7 * strategy.triplet(features, task.train.y)
    torch.testing.assert_close(strategy.loss(as_batch(task)), expected)
    assert strategy.outputs == "own"


def test_the_nearest_unit_mean_answers_and_means_stay_as_they_were_taken():
    strategy, x = make(), inputs(dtype=torch.float64)
    torch.testing.assert_close(answer(strategy, None, x).logits, strategy.model(x).detach())
    taken = []
    for i in range(2):
        task = double(make_task(i))
        learn(strategy, task)
        features = strategy.model.features(task.train.x).detach()
        taken += [features[task.train.y == c].mean(0) for c in task.classes]
    means = torch.stack(taken)
    torch.testing.assert_close(strategy.means[:4], means)
    unit = nn.functional.normalize(strategy.model.features(x).detach())
    expected = -(unit[:, None] - nn.functional.normalize(means)).norm(dim=2)
    logits = answer(strategy, None, x).logits
    torch.testing.assert_close(logits[:, :4], expected)
    assert logits[:, 4:].isneginf().all()


def test_a_class_that_returns_has_the_mean_of_all_its_samples():
    strategy, sums, count = make(scenario="domain"), 0.0, 0
    for i, size in enumerate((24, 10)):
        task = double(make_task(i, classes=(0, 1), count=size))
        learn(strategy, task)
        own = strategy.model.features(task.train.x).detach()[task.train.y == 1]
        sums, count = sums + own.sum(0), count + len(own)
    torch.testing.assert_close(strategy.means[1], sums / count)
    assert strategy.counts.tolist() == [17, 17, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_two_seeds_stacked_equal_one_by_one(kind):
    check_stacking(lambda seed: LoRASub(make_model(kind, seed=seed), make_stream_info("class"),
                                        LoRASubOptions(rank=2, base="random")))


def test_a_given_task_that_is_not_learned_yet_has_the_logits_of_the_head():
    strategy = make(scenario="task")
    learn(strategy, double(make_task(0)))
    x = double(make_task(1)).train.x
    found = [strategy.eval().predict(x, task).logits for task in (0, 1)]
    torch.testing.assert_close(found[1], strategy.model(x))
    assert torch.isinf(found[0]).any() and torch.isfinite(found[1]).all()
    begin(strategy, double(make_task(1)))  # while it is trained, too
    found = strategy.eval().predict(x, 1).logits
    torch.testing.assert_close(found, strategy.model.head(strategy.model.features(x, strategy.projected())))
