import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_l2 import L2Options
from clbench_l2.strategy import L2
from helpers.methods import deep_model, linear_model, make, move, task
from helpers.training import loop

from clbench.experiment.spec import Recipe


def fit(strategy, index, **recipe):
    one = task(index)
    strategy.before_task(one)
    loop([strategy], Recipe(batch_size=len(one.train), **recipe), [0]).take_task_steps([one])
    strategy.after_task(one)


@pytest.mark.parametrize("model", [linear_model, deep_model])
def test_three_tasks_are_gradient_descent_with_one_anchor_by_hand(model):
    strategy = make(L2, L2Options(strength=0.3), model=model)
    twin = copy.deepcopy(strategy.model)
    own, anchor = list(twin.parameters()), None
    for index in range(3):
        fit(strategy, index, optimizer="sgd", lr=0.2, iterations=9)
        train = task(index).train
        for _ in range(9):
            loss = F.cross_entropy(twin(train.x)[:, 2 * index:2 * index + 2], train.y - 2 * index)
            if anchor is not None:  # the latest only, however many tasks
                loss = loss + 0.3 * sum((p - a).square().sum() for p, a in zip(own, anchor, strict=True))
            for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
                p.data -= 0.2 * g
        anchor = [p.detach().clone() for p in own]
    for ours, theirs in zip(strategy.model.parameters(), own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_a_quadratic_loss_ends_where_two_quadratics_balance():
    # min (theta - b)^2 / 2 + strength (theta - a)^2 is at (b + 2 strength a) / (1 + 2 strength).
    strategy = make(L2, L2Options(strength=0.7))
    strategy.before_task(task(0))
    start = {n: p.detach().clone() for n, p in strategy.named_parameters()}
    strategy.after_task(task(0))
    goal = {n: torch.randn_like(p) for n, p in strategy.named_parameters()}
    descent = torch.optim.SGD(strategy.parameters(), lr=0.3)
    for _ in range(200):
        descent.zero_grad()
        away = sum((p - goal[n]).square().sum() for n, p in strategy.named_parameters()) / 2
        (away + strategy.penalty()).backward()
        descent.step()
    for name, p in strategy.named_parameters():
        torch.testing.assert_close(p.detach(), (goal[name] + 1.4 * start[name]) / 2.4, rtol=1e-9, atol=1e-12)


def test_no_pull_before_the_first_task_ends_and_one_number_kept_for_each_parameter():
    strategy = make(L2, L2Options(strength=5.0), model=deep_model)
    strategy.before_task(task(0))
    move(strategy, 0)
    assert strategy.penalty() == 0
    strategy.after_task(task(0))
    assert strategy.penalty() == 0
    move(strategy, 1)
    moved = sum((p - strategy.importance_and_anchor(n)[1]).square().sum() for n, p in strategy.named_parameters())
    torch.testing.assert_close(strategy.penalty(), 5 * moved, rtol=1e-12, atol=0)
    kept = sum(b.numel() for n, b in strategy.named_buffers() if n.startswith(("importance", "anchor", "offset")))
    assert kept == sum(p.numel() for p in strategy.parameters()) + len(list(strategy.parameters())) + 1
