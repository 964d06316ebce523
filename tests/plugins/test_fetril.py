"""`fetril`: means, pseudo-features and the loss on them by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_fetril import FeTrILOptions
from clbench_fetril.strategy import FeTrIL, nearest
from helpers.methods import CLASSES, activate, batch, deep_model, make, move, task
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.strategy.base import Task


def mean_features(strategy, index):
    """Return the class means of a task in numpy, by class."""
    train = task(index).train
    with torch.no_grad():
        features = strategy.model.blocks[1](train.x.flatten(1)).numpy()
    return {c: features[train.y.numpy() == c].mean(0) for c in sorted(set(train.y.tolist()))}


def two_tasks(scenario="class", by="cosine"):
    """Return a strategy that begins its third task; its network was moved in the first."""
    strategy = make(FeTrIL, FeTrILOptions(base="task1", nearest=by), scenario, deep_model)
    for index in range(3):
        if scenario == "class":
            activate(strategy, index)
        strategy.before_task(task(index))
        move(strategy, index)
        if index < 2:
            strategy.after_task(task(index))
    return strategy


@pytest.mark.parametrize("by", ["cosine", "euclidean"])
def test_means_and_the_new_class_that_lends_its_features(by):
    strategy = two_tasks(by=by)
    means = {c: m for index in range(3) for c, m in mean_features(strategy, index).items()}
    np.testing.assert_allclose(strategy.means.numpy(), [means[c] for c in range(6)], rtol=1e-12)
    assert strategy.old.tolist() == [True] * 4 + [False] * 2 and strategy.counts.tolist() == [6] * 6
    for c in range(4):
        if by == "cosine":
            score = [means[c] @ means[n] / np.linalg.norm(means[c]) / np.linalg.norm(means[n]) for n in (4, 5)]
        else:
            score = [-np.linalg.norm(means[c] - means[n]) for n in (4, 5)]
        assert strategy.nearest[c] == 4 + int(np.argmax(score))


def test_cosine_and_distance_can_choose_different_classes():
    means = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    new = torch.tensor([False, True, True])
    assert (nearest(means, new, "cosine")[0], nearest(means, new, "euclidean")[0]) == (1, 2)


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_is_that_of_new_features_and_of_moved_ones(scenario):
    strategy = two_tasks(scenario)
    b = batch(2, 7)
    head = copy.deepcopy(strategy.model.head)
    with torch.no_grad():
        features = strategy.model.features(b.x)
    rows, labels = [*features], b.y.tolist()
    for c in range(4):
        lender = int(strategy.nearest[c])
        for f, y in zip(features, b.y.tolist(), strict=True):
            if y == lender:
                rows.append(f + strategy.means[c] - strategy.means[lender])
                labels.append(c)
    assert len(rows) > 7
    losses = []
    for row, label in zip(rows, labels, strict=True):
        outputs = slice(0, CLASSES) if scenario == "class" else slice(label // 2 * 2, label // 2 * 2 + 2)
        losses.append(F.cross_entropy(head(row)[outputs], torch.tensor(label - outputs.start)))
    expected = torch.stack(losses).mean()
    loss = strategy.loss(b)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    learning = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    assert list(learning) == ["model.head.weight", "model.head.bias"]
    for ours, theirs in zip(torch.autograd.grad(loss, list(learning.values())),
                            torch.autograd.grad(expected, list(head.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_no_tensor_of_the_loss_has_samples_times_classes_squared():
    class Largest(TorchDispatchMode):
        """Records the largest number of values of a tensor."""

        values = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.values = max(self.values, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    strategy, b = two_tasks(), batch(2, 50)
    with Largest() as largest:
        strategy.loss(b).backward()
    assert 50 * CLASSES <= largest.values < 50 * CLASSES**2


def test_the_moved_features_have_the_mean_of_the_old_class_exactly():
    strategy = two_tasks()
    train = task(2).train
    with torch.no_grad():
        features = strategy.model.features(train.x)
    for c in range(4):
        lender = int(strategy.nearest[c])
        moved = features[train.y == lender] + strategy.means[c] - strategy.means[lender]
        torch.testing.assert_close(moved.mean(0), strategy.means[c], rtol=1e-12, atol=1e-12)


def test_a_class_that_comes_again_is_not_old_and_its_mean_covers_all_its_samples():
    strategy = make(FeTrIL, FeTrILOptions(base="random"), "class", deep_model)
    activate(strategy, 2)
    strategy.before_task(task(0))
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {"model.head.weight", "model.head.bias"}
    strategy.after_task(task(0))
    again = task(0, 20).train
    strategy.before_task(Task(1, (0, 1), again))
    both = torch.cat([task(0).train.x, again.x]), torch.cat([task(0).train.y, again.y])
    with torch.no_grad():
        features = strategy.model.features(both[0])
    torch.testing.assert_close(strategy.means[1], features[both[1] == 1].mean(0), rtol=1e-12, atol=1e-12)
    assert not strategy.old.any() and strategy.counts.tolist() == [16, 16, 0, 0, 0, 0]
    b = batch(0)
    b = type(b)(b.x, b.y, b.tasks, 1)
    torch.testing.assert_close(strategy.loss(b), F.cross_entropy(strategy.model(b.x), b.y))
