
import pytest
import torch
from clbench_wa import WAOptions
from clbench_wa.strategy import WA
from helpers.exemplars import begun, papers_loss
from helpers.methods import activate, batch, deep_model, make, move, task


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_is_the_papers(scenario):
    strategy, b, old = begun(WA, WAOptions(capacity=12, temperature=3.0, clip=False), scenario)
    logits, y = strategy.model(b.x).detach().numpy(), b.y.tolist()
    everything = scenario == "class"
    seen = [list(range(6)) if everything else [2 * t, 2 * t + 1] for t in b.tasks.tolist()]
    groups = [[0, 1, 2, 3]] if everything else [[0, 1], [2, 3]]
    assert strategy.loss(b).item() == pytest.approx(papers_loss(logits, old, y, seen, groups, 4 / 6, 3.0), rel=1e-12)


def test_the_first_task_is_fine_tuning():
    strategy = make(WA, WAOptions(capacity=12), "class", deep_model)
    activate(strategy, 0)
    strategy.before_task(task(0))
    assert torch.equal(strategy.loss(batch(0)), strategy.cross_entropy(strategy.model(batch(0).x), batch(0)))


def test_new_weights_are_scaled_to_the_mean_length_of_old_ones_by_hand():
    strategy = make(WA, WAOptions(capacity=12, clip=False), "class", deep_model)
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        with torch.no_grad():
            strategy.model.head.weight.zero_()
            for c, length in enumerate((3.0, 5.0, 10.0, 6.0, 7.0, 8.0)):  # gamma = 4 / 8
                strategy.model.head.weight[c, :2] = torch.tensor([0.6, -0.8]) * length
        bias = strategy.model.head.bias.clone()
        strategy.after_task(task(index))
        lengths = strategy.model.head.weight.norm(dim=1).tolist()
        assert lengths == pytest.approx([3, 5, *((10, 6) if index == 0 else (5, 3)), 7, 8])
        assert torch.equal(bias, strategy.model.head.bias)
    assert torch.equal(strategy.old.head.weight, strategy.model.head.weight)  # the aligned network is the next teacher


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_where_new_classes_do_not_compete_with_old_ones_nothing_is_scaled(scenario):
    strategy = make(WA, WAOptions(capacity=18, clip=False), scenario, deep_model)
    strategy.class_mask[:] = True
    for index in range(2):
        strategy.before_task(task(index))
        move(strategy, index)
        before = strategy.model.head.weight.clone()
        strategy.after_task(task(index))
        assert torch.equal(before, strategy.model.head.weight)


def test_negative_weights_are_clipped_after_every_step():
    strategy = make(WA, WAOptions(capacity=12), "class", deep_model)
    for consolidate in (lambda: strategy.prepare_batch(batch(0)), lambda: strategy.after_task(task(0))):
        activate(strategy, 0)
        strategy.before_task(task(0))
        move(strategy, 0)
        before = strategy.model.head.weight.detach().clone()
        assert before.min() < 0
        consolidate()
        assert torch.equal(strategy.model.head.weight, before.relu())


def test_weights_that_are_all_clipped_are_left_alone():
    strategy = make(WA, WAOptions(capacity=12), "class", deep_model)
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        with torch.no_grad():
            strategy.model.head.weight[2:4] = -1.0
        strategy.after_task(task(index))
    assert strategy.model.head.weight.isfinite().all() and (strategy.model.head.weight[2:4] == 0).all()
