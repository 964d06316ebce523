import math

import pytest
import torch
import torch.nn.functional as F
from clbench_icarl import ICaRLOptions
from clbench_icarl.strategy import ICaRL
from helpers.methods import CLASSES, activate, batch, deep_model, make, move, task

from clbench.core.errors import SpecError
from clbench.data.samples import StochasticSamples
from clbench.strategy.base import Batch, Task
from clbench.strategy.herding import herding
from clbench.training.costs import measure


def algorithm_4(features, count):
    """Pick as the paper writes it, from lists of numbers, nothing twice."""
    rows = [list(map(float, row)) for row in features]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    picked = []
    for k in range(1, min(count, len(rows)) + 1):
        def distance(x, k=k):
            together = [sum(rows[p][d] for p in [*picked, x]) / k for d in range(len(mean))]
            return sum((m - t)**2 for m, t in zip(mean, together, strict=True))
        picked.append(min((x for x in range(len(rows)) if x not in picked), key=distance))
    return picked


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "d", "count"), [(12, 3, 5), (30, 6, 11), (7, 4, 7), (4, 2, 9)])
def test_herding_is_the_papers_algorithm(n, d, count, seed):
    assert herding(unit(n, d, seed), count).tolist() == algorithm_4(unit(n, d, seed), count)


def test_herding_follows_the_mean_better_than_the_first_samples_do():
    features = unit(200, 8, 0)
    picked = features[herding(features, 10)].mean(0)
    assert (picked - features.mean(0)).norm() < 0.25 * (features[:10].mean(0) - features.mean(0)).norm()


def learned(scenario, tasks=2, capacity=10):
    strategy = make(ICaRL, ICaRLOptions(capacity=capacity), scenario, deep_model)
    for index in range(tasks):
        activate(strategy, index)
        strategy.before_task(task(index))
        move(strategy, index)
        strategy.after_task(task(index))
    return strategy


def test_the_capacity_is_shared_out_among_the_classes_and_the_first_of_each_stay():
    first, second, third = (learned("class", tasks) for tasks in (1, 2, 3))
    assert first.memory_y.tolist() == [0] * 5 + [1] * 5
    assert second.memory_y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and second.memory_tasks.tolist() == [0] * 4 + [1] * 4
    assert third.memory_y.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(second.memory_x[:4], first.memory_x[[0, 1, 5, 6]])
    assert torch.equal(third.memory_x[:4], second.memory_x[[0, 2, 4, 6]])
    assert [measure(s).replay_samples for s in (first, second, third)] == [10, 8, 6]


def test_exemplars_are_herded_by_the_features_of_the_network_as_it_is_after_the_task():
    strategy, samples = learned("class", 1), task(0).train
    of_class = samples.x[samples.y == 1]
    features = strategy.model.features(of_class).detach()
    picked = algorithm_4(features / features.norm(dim=1, keepdim=True), 5)
    assert torch.equal(strategy.memory_x[5:], of_class[picked])


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_nearest_mean_of_exemplars_answers(scenario):
    strategy, x = learned(scenario).eval(), torch.cat([task(0).train.x, task(1).train.x])
    logits = strategy(x, 1 if scenario == "task" else None)
    phi = [f / f.norm() for f in strategy.model.features(x)]
    for c in range(CLASSES):
        own = strategy.memory_x[strategy.memory_y == c]
        if not len(own):
            assert logits[:, c].eq(-math.inf).all()
            continue
        mean = torch.stack([f / f.norm() for f in strategy.model.features(own)]).mean(0)
        mean = mean / mean.norm()
        torch.testing.assert_close(logits[:, c], torch.stack([-(f - mean).norm() for f in phi]), rtol=1e-12, atol=0)


def test_the_network_answers_while_there_is_no_mean_that_could():
    strategy, x = make(ICaRL, ICaRLOptions(), "task", deep_model), batch(0).x
    assert torch.equal(strategy(x, 0), strategy.model(x)) and torch.equal(strategy(x), strategy.model(x))
    strategy = learned("task")
    assert torch.equal(strategy(x, 2), strategy.model(x)) and not torch.equal(strategy(x, 1), strategy.model(x))


