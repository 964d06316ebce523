"""`fecam`: against the formulas of the authors' code in numpy, with its pseudo-inverse, on the same features."""

import numpy as np
import pytest
import torch
from clbench_prototypes import FeCAMOptions, NCMOptions
from clbench_prototypes.fecam import FeCAM, correlations, covariance, shrunk
from clbench_prototypes.ncm import NCM
from helpers.per_task import answer, begin, make_stream_info
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.models.network import Block, Network
from clbench.strategy.base import Task
from clbench.testing.tiny import MODELS
from clbench.training.costs import measure

D, C = 64, 6
CLASSES = [(4, 1), (0,), (3, 2, 5)]


def pixels():
    """Return a network whose features are its inputs, as they are."""
    return Network([Block(nn.Flatten(), nn.Identity())], nn.Linear(D, C))


def positive(count, seed):
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    mixed = x.flatten(1) @ torch.rand(D, D, generator=torch.Generator().manual_seed(seed + 50)) ** 4
    return mixed.view(count, 1, 8, 8) / 10


def tasks_of(make, each=20, classes=CLASSES):
    made = []
    for index, own in enumerate(classes):
        x = torch.cat([make(each + 3 * c, c) for c in own])
        y = torch.cat([torch.full((each + 3 * c,), c) for c in own])
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(index))
        made.append(Task(index, own, Samples(x[order], y[order], torch.full((len(y),), index))))
    return made


def learned(tasks, model=None, scenario="class", cls=FeCAM, options=None):
    strategy = cls(model or pixels(), make_stream_info(scenario), options or FeCAMOptions(base="random"))
    for task in tasks:
        begin(strategy, task)
        strategy.before_phase(task, 0)
        strategy.after_task(task)
    return strategy


def by_class(tasks, features=lambda x: x.flatten(1).double()):
    x, y = (torch.cat([getattr(t.train, part) for t in tasks]) for part in ("x", "y"))
    with torch.no_grad():
        f = features(x).double().numpy()
    return [f[y.numpy() == c] for c in range(C)]


def theirs_shrunk(cov, alpha1, alpha2):
    off = cov.copy()
    np.fill_diagonal(off, 0)
    mean_off = off.sum() / (off != 0).sum()
    identity = np.eye(len(cov))
    return cov + alpha1 * np.mean(np.diagonal(cov)) * identity + alpha2 * mean_off * (1 - identity)


def theirs_normalized(cov):
    deviation = np.sqrt(np.diagonal(cov))
    return cov / np.outer(deviation, deviation)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mahalanobis(away, matrix):
    return np.einsum("nd,de,ne->n", away, np.linalg.pinv(matrix), away)


@pytest.mark.parametrize(("options", "alphas", "times", "power"), [
    ({}, (1, 1), 1, 0.5), ({"alpha1": 3, "alpha2": 3}, (1, 1), 2, 0.5),  # twice, as their CIFAR-100
    ({"alpha1": 10, "alpha2": 2, "tukey": 0.3}, (10, 2), 1, 0.3)])
def test_the_distance_is_that_of_the_authors_code_for_convolutional_networks(options, alphas, times, power):
    tasks = tasks_of(positive)
    strategy = learned(tasks, options=FeCAMOptions(base="random", **options))
    x = positive(9, 77)
    expected = np.empty((9, C))
    for c, own in enumerate(by_class(tasks)):
        cov = np.cov((own**power).T)
        assert (cov != 0).all()
        for _ in range(times):
            cov = theirs_shrunk(cov, *alphas)
        away = unit(x.flatten(1).double().numpy() ** power) - unit(own.mean(0) ** power)
        expected[:, c] = mahalanobis(away, theirs_normalized(cov))
    np.testing.assert_allclose(-answer(strategy, x=x).logits.numpy(), expected, rtol=1e-8)


def test_the_distance_is_that_of_the_authors_scripts_for_vision_transformers():
    torch.manual_seed(0)
    model = MODELS["vit"]((1, 8, 8), C)
    tasks = tasks_of(positive)
    strategy = learned(tasks, model)
    assert "fecam: tukey = 1 and alpha2 = 0 on this network" in strategy.notes
    x = positive(9, 77)
    classes = [unit(own) for own in by_class(tasks, model.eval().features)]
    assert min(own.min() for own in classes) < 0
    with torch.no_grad():
        f = unit(model.features(x).double().numpy())
    expected = np.stack([mahalanobis(f - own.mean(0), theirs_normalized(theirs_shrunk(np.cov(own.T), 1, 0)))
                         for own in classes], 1)
    np.testing.assert_allclose(-answer(strategy, x=x).logits.numpy(), expected, rtol=1e-8)


def test_a_common_covariance_is_the_running_mean_of_the_tasks():
    tasks = tasks_of(positive)
    strategy = learned(tasks, options=FeCAMOptions(base="random", covariance="common"))
    common, known = np.zeros((D, D)), 0
    for task in tasks:
        total = known + len(task.classes)
        cov = theirs_shrunk(np.cov(task.train.x.flatten(1).double().sqrt().T), 1, 1)
        common, known = common * known / total + cov * (1 - known / total), total
    x = positive(9, 77)
    expected = np.stack([mahalanobis(unit(x.flatten(1).double().sqrt().numpy()) - unit(own.mean(0) ** 0.5), common)
                         for own in by_class(tasks)], 1)
    np.testing.assert_allclose(-answer(strategy, x=x).logits.numpy(), expected, rtol=1e-8)


