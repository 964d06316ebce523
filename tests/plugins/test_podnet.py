"""`podnet`: similarities, the losses of both phases, clusters and exemplars, by hand."""

import math

import numpy as np
import pytest
import torch
from clbench_podnet import PODNetOptions
from clbench_podnet.head import ProxyHead, clustered
from clbench_podnet.strategy import PODNet, stage_maps
from helpers.methods import CLASSES, activate, move
from torch import nn

from clbench.data.samples import Samples
from clbench.models.builtin import ResNetCIFAR10Options
from clbench.models.network import Block, Network
from clbench.models.small import GlobalAverage, resnet20
from clbench.strategy.base import Batch, StreamInfo, Task
from clbench.strategy.granted import PhaseSpec

IMAGE = (2, 6, 6)


def model():
    """Return two convolutions with one shape of maps and a third with another."""
    return Network([Block(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()), Block(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()),
                    Block(nn.Conv2d(3, 5, 3, 2, 1), nn.Sequential(nn.ReLU(), GlobalAverage()))], nn.Linear(5, CLASSES))


def task(index, count=12):
    g = torch.Generator().manual_seed(index)
    y = torch.arange(count) % 2 + 2 * index
    x = torch.randn(count, *IMAGE, generator=g, dtype=torch.float64) + y.view(-1, 1, 1, 1) / 3
    return Task(index, (2 * index, 2 * index + 1), Samples(x, y, torch.full((count,), index)))


def third_task(scenario="class", **options):
    """Return a strategy that begins its third task with moved weights, and a batch with exemplars."""
    torch.manual_seed(0)
    stream_info = StreamInfo(CLASSES, 3, scenario, IMAGE, torch.Generator().manual_seed(0), prepare=torch.Tensor.double)
    strategy = PODNet(model(), stream_info, PODNetOptions(**{"capacity": 12, "proxies": 3, **options})).double()
    for index in range(3):
        activate(strategy, index)
        strategy.before_task(task(index))
        strategy.before_phase(task(index), PhaseSpec(0, 3, 0.1))
        if index < 2:
            move(strategy, index)
            strategy.after_task(task(index))
    new = task(2).train
    b = strategy.prepare_batch(Batch(new.x, new.y, new.tasks, 2))
    assert b.replayed
    move(strategy, 9)
    return strategy, b


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def similarity(features, proxies):
    """Return the weighted average of the cosines of each sample with the proxies of each class, in numpy."""
    cosines = np.einsum("nd,ckd->nck", unit(features), unit(proxies))
    weights = np.exp(cosines) / np.exp(cosines).sum(2, keepdims=True)
    return (weights * cosines).sum(2)


def nca(scores, y, seen, form, margin):
    """Return the NCA loss of scores [N, C], sample by sample."""
    losses = []
    for row, c, compete in zip(scores, y, seen, strict=True):
        others = sum(math.exp(row[i]) for i in compete if i != c)
        if form == "code":
            losses.append(math.log(others + math.exp(max(row[compete]))) - row[c])
        else:
            losses.append(max(0.0, -math.log(math.exp(row[c] - margin) / others)))
    return sum(losses) / len(losses)


def pooled_distance(maps, old):
    """Return POD-spatial of the maps [N, C, H, W] of one stage, sample by sample."""
    total = 0.0
    for a, b in zip(maps, old, strict=True):
        vectors = [np.concatenate([(m**2).sum(2).ravel(), (m**2).sum(1).ravel()]) for m in (a, b)]
        total += np.linalg.norm(unit(vectors[0]) - unit(vectors[1]))
    return total / len(maps)


