"""`rwalk`: against the paper's formulas in plain dictionaries, on full batches and plain gradient descent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_rwalk import RWalkOptions
from clbench_rwalk.strategy import RWalk, scaled_together
from helpers.methods import deep_model, linear_model, make, task
from helpers.training import loop

from clbench.experiment.spec import Recipe


def fit(strategy, index, **recipe):
    one = task(index)
    strategy.before_task(one)
    loop([strategy], Recipe(batch_size=len(one.train), **recipe), [0]).take_task_steps([one])
    strategy.after_task(one)


def scaled(values):
    everything = torch.cat([v.flatten() for v in values.values()])
    low, high = everything.min(), everything.max()
    return {n: (v - low) / (high - low) for n, v in values.items()}


def by_hand(model, tasks, steps, lr, options):
    """Return F, s and the importance after each task; a history of parameters and gradients is evaluated at its end."""
    own = dict(model.named_parameters())
    zero = {n: torch.zeros_like(p, requires_grad=False) for n, p in own.items()}
    fisher, scores, importance = None, None, dict(zero)
    anchor = {n: p.detach().clone() for n, p in own.items()}
    for index in range(tasks):
        train = task(index).train
        thetas, pulls, fishers = [{n: p.detach().clone() for n, p in own.items()}], [], []
        for _ in range(steps):
            data = F.cross_entropy(model(train.x)[:, 2 * index:2 * index + 2], train.y - 2 * index)
            pull = dict(zip(own, torch.autograd.grad(data, list(own.values())), strict=True))
            fisher = {n: g ** 2 if fisher is None else options.alpha * g ** 2 + (1 - options.alpha) * fisher[n]
                      for n, g in pull.items()}
            with torch.no_grad():
                for n, p in own.items():
                    p -= lr * (pull[n] + 2 * options.strength * importance[n] * (p - anchor[n]))
            thetas.append({n: p.detach().clone() for n, p in own.items()})
            pulls.append(pull)
            fishers.append(fisher)
        new = dict(zero)
        for begin in range(0, steps, options.interval):
            end = min(begin + options.interval, steps)
            for n in own:
                fall = -sum(pulls[i][n] * (thetas[i + 1][n] - thetas[i][n]) for i in range(begin, end))
                distance = fishers[end - 1][n] * (thetas[end][n] - thetas[begin][n]) ** 2 / 2
                new[n] = new[n] + (fall / (distance + options.damping)).clamp_min(0)
        scores = new if scores is None else {n: (scores[n] + new[n]) / 2 for n in own}
        one, two = scaled(fisher), scaled(scores)
        importance = {n: one[n] + two[n] for n in own}
        anchor = thetas[-1]
    return fisher, scores, importance, anchor


@pytest.mark.parametrize(("model", "interval", "steps"), [
    (linear_model, 3, 9), (deep_model, 4, 10), (deep_model, 50, 7)])
def test_it_is_the_papers_walk(model, interval, steps):
    options = RWalkOptions(strength=0.2, interval=interval, alpha=0.7, damping=1e-2)
    strategy = make(RWalk, options, model=model)
    twin = copy.deepcopy(strategy.model)
    for index in range(3):
        fit(strategy, index, optimizer="sgd", lr=0.2, iterations=steps)
    fisher, scores, importance, anchor = by_hand(twin, 3, steps, 0.2, options)
    for name, p in twin.named_parameters():
        full = f"model.{name}"
        torch.testing.assert_close(strategy._part("fisher", full), fisher[name], rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(strategy._part("score", full), scores[name], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(strategy.importance_and_anchor(full)[0], importance[name], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(strategy.importance_and_anchor(full)[1], anchor[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(strategy.get_parameter(full), p, rtol=1e-9, atol=1e-12)
    assert strategy.penalty() == 0


def test_importance_is_scaled_over_all_parameters_together():
    values = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[5.0]])}
    assert {n: v.tolist() for n, v in scaled_together(values).items()} == {"a": [0.0, 0.5], "b": [[1.0]]}
    assert scaled_together({"a": torch.zeros(2)})["a"].tolist() == [0.0, 0.0]


def test_it_keeps_four_numbers_per_parameter_once_a_task_is_over():
    strategy = make(RWalk, RWalkOptions())
    fit(strategy, 0, optimizer="adam", lr=0.1, iterations=3)
    stored = sum(b.numel() for n, b in strategy.named_buffers() if n not in ("class_mask", "offset"))
    assert stored == 4 * sum(p.numel() for p in strategy.parameters())