def test_classes_that_differ_in_their_correlations_alone_are_told_apart():
    def pairs(count, label):  # means alike; neighbors rise together in even classes, against each other in odd ones
        drawn = torch.randn(count, D // 2, generator=torch.Generator().manual_seed(label))
        both = torch.stack([drawn, drawn * (1 - 2 * (label % 2))], 2).flatten(1)
        return (1 + 0.1 * both).clamp(min=0.1).view(count, 1, 8, 8)

    tasks = tasks_of(pairs, 60, [(0,), (1,)])
    right = {}
    for cls, options in ((FeCAM, FeCAMOptions(base="random")), (NCM, NCMOptions(base="random"))):
        strategy = learned(tasks, cls=cls, options=options)
        right[cls] = np.mean([(answer(strategy, x=pairs(100, label)[60 + 3 * label:]).logits.argmax(1) == label)
                              .double().mean() for label in (0, 1)])
    assert right[FeCAM] == 1 and right[NCM] < 0.75


def test_dead_features_leave_a_distance():
    def sparse(count, seed):
        x = positive(count, seed).flatten(1)
        x[:, 2:] = 0
        x[:, 1] = x[:, 0]  # the only two that live rise together: V2 over the entries that are not 0 exceeds V1
        return x.view(count, 1, 8, 8)

    tasks = tasks_of(sparse)
    cov = np.cov((by_class(tasks)[0] ** 0.5).T)
    assert np.linalg.eigvalsh(theirs_shrunk(cov, 1, 1)).min() < 0  # as the authors' code averages
    strategy = learned(tasks)
    assert all(torch.linalg.eigvalsh(strategy.metric(place)).min() > 0 for place in range(C))
    assert (answer(strategy, x=positive(9, 77)).logits < 0).all()


def test_a_class_of_one_sample_is_as_far_as_in_a_straight_line():
    tasks = tasks_of(positive, classes=[(0, 1)])
    alone = tasks[0].train.take(torch.nonzero(tasks[0].train.y == 0)[:1, 0])
    tasks.append(Task(1, (2,), Samples(alone.x, torch.tensor([2]), torch.tensor([1]))))
    x = positive(9, 77)
    points = [unit(f.flatten(1).double().sqrt().numpy()) for f in (x, alone.x)]
    np.testing.assert_allclose(-answer(learned(tasks), x=x).logits[:, 2].numpy(),
                               np.square(points[0] - points[1]).sum(1), rtol=1e-9)


def test_a_class_that_comes_back_is_one_class():
    one, two = tasks_of(positive, classes=[(0, 1)] * 2), tasks_of(positive, classes=[(0, 1)])
    again = learned([one[0], Task(1, (0, 1), positive_again := tasks_of(lambda n, c: positive(n, c + 9),
                                                                        classes=[(0, 1)])[0].train)], scenario="domain")
    whole = learned([Task(0, (0, 1), two[0].train.concat(two[0].train, positive_again))], scenario="domain")
    for place in range(2):
        torch.testing.assert_close(again.metric(place), whole.metric(place), rtol=1e-10, atol=1e-12)


def test_a_matrix_is_kept_for_each_class_met():
    network = D * C + C
    for met, part in enumerate(([], CLASSES[:1], CLASSES[:2], CLASSES)):
        strategy = learned(tasks_of(positive, classes=part))
        kept = measure(strategy)
        count = sum(map(len, part))
        assert kept.parameters == {"base": network} and strategy.learned == met
        moments = {"second moments": 8 * count * D * D} if count else {}
        assert {k: v for k, v in kept.bytes.items() if v} == {"base": 4 * network, "prototypes": 8 * (2 * C * D + C),
                                                              **moments}
    common = measure(learned(tasks_of(positive), options=FeCAMOptions(base="random", covariance="common")))
    assert common.bytes == {"base": 4 * network, "prototypes": 8 * (C * D + C), "second moments": 8 * (D * D + 1)}


def test_helpers_by_hand():
    x = torch.tensor([[1.0, 4.0], [3.0, 0.0], [5.0, 2.0]], dtype=torch.float64)
    cov = covariance(torch.tensor(3.0), x.sum(0), x.T @ x)
    torch.testing.assert_close(cov, torch.tensor([[4.0, -2], [-2, 4]], dtype=torch.float64))
    torch.testing.assert_close(shrunk(cov, 1, 0.5), torch.tensor([[8.0, -3], [-3, 8]], dtype=torch.float64))
    torch.testing.assert_close(correlations(cov), torch.tensor([[1, -0.5], [-0.5, 1]], dtype=torch.float64))


def test_alpha2_stays_below_alpha1():
    plan(build({"methods": ["fecam:alpha2=1", "fecam:alpha1=0.5"]}), discover())
    with pytest.raises(SpecError, match=r"alpha2 = 2 is above alpha1 = 1; .* choose alpha2 <= alpha1"):
        plan(build({"methods": ["fecam:alpha2=2"]}), discover())