def outputs(network, x):
    """Return the convolutions' outputs, before the activation, and the features without the last ReLU, in numpy."""
    with torch.no_grad():
        first = network.blocks[0].body(x)
        second = network.blocks[1].body(first.relu())
        third = network.blocks[2].body(second.relu())
    return [m.numpy() for m in (first, second, third)], third.mean((2, 3)).numpy()


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_loss_is_that_of_the_formulas(scenario, form):
    margin = {"margin": 0.4} if form == "paper" else {}
    strategy, b = third_task(scenario, nca=form, **margin, spatial=3.5, flat=0.7, eta=1.3)
    maps, features = outputs(strategy.model, b.x)
    old_maps, old_features = outputs(strategy.old, b.x)
    proxies = strategy.model.head.weight.detach().numpy().copy()
    assert not np.allclose(proxies[:4], strategy.old.head.weight.numpy()[:4])
    proxies[:4] = strategy.old.head.weight.numpy()[:4]
    eta = strategy.head.scale.item()
    seen = [list(range(6)) if scenario == "class" else [2 * t, 2 * t + 1] for t in b.tasks.tolist()]
    expected = nca(eta * similarity(features, proxies), b.y.tolist(), seen, form, eta * 0.4)
    spatial = np.mean([pooled_distance(maps[i], old_maps[i]) for i in (1, 2)])  # the first two have maps of one shape
    flat = np.mean(1 - (unit(features) * unit(old_features)).sum(1))
    expected += math.sqrt(6 / 2) * (3.5 * spatial + 0.7 * flat)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-10)


def test_the_code_s_loss_is_cross_entropy_where_the_label_has_the_largest_score():
    strategy, _ = third_task()
    scores, y = torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0])
    torch.testing.assert_close(strategy.nca(scores, y), nn.functional.cross_entropy(scores, y))
    assert strategy.nca(scores, torch.tensor([1])) > nn.functional.cross_entropy(scores, torch.tensor([1]))


def test_a_label_without_competitors_costs_nothing():
    strategy, _ = third_task(nca="paper")
    scores = torch.tensor([[0.5, -math.inf]], requires_grad=True)
    loss = strategy.nca(scores, torch.tensor([0]))
    gradient, = torch.autograd.grad(loss, scores)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros(1, 2))


def test_old_proxies_stay_until_all_proxies_alone_are_fine_tuned():
    strategy, b = third_task()
    assert strategy.phases(task(0)) == 1 and strategy.phases(task(2)) == (0.9, 0.1)
    weight = strategy.model.head.weight
    gradient, = torch.autograd.grad(strategy.loss(b), weight)
    assert (gradient[:4] == 0).all() and (gradient[4:] != 0).all()
    assert strategy.trainable() == sum(p.numel() for p in strategy.model.parameters()) - 4 * 3 * 5
    assert strategy.learning_rates() == {"model.head.scale": pytest.approx(1.0)}
    old = strategy.old.head.weight.clone()
    strategy.before_phase(task(2), PhaseSpec(1, 3, 0.1))
    assert torch.equal(weight[:4], old[:4])  # what weight decay has moved is put back
    learning = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    assert set(learning) == {"model.head.weight"} and strategy.trainable() == weight.numel()
    assert strategy.learning_rates() == {"model.head.weight": 0.5}
    strategy.train()
    assert not strategy.model.blocks.training and strategy.model.head.training
    memory = strategy.phase_samples(task(2), PhaseSpec(1, 3, 0.1))
    assert memory.y.bincount().tolist() == [2] * 6  # 12 exemplars of 6 classes
    exemplars = Batch(memory.x, memory.y, memory.tasks, 2)
    assert strategy.prepare_batch(exemplars) is exemplars
    scores = strategy.head.scale.item() * similarity(outputs(strategy.model, memory.x)[1], weight.detach().numpy())
    expected = nca(scores, memory.y.tolist(), [list(range(6))] * 12, "code", 0)
    assert strategy.loss(exemplars).item() == pytest.approx(expected, rel=1e-10)
    move(strategy, 3)
    tuned = weight.detach().clone()
    strategy.after_task(task(2))
    assert torch.equal(weight, tuned) and torch.equal(strategy.old.head.weight, tuned)
    assert torch.equal(strategy.memory.x, memory.x) and strategy.sizes == [2] * 6


