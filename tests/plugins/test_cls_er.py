"""`cls-er`: averages, targets and predictions by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_cls_er import CLSEROptions
from clbench_cls_er.strategy import CLSER
from helpers.methods import activate, batch, deep_model, make, move, task
from helpers.training import loop

from clbench.experiment.spec import Recipe
from clbench.strategy.base import Batch


def parameters(network):
    return [p.detach().clone() for p in network.parameters()]


def test_the_averages_after_n_steps_are_those_of_the_formula():
    options = CLSEROptions(stable_rate=0.5, stable_decay=0.9, plastic_rate=1.0, plastic_decay=0.6)
    strategy = make(CLSER, options, "class", deep_model)
    plastic, stable, updates = parameters(strategy.model), parameters(strategy.model), 0
    draws = torch.Generator().manual_seed(0)
    for step in range(1, 13):
        strategy.prepare_batch(batch(0, 4))
        move(strategy, step)
        now = parameters(strategy.model)
        strategy.stream_info.generator.manual_seed(step)  # of the averaging of this step alone
        draws.manual_seed(step)
        strategy.complete_step()
        a = min(1 - 1 / (step + 1), 0.6)
        torch.rand((), generator=draws)
        plastic = [a * old + (1 - a) * new for old, new in zip(plastic, now, strict=True)]
        if torch.rand((), generator=draws) < 0.5:
            updates += 1
            a = min(1 - 1 / (step + 1), 0.9)
            stable = [a * old + (1 - a) * new for old, new in zip(stable, now, strict=True)]
        for ours, expected in ((strategy.plastic, plastic), (strategy.stable, stable)):
            for p, q in zip(ours.parameters(), expected, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    assert 0 < updates < 12


def test_each_step_is_averaged_once_and_the_last_one_when_the_task_ends():
    strategy = make(CLSER, CLSEROptions(stable_rate=1.0, plastic_rate=1.0), "class", deep_model)
    strategy.complete_step()  # there was no step
    start = parameters(strategy.model)
    strategy.prepare_batch(batch(0))
    move(strategy, 0)
    now = parameters(strategy.model)
    strategy.after_task(task(0))
    strategy.after_task(task(0))  # the same step again
    strategy.prepare_batch(batch(0))
    for p, a, b in zip(strategy.stable.parameters(), start, now, strict=True):
        torch.testing.assert_close(p, (a + b) / 2)  # a = 1 - 1/2 in the first step


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_draws_replayed_logits_to_the_average_that_is_surer(scenario):
    strategy = make(CLSER, CLSEROptions(weight=0.7), scenario, deep_model)
    if scenario == "class":
        activate(strategy, 1)
    for number, network in enumerate((strategy.plastic, strategy.stable)):
        g = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for p in network.parameters():
                p += 0.5 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    new, old = batch(1, 6), batch(0, 8)
    both = Batch(torch.cat([new.x, old.x]), torch.cat([new.y, old.y]), torch.cat([new.tasks, old.tasks]), 1, replayed=8)
    logits = strategy.model(both.x)
    outputs = slice(0, 2) if scenario == "task" else slice(0, 4)
    targets, chosen = [], []
    for x, y in zip(old.x, old.y, strict=True):
        candidates = [network(x[None])[0] for network in (strategy.plastic, strategy.stable)]
        sure = [candidate[outputs].softmax(0)[y] for candidate in candidates]
        chosen.append(int(sure[1] > sure[0]))
        targets.append(candidates[chosen[-1]])
    assert 0 < sum(chosen) < 8
    if scenario == "task":
        entropy = (6 * F.cross_entropy(logits[:6, 2:4], new.y - 2) + 8 * F.cross_entropy(logits[6:, :2], old.y)) / 14
    else:
        entropy = F.cross_entropy(logits[:, :4], both.y)
    expected = entropy + 0.7 * (logits[6:] - torch.stack(targets)).square().mean()
    torch.testing.assert_close(strategy.loss(both), expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(strategy.loss(both), [p for p in strategy.parameters() if p.requires_grad])
    for ours, plain in zip(gradients, torch.autograd.grad(entropy + 0.7 * (logits[6:] - torch.stack(
            targets).detach()).square().mean(), list(strategy.model.parameters())), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_it_predicts_with_the_stable_average_and_only_the_network_learns():
    strategy = make(CLSER, CLSEROptions(), "class", deep_model)
    x, before = batch(0).x, copy.deepcopy(strategy.model)
    move(strategy, 0)
    assert torch.equal(strategy.predict(x).logits, before(x)) and not torch.equal(strategy.model(x), before(x))
    assert [n for n, p in strategy.named_parameters() if p.requires_grad] == [
        f"model.{n}" for n, _ in strategy.model.named_parameters()]
    strategy.train()
    assert strategy.model.training and not strategy.stable.training and not strategy.plastic.training


def test_as_many_samples_are_replayed_as_the_share_says_and_every_epoch_offers_them_again():
    strategy = make(CLSER, CLSEROptions(capacity=30, share=2.5), "class")
    for step in range(8):
        replayed = strategy.prepare_batch(Batch(*(getattr(batch(0, 6), f) for f in ("x", "y", "tasks")), 0,
                                                first_pass=step < 2)).replayed
    assert replayed == 15 and int(strategy.memory_seen.sum()) == 48


def test_trials_that_begin_with_the_same_weights_have_averages_of_their_own():
    models = [make(CLSER, CLSEROptions(stable_rate=1.0), "class", deep_model, seed=0) for _ in range(2)]
    for seed, strategy in enumerate(models):
        strategy.stream_info.generator.manual_seed(seed)
        activate(strategy, 0)
    alone = copy.deepcopy(models)
    recipe = Recipe(batch_size=6, optimizer="sgd", lr=0.2, iterations=5)
    loop(models, recipe, [0, 1]).take_task_steps([task(0), task(0)])
    for seed, (strategy, twin) in enumerate(zip(models, alone, strict=True)):
        loop([twin], recipe, [seed]).take_task_steps([task(0)])
        for name, value in strategy.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)
    assert not torch.equal(*(next(strategy.stable.parameters()) for strategy in models))