def papers_loss(strategy, b, own, old):
    """Algorithm 3, output by output: labels for the outputs `own[task]` of each sample, the old network's for `old`."""
    g, q = strategy.model(b.x).sigmoid(), strategy.old(b.x).sigmoid()
    total = 0.0
    for i in range(len(b.y)):
        for c in old:
            total = total - q[i, c] * g[i, c].log() - (1 - q[i, c]) * (1 - g[i, c]).log()
        for c in own[int(b.tasks[i])]:
            total = total - (g[i, c].log() if c == b.y[i] else (1 - g[i, c]).log())
    return total / len(b.y)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_loss_is_the_papers(scenario):
    strategy = learned(scenario)
    activate(strategy, 2)
    strategy.before_task(task(2))
    b = strategy.prepare_batch(batch(2))
    assert b.replayed == 6 * 8 // 12 and set(b.tasks.tolist()) <= {0, 1, 2}
    move(strategy, 9)
    own = {2: [4, 5], **({0: [], 1: []} if scenario == "task" else {0: [4, 5], 1: [4, 5]})}
    expected = papers_loss(strategy, b, own, [0, 1, 2, 3])
    torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0)
    first = make(ICaRL, ICaRLOptions(), scenario, deep_model)
    activate(first, 0)
    first.before_task(task(0))
    assert not first.prepare_batch(batch(0)).replayed
    expected = papers_loss(first, batch(0), {0: [0, 1]}, [])
    torch.testing.assert_close(first.loss(batch(0)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 5, 7])
def test_over_a_pass_as_many_exemplars_are_replayed_as_there_are(size):
    strategy, train = learned("class"), task(2).train  # 8 exemplars, 12 samples
    activate(strategy, 2)
    for _ in range(2):
        strategy.before_task(task(2))
        for passes in range(1, 4):
            replayed = [strategy.prepare_batch(Batch(part.x, part.y, part.tasks, 2)).replayed
                        for part in train.chunks(size)]
            assert sum(replayed) == 8 and all(n in (8 * size // 12, 8 * size // 12 + 1) for n in replayed[:-1]), passes


def test_labels_teach_what_every_task_brings_anew():
    strategy = make(ICaRL, ICaRLOptions(capacity=18), "domain", deep_model)
    for index in range(2):
        strategy.class_mask[index] = True
        domain = Task(index, tuple(range(CLASSES)), task(index).train)
        strategy.before_task(domain)
        if index:
            b = strategy.prepare_batch(batch(1))
            assert b.replayed
            expected = papers_loss(strategy, b, {0: range(CLASSES), 1: range(CLASSES)}, [])
            torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0)
        move(strategy, index)
        strategy.after_task(domain)


def test_there_is_an_exemplar_of_every_class_or_none_starts():
    with pytest.raises(SpecError, match=r"capacity = 5 cannot hold an exemplar of each class .* at least 6"):
        make(ICaRL, ICaRLOptions(capacity=5), "class", deep_model)
    with pytest.raises(SpecError, match="at least 18"):
        make(ICaRL, ICaRLOptions(capacity=17), "domain", deep_model)


def test_classes_that_return_until_there_are_more_sets_than_exemplars_end_the_trial_with_words():
    strategy = make(ICaRL, ICaRLOptions(capacity=7), "class", deep_model)
    activate(strategy, 0)
    for held in (6, 4, 6):
        strategy.before_task(task(0))
        strategy.after_task(task(0))
        assert len(strategy.memory_y) == held
    with pytest.raises(SpecError, match=r"capacity = 7 cannot hold .* the 8 sets after task 1 .* at least 8"):
        strategy.before_task(task(0))


def test_samples_that_are_drawn_anew_are_kept_as_they_were_herded():
    strategy, plain = make(ICaRL, ICaRLOptions(), "class", deep_model), task(0)
    live = StochasticSamples(plain.train.x, plain.train.y, plain.train.tasks, lambda i: plain.train.x[i] + 100)
    activate(strategy, 0)
    strategy.before_task(Task(0, plain.classes, live))
    strategy.after_task(Task(0, plain.classes, live))
    assert strategy.memory_x.max() < 50


def test_targets_of_old_outputs_are_softened_by_the_temperature():
    """As van de Ven's code: binary cross-entropy of untempered outputs, targets sigmoid(s / 2) of old ones; numpy."""
    import numpy as np

    strategy = make(ICaRL, ICaRLOptions(capacity=18, temperature=2.0), "class", deep_model)
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        if not index:
            move(strategy, 0)
            strategy.after_task(task(0))
    move(strategy, 1)
    b = strategy.prepare_batch(batch(1))
    scores, old = (net(b.x).detach().numpy() for net in (strategy.model, strategy.old))
    targets = np.eye(CLASSES)[b.y.numpy()]
    targets[:, :2] = 1 / (1 + np.exp(-old[:, :2] / 2))
    s = 1 / (1 + np.exp(-scores))
    losses = -(targets * np.log(s) + (1 - targets) * np.log(1 - s))[:, :4].sum(1)
    assert strategy.loss(b).item() == pytest.approx(losses.mean(), rel=1e-10)
