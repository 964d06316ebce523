"""`dynamic-er`: logits, losses, alignment, exemplars and growth by hand."""

import numpy as np
import pytest
import torch
from clbench_dynamic_er import DynamicEROptions
from clbench_dynamic_er.strategy import DynamicER
from helpers.methods import CLASSES, activate, batch, deep_model, linear_model, make, move, task
from torch import nn

from clbench.core.errors import SpecError
from clbench.models.network import Block, Network
from clbench.strategy.base import Task
from clbench.strategy.herding import herding

WIDTH = 7


def third_task(scenario="class", **options):
    """Return a strategy in its third task, with weights that moved in each, and a batch with exemplars."""
    strategy = make(DynamicER, DynamicEROptions(**{"capacity": 12, **options}), scenario, deep_model)
    for index in range(3):
        activate(strategy, index)
        strategy.before_task(task(index))
        move(strategy, index)
        if index < 2:
            strategy.after_task(task(index))
    b = strategy.prepare_batch(batch(2))
    assert b.replayed
    return strategy, b


def features(blocks, x):
    """Return the features of one extractor, in numpy."""
    layer = blocks[1].body
    return np.tanh(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())


def whole_head(strategy):
    """Return the weights of the whole head [C, 3 D] in numpy."""
    weights = [strategy.model.head.weight, *(part.weight for part in strategy.parts)]
    return np.concatenate([weight.detach().numpy() for weight in weights], 1)


def all_features(strategy, x):
    return [features(blocks, x) for blocks in (strategy.model.blocks, *strategy.extractors)]


def cross_entropy(row, label, among):
    return np.log(np.exp(row[among]).sum()) - row[label]


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_is_that_of_one_head_on_all_features_and_of_the_auxiliary_head(scenario):
    strategy, b = third_task(scenario, auxiliary=0.7)
    parts = all_features(strategy, b.x.numpy())
    logits = np.concatenate(parts, 1) @ whole_head(strategy).T + strategy.model.head.bias.detach().numpy()
    auxiliary = parts[2] @ strategy.auxiliary.weight.detach().numpy().T + strategy.auxiliary.bias.detach().numpy()
    assert auxiliary.shape[1] == 3  # classes 4 and 5, and all others
    expected = 0.0
    for i, (c, t) in enumerate(zip(b.y.tolist(), b.tasks.tolist(), strict=True)):
        among = list(range(CLASSES)) if scenario == "class" else [2 * t, 2 * t + 1]
        expected += cross_entropy(logits[i], c, among)
        expected += 0.7 * cross_entropy(auxiliary[i], c - 4 if c >= 4 else 2, [0, 1, 2])
    assert set(b.y.tolist()) - {4, 5}
    assert strategy.loss(b).item() == pytest.approx(expected / len(b.y), rel=1e-12)
    with torch.no_grad():
        np.testing.assert_allclose(strategy.predict(b.x).logits.numpy(), logits, rtol=1e-12)


def test_a_new_extractor_is_a_copy_of_the_latest_and_earlier_ones_stay():
    strategy = make(DynamicER, DynamicEROptions(capacity=12), "class", deep_model)
    sizes = []
    for index in range(3):
        activate(strategy, index)
        strategy.before_task(task(index))
        columns = [strategy.model.blocks, *strategy.extractors]
        assert len(columns) == index + 1 and len(strategy.parts) == index
        if index:
            for new, old in zip(columns[-1].parameters(), columns[-2].parameters(), strict=True):
                assert torch.equal(new, old) and new is not old
        earlier = [p.detach().clone() for blocks in columns[:-1] for p in blocks.parameters()]
        learning = {n.split(".")[0] for n, p in strategy.named_parameters() if p.requires_grad}
        assert learning == ({"model"} if not index else {"model", "extractors", "parts", "auxiliary"})
        strategy.train()
        assert [blocks.training for blocks in columns] == [False] * index + [True]
        move(strategy, index)
        assert all(torch.equal(p, q) for p, q in zip(
            earlier, (p for blocks in columns[:-1] for p in blocks.parameters()), strict=True))
        extractor, head = 5 * WIDTH + WIDTH, CLASSES * WIDTH
        sizes.append(strategy.trainable())
        assert sizes[-1] == extractor + (index + 1) * head + CLASSES + (3 * (WIDTH + 1) if index else 0)
        strategy.after_task(task(index))


def test_new_weights_are_scaled_to_the_mean_length_of_old_ones():
    strategy, _ = third_task()
    before = whole_head(strategy)
    lengths = np.linalg.norm(before, axis=1)
    gamma = lengths[:4].mean() / lengths[4:].mean()
    bias = strategy.model.head.bias.detach().clone()
    strategy.after_task(task(2))
    np.testing.assert_allclose(whole_head(strategy), np.concatenate([before[:4], gamma * before[4:]]), rtol=1e-12)
    assert torch.equal(strategy.model.head.bias, bias) and gamma != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("scenario", "options"), [("task", {}), ("class", {"align_weights": False})])
def test_weights_stay_where_no_old_class_competes_or_nobody_wants_it(scenario, options):
    strategy, _ = third_task(scenario, **options)
    before = whole_head(strategy)
    strategy.after_task(task(2))
    np.testing.assert_array_equal(whole_head(strategy), before)


def test_exemplars_are_herded_on_the_features_of_all_extractors():
    strategy, _ = third_task()
    strategy.after_task(task(2))
    train = task(2).train
    together = np.concatenate(all_features(strategy, train.x.numpy()), 1)
    unit = torch.from_numpy(together / np.linalg.norm(together, axis=1, keepdims=True))
    for c in (4, 5):
        rows = (train.y == c).nonzero()[:, 0]
        expected = train.x[rows[herding(unit[rows], 2)]]
        assert torch.equal(strategy.memory_x[strategy.memory_y == c], expected)


def test_classes_that_return_are_old_for_the_alignment_and_the_tasks_own_for_the_auxiliary_head():
    strategy = make(DynamicER, DynamicEROptions(capacity=12), "class", deep_model)
    activate(strategy, 2)
    for index, classes in enumerate(((0, 1, 2), (0, 3))):
        train = task(0).train.relabeled(torch.tensor(classes).repeat(12)[:12], torch.full((12,), index))
        strategy.before_task(Task(index, classes, train))
        if not index:
            strategy.after_task(Task(index, classes, train))
    assert (strategy.old, strategy.new) == ([0, 1, 2], [3])
    assert strategy.auxiliary.place.tolist() == [0, 2, 2, 1, 2, 2]


def test_batch_norm_of_earlier_extractors_keeps_its_statistics():
    body = nn.Sequential(nn.Linear(5, WIDTH), nn.BatchNorm1d(WIDTH))
    strategy = make(DynamicER, DynamicEROptions(capacity=12), "class",
                    lambda: Network([Block(nn.Flatten(), nn.Identity()), Block(body, nn.ReLU())],
                                    nn.Linear(WIDTH, CLASSES)))
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        strategy.train()
        old = strategy.model.blocks[1].body[1].running_mean.clone()
        strategy.loss(strategy.prepare_batch(batch(index)))
        assert torch.equal(strategy.model.blocks[1].body[1].running_mean, old) == (index == 1)
        if not index:
            strategy.after_task(task(index))
    assert not torch.equal(strategy.extractors[0][1].body[1].running_mean, old)


def test_a_head_alone_is_refused():
    with pytest.raises(SpecError, match="dynamic-er adds layers before the head, and this model is a head alone"):
        make(DynamicER, DynamicEROptions(), "class", linear_model)
