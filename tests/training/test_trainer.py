import re

import pytest
import torch
import torch.nn.functional as F
from helpers.training import loop

from clbench.core.errors import PluginError, SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.testing.tiny import RECIPE, bench, tiny_stream
from clbench.training.budget import steps_of
from clbench.training.callbacks.interface import Callback
from clbench.training.loop import TrainingLoop
from clbench.training.sampling import BatchSampler

REFUSES_HEAD_LR = {"lucir", "podnet", "slca", "slca++", "mos"}  # which set the rate of their heads themselves
NAIVE = StrategyInfo("naive", Strategy, "")


def prepared(cls=Strategy, index=0, scenario="task"):
    b = bench(StrategyInfo("x", cls, ""), {}, scenario)
    return b, b.replica.begin(index)


def drawn(samples, batch_size, seed, count):
    order = BatchSampler(len(samples), batch_size, seed, 0)
    return [order.next_batch(samples) for _ in range(count)]


def test_a_pass_meets_every_sample_once_and_the_order_is_the_seeds():
    train = tiny_stream("task").tasks[0].train
    first, again, other = (drawn(train, 10, seed, 6) for seed in (0, 0, 1))
    assert [len(b.y) for b in first] == [10, 10, 4, 10, 10, 4]
    assert [b.first_pass for b in first] == [True] * 3 + [False] * 3
    for half in (first[:3], first[3:]):
        seen = torch.cat([b.x for b in half]).flatten(1).sort(0).values
        assert torch.equal(seen, train.x.flatten(1).sort(0).values)
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].x, other[0].x)
    assert not torch.equal(first[0].x, first[3].x)


@pytest.mark.parametrize(("recipe", "steps"), [(Recipe(epochs=3, batch_size=10), 9), (Recipe(iterations=7), 7)])
def test_the_budget(recipe, steps):
    b, task = prepared()
    assert steps_of(recipe, len(task.train)) == steps
    assert loop([b.strategy], recipe, [0]).take_task_steps([task])[0].steps == steps


def test_a_step_is_the_plain_gradient_step():
    b, task = prepared()
    theirs = {n: p.detach().double() for n, p in b.strategy.model.named_parameters()}
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.01, batch_size=8, iterations=4)
    moments = {n: torch.zeros_like(p) for n, p in theirs.items()}
    for batch in drawn(task.train, 8, 0, 4):
        for p in theirs.values():
            p.requires_grad_(True)
        x = batch.x.double().flatten(1) / 255
        names = list(theirs)
        for weight, bias in zip(names[0:-2:2], names[1:-2:2], strict=True):
            x = (x @ theirs[weight].T + theirs[bias]).relu()
        logits = (x @ theirs[names[-2]].T + theirs[names[-1]])[:, list(task.classes)]
        loss = F.cross_entropy(logits, batch.y - task.classes[0])
        gradients = torch.autograd.grad(loss, list(theirs.values()))
        for (n, p), g in zip(theirs.items(), gradients, strict=True):
            moments[n] = 0.9 * moments[n] + g + 0.01 * p.detach()
            theirs[n] = p.detach() - 0.1 * moments[n]
    loop([b.strategy], recipe, [0]).take_task_steps([task])
    for n, p in b.strategy.model.named_parameters():
        torch.testing.assert_close(p.detach().double(), theirs[n], rtol=1e-4, atol=1e-6)


def first_step_of_second_task(state):
    b, task = prepared()
    trainer = TrainingLoop([b.replica], Recipe(lr=0.01, iterations=5, batch_size=8, optimizer_state=state))
    trainer.take_task_steps([task])
    trainer.take_task_steps([task])
    return trainer.train_step.optimizer.state[b.strategy.model.head.weight]["step"].item()


def test_the_optimizer_forgets_or_keeps_its_state_across_tasks():
    assert first_step_of_second_task("reset") == 5
    assert first_step_of_second_task("keep") == 10


