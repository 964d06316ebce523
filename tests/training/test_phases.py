"""Phases of a task: kept optimizer state, first passes, and divergence before the last phase."""

import pytest
import torch
from helpers.stacks import lead

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.tiny import RECIPE, bench
from clbench.training.callbacks.interface import Callback
from clbench.training.loop import TrainingLoop

REGISTRY = discover()
KEEP = Recipe(lr=0.01, batch_size=8, iterations=20, optimizer_state="keep")


class Moments(Callback):
    """Notes the optimizer's step count of a parameter at the start of each phase; None if it is not trained."""

    def __init__(self):
        self.counts = []

    def on_phase(self, training, inputs):
        step = training.train_step
        states = {name: step.optimizer.state[p] for name, p in step.trained.items() if step.optimizer.state[p]}
        self.counts.append(int(states[NAME]["step"].max()) if NAME in states else 0 if NAME in step.trained else None)


NAME = "model.blocks.1.body.weight"


@pytest.mark.parametrize(("method", "counts"), [
    ("naive", [0, 20, 40]),
    ("bic", [0, 20, None, 36, None]),  # the second phase of a task has 4 steps and trains two other numbers
    ("podnet", [0, 20, None, 38, None]),
])
def test_kept_optimizer_state_survives_phases_that_do_not_train_a_parameter(method, counts):
    moments, b = Moments(), bench(REGISTRY.strategy(method), {}, "class")
    loop = TrainingLoop([b.replica], KEEP, [moments])
    for index in range(3):
        loop.train_task(index)
    assert moments.counts == counts


def test_kept_state_of_a_stack_is_that_of_each_member():
    info = REGISTRY.strategy("bic")
    alone = [lead(info, {}, [seed], KEEP, tasks=3, scenario="class")[0] for seed in (0, 1)]
    for one, other in zip(alone, lead(info, {}, [0, 1], KEEP, tasks=3, scenario="class"), strict=True):
        for expected, parameter in zip(one.strategy.parameters(), other.strategy.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_a_second_phase_over_the_same_samples_is_no_first_pass():
    er = type(bench(REGISTRY.strategy("er"), {}, "class").strategy)

    class Twice(er):
        def phases(self, task):
            return 2

        def phase_samples(self, task, phase):
            return task.train

    b = bench(StrategyInfo("twice", Twice, "", REGISTRY.strategy("er").options), {}, "class")
    TrainingLoop([b.replica], RECIPE).train_task(0)
    assert int(b.strategy.memory_seen.sum()) == len(b.stream.tasks[0].train)


def test_a_phase_over_the_task_after_one_over_other_samples_is_no_first_pass():
    firsts = []

    class OwnSamplesFirst(Strategy):
        def phases(self, task):
            return 2

        def phase_samples(self, task, phase):
            return None if phase else task.train

        def prepare_batch(self, batch):
            firsts.append(batch.first_pass)
            return batch

    b = bench(StrategyInfo("own-first", OwnSamplesFirst, ""), {}, "class")
    TrainingLoop([b.replica], RECIPE).train_task(0)
    half, of_a_pass = len(firsts) // 2, len(b.stream.tasks[0].train) // RECIPE.batch_size
    assert firsts[:of_a_pass] == [True] * of_a_pass and half >= of_a_pass
    assert not any(firsts[half:])


def test_no_phase_begins_after_all_losses_are_nan():
    begun = []

    class Diverges(Strategy):
        def phases(self, task):
            return 3

        def before_phase(self, task, phase):
            begun.append(int(phase))

        def loss(self, batch):
            return super().loss(batch) * float("nan")

    b = bench(StrategyInfo("diverges", Diverges, ""), {}, "task")
    replica = b.replica
    trained, = TrainingLoop([replica], RECIPE.model_copy(update={"epochs": None, "iterations": 3000})).train_task(0)
    assert trained.diverged is not None and begun == [0]
    assert replica.costs.steps == [trained.steps] == [256]
