"""`recipe.head_decay`: which rows of a head that has all outputs weight decay changes."""

import pytest
import torch
import torch.nn.functional as F

from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import build
from clbench.testing.tiny import bench
from clbench.training.loop import TrainingLoop
from clbench.training.optimizers import keep_idle_rows

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5, "iterations": 3, "batch_size": 8}


def head_after(method, options=None, tasks=2, **recipe):
    """Return the head before the last of some tasks, after it, and the losses of that task's steps."""
    b = bench(discover().strategy(method), options or {}, "class")
    trainer = TrainingLoop([b.replica], Recipe(**{**SGD, **recipe}))
    for index in range(tasks):
        before = [p.detach().clone() for p in (b.strategy.model.head.weight, b.strategy.model.head.bias)]
        trainer.train_task(index)
    return before, [b.strategy.model.head.weight.detach(), b.strategy.model.head.bias.detach()]


@pytest.mark.parametrize(("method", "options", "moving"), [
    ("naive", {}, slice(0, 4)), ("naive", {"outputs": "own"}, slice(2, 4)), ("naive", {"outputs": "all"}, slice(0, 6)),
    ("er", {"capacity": 12}, slice(0, 4)), ("slca", {"align": False}, slice(2, 4))])
def test_rows_that_do_not_compete_stay_as_they_are(method, options, moving):
    before, after = head_after(method, options, head_decay="learning")
    rows = torch.zeros(6, dtype=torch.bool)
    rows[moving] = True
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[~rows], new[~rows])
        assert (old[rows] != new[rows]).flatten(1 if old.dim() > 1 else 0).any()


def test_rows_of_old_tasks_learn_where_a_loss_other_than_the_labels_trains_them():
    b = bench(discover().strategy("lwf"), {}, "task")
    trainer = TrainingLoop([b.replica], Recipe(**{**SGD, "head_decay": "learning"}))
    trainer.train_task(0)
    before = b.strategy.model.head.weight.detach().clone()
    trainer.train_task(1)  # distillation is of the outputs of task 0, rows 0 and 1
    moved = (b.strategy.model.head.weight.detach() != before).any(1)
    assert moved.tolist() == [True, True, True, True, False, False]


def test_by_default_all_rows_decay_by_the_closed_form_of_sgd_with_momentum():
    before, after = head_after("naive", {"outputs": "own"})
    factor, velocity = 1.0, 0.0
    for _ in range(3):  # no gradient reaches these rows, so that each step is v <- 0.9 v + 0.5 w, w <- w - 0.1 v
        velocity = 0.9 * velocity + 0.5 * factor
        factor -= 0.1 * velocity
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new[4:], factor * old[4:], rtol=1e-5, atol=1e-8)


def test_a_stack_leaves_in_each_member_its_own_rows():
    info = discover().strategy("naive")
    recipe = Recipe(**{**SGD, "head_decay": "learning"})
    alone = []
    for seed in (0, 1):
        b = bench(info, {"outputs": "own"}, "class", seed=seed)
        trainer = TrainingLoop([b.replica], recipe)
        for index in range(2):
            trainer.train_task(index)
        alone.append(b.strategy.model.head.weight.detach().clone())
    both = [bench(info, {"outputs": "own"}, "class", seed=seed) for seed in (0, 1)]
    trainer = TrainingLoop([b.replica for b in both], recipe)
    for index in range(2):
        trainer.train_task(index)
    for b, wanted in zip(both, alone, strict=True):
        torch.testing.assert_close(b.strategy.model.head.weight.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_a_kept_optimizer_rows_move_as_those_of_a_head_that_grows(momentum, members):
    """The second row is idle for three steps; in torch, it is then a parameter of its own, which is new or frozen."""
    torch.manual_seed(0)
    start, gradients = torch.randn(members, 2, 4), torch.randn(6, members, 2, 4)
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.5}
    head = torch.nn.Parameter(start[0].clone() if members == 1 else start.clone())
    separate = [[torch.nn.Parameter(row.clone()) for row in member] for member in start]
    together = torch.optim.SGD([head], **options)
    apart = torch.optim.SGD([row for member in separate for row in member], **options)
    for step, gradient in enumerate(gradients):
        idle = 1 if step < 3 else 0 if step == 4 else None  # at step 4, a row that has momentum is idle
        for member, rows in enumerate(separate):
            for index, row in enumerate(rows):
                row.grad = None if index == idle else gradient[member, index].clone()
        if idle is not None:
            gradient[:, idle] = 0
        head.grad = (gradient[0] if members == 1 else gradient).clone()
        with keep_idle_rows(together, [head], int(members > 1)):
            together.step()
        apart.step()
        wanted = torch.stack([torch.stack(list(rows)) for rows in separate])
        torch.testing.assert_close(head.detach().reshape(members, 2, 4), wanted.detach())


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_state_of_idle_rows_stays_zero(optimizer):
    b = bench(discover().strategy("naive"), {"outputs": "own"}, "class")
    recipe = Recipe(optimizer=optimizer, weight_decay=0.5, iterations=3, batch_size=8, head_decay="learning",
                    optimizer_state="keep")
    trainer = TrainingLoop([b.replica], recipe)
    trainer.train_task(0)
    (_, state), = [pair for name, pair in trainer.train_step.states.items() if name.endswith("head.weight")]
    for name in ("exp_avg", "exp_avg_sq"):
        assert state[name][:2].any() and not state[name][2:].any()


def test_it_is_a_part_of_the_key_only_where_it_is_chosen():
    def key(**recipe):
        return plan(build({"methods": "naive", "seeds": 1, "recipe": recipe}), discover())[0].trial.key

    assert key() == key(head_decay="all") != key(head_decay="learning")


def test_the_loss_of_the_rows_that_compete_is_trained_as_without_the_option():
    (old, _), (kept, _) = head_after("naive", {"outputs": "own"}, tasks=1, head_decay="learning")
    (_, _), (decayed, _) = head_after("naive", {"outputs": "own"}, tasks=1)
    assert torch.equal(kept[:2], decayed[:2]) and not torch.equal(kept[2:], decayed[2:])
    assert F.mse_loss(kept[2:], old[2:]) == 0