def test_exemplars_are_the_same_without_fine_tuning():
    chosen = []
    for share in (0.0, 0.2):
        strategy, _ = third_task(finetune_steps=share)
        if share:
            strategy.before_phase(task(2), PhaseSpec(1, 3, 0.1))
        strategy.after_task(task(2))
        chosen.append(strategy.memory.x)
    assert strategy.sizes == [2] * 6
    torch.testing.assert_close(*chosen)


def test_clusters_are_those_of_well_separated_features():
    g = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).double()
    member = torch.arange(30) % 3
    features = places[member] + torch.randn(30, 2, generator=g).double() / 10
    best = math.inf, None
    for _ in range(5):  # k-means may end in a local minimum
        centers = clustered(features, torch.rand(30, generator=g), 3)
        cost = torch.cdist(features, centers).amin(1).square().sum().item()
        best = min(best, (cost, centers), key=lambda pair: pair[0])
    expected = torch.stack([features[member == i].mean(0) for i in range(3)])
    torch.testing.assert_close(best[1][best[1][:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_each_center_is_the_mean_of_the_features_that_are_nearest_to_it():
    g = torch.Generator().manual_seed(1)
    features = torch.randn(40, 3, generator=g).double()
    centers = clustered(features, torch.rand(40, generator=g), 4)
    nearest = torch.cdist(features, centers).argmin(1)
    torch.testing.assert_close(centers, torch.stack([features[nearest == k].mean(0) for k in range(4)]))


def test_a_class_with_fewer_samples_than_proxies_has_some_of_them_twice():
    centers = clustered(torch.eye(3, dtype=torch.float64)[:2], torch.tensor([0.1, 0.9]), 4)
    assert centers.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_proxies_of_new_classes_begin_at_clusters_with_the_length_of_old_ones(monkeypatch):
    strategy, _ = third_task(imprint=False)
    drawn = strategy.head.weight.detach().clone()
    sizes = []
    monkeypatch.setattr("clbench_podnet.strategy.clustered", lambda *a: sizes.append(len(a[0])) or clustered(*a))
    strategy.imprint(task(2), [4, 5])
    assert sizes == [len(task(2).train) // 2] * 2  # a class at a time
    weight = strategy.head.weight.detach()
    assert torch.equal(weight[:4], drawn[:4])
    length = drawn[strategy.met].norm(dim=2).mean()
    with torch.no_grad():
        strategy.eval()
        features = nn.functional.normalize(strategy.model.features(task(2).train.x))
    for c in (4, 5):
        own = features[task(2).train.y == c]
        centers = weight[c] / length
        nearest = torch.cdist(own, centers).argmin(1)
        for k in nearest.unique():
            torch.testing.assert_close(centers[k], own[nearest == k].mean(0))


def test_one_proxy_is_a_cosine_head_and_stages_of_a_resnet_are_its_own():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double()
    x = torch.randn(3, 5).double()
    expected = 2.5 * nn.functional.cosine_similarity(x[:, None], linear.weight.detach()[None], dim=2)
    torch.testing.assert_close(ProxyHead(linear, 2.5, 1)(x), expected)
    maps, features = stage_maps(resnet20(ResNetCIFAR10Options(width=2), (3, 8, 8), 4), torch.randn(2, 3, 8, 8))
    assert [m.shape[1:] for m in maps] == [(2, 8, 8), (4, 4, 4), (8, 2, 2)] and features.shape == (2, 8)


def test_a_network_without_maps_distills_features_alone_and_says_so():
    vectors = Network([Block(nn.Flatten(), nn.Identity()), Block(nn.Linear(72, 5), nn.ReLU())], nn.Linear(5, CLASSES))
    stream_info = StreamInfo(CLASSES, 3, "class", IMAGE, torch.Generator())
    assert PODNet(vectors, stream_info).notes == [
        "podnet: no block has feature maps, so features alone are distilled (flat)"]
    assert not PODNet(model(), stream_info).notes