class TwoPhases(Strategy):
    seen = ()

    def phases(self, task):
        return 2

    def before_phase(self, task, phase):
        self.seen = (*self.seen, phase)
        for name, p in self.model.named_parameters():
            p.requires_grad_(name.startswith("head") == bool(phase))


def test_phases_share_the_steps_and_train_different_things():
    b, task = prepared(TwoPhases)
    calls = []
    b.strategy.loss, plain = lambda batch: (calls.append(b.strategy.seen), plain(batch))[1], b.strategy.loss
    result = loop([b.strategy], Recipe(iterations=5, batch_size=8), [0]).take_task_steps([task])[0]
    assert [c[-1] for c in calls] == [0, 0, 1, 1, 1] or [c[-1] for c in calls] == [0, 0, 0, 1, 1]
    body = sum(p.numel() for n, p in b.strategy.model.named_parameters() if not n.startswith("head"))
    assert (result.steps, result.trainable) == (5, body)


class Unequal(TwoPhases):
    """Three quarters of the steps on the task, one on four samples of its own; notes what it is told."""

    def phases(self, task):
        return (3, 1)

    def before_phase(self, task, phase):
        super().before_phase(task, phase)
        self.told = [*getattr(self, "told", []), (int(phase), phase.steps, phase.lr)]

    def phase_samples(self, task, phase):
        return task.train.take(torch.arange(4)) if phase == 1 else None

    def after_task(self, task):
        self.count_steps(7)


def test_phases_have_shares_and_samples_of_their_own_and_know_their_steps():
    b, task = prepared(Unequal)
    sizes = []
    b.strategy.loss, plain = lambda batch: (sizes.append(len(batch.y)), plain(batch))[1], b.strategy.loss
    recipe = Recipe(iterations=8, batch_size=8, lr=0.02)
    trainer = TrainingLoop([b.replica], recipe)
    result = trainer.take_task_steps([task])[0]
    assert result.steps == 8 and sizes == [8] * 6 + [4] * 2
    assert b.strategy.told == [(0, 6, 0.02), (1, 2, 0.02)]
    assert trainer.train_task(1)[0].steps == 15  # those taken in `after_task` count


def test_learning_rates_are_multiplied_by_the_first_pattern_that_fits():
    b, task = prepared()
    b.strategy.learning_rates = lambda: {"*.bias": 10.0, "model.head.*": 0.5}
    before = {n: p.detach().clone() for n, p in b.strategy.named_parameters()}
    trainer = TrainingLoop([b.replica], Recipe(optimizer="sgd", lr=1e-3, iterations=1))
    trainer.take_task_steps([task])
    assert [g["lr"] for g in trainer.train_step.optimizer.param_groups] == [5e-4, 1e-3, 1e-2]
    for name, parameter in b.strategy.named_parameters():
        rate = 1e-2 if name.endswith("bias") else 5e-4 if "head" in name else 1e-3
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad, rtol=1e-6, atol=1e-8)
    b.strategy.learning_rates = lambda: {"model.*": 0.0}
    with pytest.raises(PluginError, match=r"learning rate of 'model.\*' is multiplied by 0"):
        trainer.take_task_steps([task])


def test_head_lr_is_the_rate_of_the_heads_and_lr_that_of_all_else():
    b, task = prepared()
    before = {n: p.detach().clone() for n, p in b.strategy.named_parameters()}
    trainer = TrainingLoop([b.replica], Recipe(optimizer="sgd", lr=1e-3, head_lr=0.05, iterations=1))
    trainer.take_task_steps([task])
    for name, parameter in b.strategy.named_parameters():
        rate = 0.05 if name.startswith("model.head.") else 1e-3
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad, rtol=1e-6, atol=1e-8)


def test_head_lr_is_refused_where_it_would_do_nothing_or_contradict_the_method():
    recipe = Recipe(lr=1e-3, head_lr=0.05, iterations=1)
    for change, message in ((("learning_rates", lambda: {"model.*": 0.1}), "sets the learning rate of its heads"),
                            (("head_parameters", ("headz.*",)), r"none of its parameters is named headz\.\*")):
        b, task = prepared()
        setattr(b.strategy, *change)
        with pytest.raises(SpecError, match=message):
            loop([b.strategy], recipe, [0]).take_task_steps([task])


def test_head_lr_is_refused_with_a_head_rate():
    b = bench(discover().strategy("ewc-lora"), {"head_rate": 10.0, "rank": 2}, "class")
    with pytest.raises(SpecError, match="sets the learning rate of its heads itself"):
        TrainingLoop([b.replica], Recipe(lr=5e-4, head_lr=5e-3, iterations=2)).train_task(0)


@pytest.mark.parametrize("name", sorted(discover().strategies))
def test_every_method_trains_its_heads_by_head_lr_or_refuses_it(name):
    info = discover().strategy(name)
    b = bench(info, {}, "task")
    rates = []

    class HeadRates(Callback):
        def on_phase(self, training, inputs):
            names = {parameter: name for name, parameter in b.strategy.named_parameters()}
            rates.append({round(group["lr"], 9) for group in training.train_step.optimizer.param_groups
                          for parameter in group["params"] if re.search(r"\bhead", names[parameter])})

    trainer = TrainingLoop([b.replica], RECIPE.model_copy(update={"head_lr": 0.04}), [HeadRates()])

    if name in REFUSES_HEAD_LR or b.strategy.owns_loop:
        with pytest.raises(SpecError, match="head_lr cannot be used with"):
            trainer.train_task(0)
    elif trainer.train_task(0)[0].steps:
        assert 0.04 in {round(group["lr"], 9) for group in trainer.train_step.optimizer.param_groups}
        assert all(phase <= {0.04} for phase in rates)  # of parameters with `head` in their names, in each phase


def test_a_budget_too_small_for_the_phases_is_refused():
    b, task = prepared(TwoPhases)
    with pytest.raises(SpecError, match="1 steps cannot be split into 2 phases"):
        loop([b.strategy], Recipe(iterations=1), [0]).take_task_steps([task])


@pytest.mark.parametrize("batch_size", [1, 8, 12])
def test_tasks_of_different_sizes_do_not_train_as_one(batch_size):
    (one, task), (two, _) = prepared(), prepared()
    smaller = Task(0, task.classes, task.train.take(torch.arange(12)))
    before = [p.clone() for p in one.strategy.parameters()]
    with pytest.raises(ValueError, match="tasks of 12 to 24 training samples do not go in one stack"):
        pair = loop([one.strategy, two.strategy], Recipe(epochs=1, batch_size=batch_size), [0, 1])
        pair.take_task_steps([task, smaller])
    assert all(map(torch.equal, before, one.strategy.parameters()))


def test_nothing_to_train_is_refused():
    b, task = prepared()
    b.strategy.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        loop([b.strategy], Recipe(iterations=1), [0]).take_task_steps([task])


def test_cosine_goes_from_the_rate_to_nothing():
    b, task = prepared()
    trainer = TrainingLoop([b.replica], Recipe(optimizer="sgd", lr=0.1, iterations=10, schedule="cosine"))
    trainer.take_task_steps([task])
    assert trainer.train_step.optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_names_the_task_and_the_step():
    b, task = prepared()
    recipe = Recipe(optimizer="sgd", lr=1e30, iterations=600, batch_size=8)
    trained = loop([b.strategy], recipe, [0]).take_task_steps([task])[0]
    assert "NaN or infinite in task 1, step" in str(trained.diverged)


@pytest.mark.parametrize(("scenario", "active"), [
    ("task", [[0, 1], [2, 3], []]), ("class", [[0, 1, 2, 3], [0, 1, 2, 3], []]), ("domain", [[0, 1], [0, 1], []])])
def test_the_outputs_in_the_loss(scenario, active):
    b = bench(NAIVE, {}, scenario)
    b.replica.begin(0)
    b.replica.begin(1)
    assert [row.nonzero().flatten().tolist() for row in b.strategy.class_mask] == active
