"""How a strategy is led through its tasks: one protocol for runs, resumed runs, counts, pretraining and checks.

For each task: its outputs are activated, `before_task` is called, the budget is spent phase by phase, `after_task` is
called. What each of the three steps draws from the global generators of torch, NumPy and Python comes from a seed of
its own ("strategy", "training", "consolidation"), so that none depends on what another drew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from clbench.core import seeds
from clbench.core.errors import DivergedError
from clbench.core.scenario import scenario_rules
from clbench.data.samples import UNSEEN
from clbench.data.stream import Stream
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import Phase
from clbench.training.budget import phases_of, steps_of, whole_phase
from clbench.training.flops import FlopCount


@dataclass
class Trained:
    """The result of training one strategy on one task."""

    steps: int  # of the phases, and from `learn_task` also those taken in `after_task`
    trainable: int  # what the strategy says it trains, in the phase that had most
    diverged: DivergedError | None = None
    flops: int = 0  # of the steps, and from `learn_task` also of what comes before and after them
    last_losses: tuple[float, ...] = ()  # of the last two tenths of its steps: see `training.losses.last_tenths`


@dataclass
class Learner:
    """A strategy, the stream it learns and the seed of its trial."""

    strategy: Strategy
    stream: Stream
    seed: int

    def task(self, index: int) -> Task:
        """Return a task as the strategy sees it; where boundaries are hidden, the one task that the stream is."""
        if self.stream.hidden:
            return Task(0, tuple(range(self.stream.classes)), UNSEEN)
        known = self.stream.tasks[index]
        return Task(index, known.taught, known.train, known.taught_names)

    def begin(self, index: int) -> Task:
        """Activate the outputs of a task, call `before_task`, and return the task.

        Where boundaries are hidden, it begins once, and outputs become active with their first samples
        (`clbench.training.streaming`) unless all tasks share them.
        """
        rules, task = scenario_rules(self.strategy.world.scenario), self.task(index)
        if self.stream.hidden and index:
            return task
        if self.stream.hidden:
            self.strategy.active.fill_(rules.shared_outputs)
        else:
            for rows, outputs in rules.in_loss([t.taught for t in self.stream.tasks], index, self.strategy.activated):
                self.strategy.active[rows.start:rows.stop, outputs] = True
        with seeds.scope(self.seed, "strategy", index):
            self.strategy.before_task(task)
        return task

    def training(self, index: int) -> AbstractContextManager[None]:
        """Return a context that seeds the global generators for training on a task."""
        return seeds.scope(self.seed, "training", index)

    def finish(self, task: Task) -> None:
        """Call `after_task`, seeded."""
        self.strategy.extra_steps = 0
        with seeds.scope(self.seed, "consolidation", task.index):
            self.strategy.after_task(task)


def begin_phase(strategy: Strategy, task: Task, phase: Phase) -> None:
    """Prepare a strategy for a phase of a task and set it to training mode."""
    strategy.before_phase(task, phase)
    strategy.train()


def learn_task(learners: Sequence[Learner], index: int, fit: Callable[[list[Task]], list[Trained]]) -> list[Trained]:
    """Lead strategies, one or a stack of them, through a task together.

    Args:
        learners: the strategies; what is drawn in training comes from the first one's seed.
        index: of the task.
        fit: spends the budget (`Trainer.fit`), given each learner's view of the task; returns a result for each.

    Returns:
        What `fit` returned; a strategy that diverged has not consolidated.
    """
    counts = [FlopCount() for _ in learners]
    tasks = []
    for learner, count in zip(learners, counts, strict=True):
        with count:
            tasks.append(learner.begin(index))
    with learners[0].training(index):
        trained = fit(tasks)
    for learner, task, result, count in zip(learners, tasks, trained, counts, strict=True):
        if result.diverged is None:
            with count:
                if not learner.stream.hidden or index + 1 == len(learner.stream.tasks):
                    learner.finish(task)
            result.steps += learner.strategy.extra_steps
        result.flops += count.total
    return trained


def retrace(learner: Learner, learned: int, recipe: Recipe) -> None:
    """Give a new strategy the structure that it has after so many tasks of a recipe, without training it.

    What it remembers is loaded afterwards, from a checkpoint.
    """
    if learner.stream.hidden:
        task = learner.begin(0)
        with learner.training(0):
            if learner.strategy.phases(task):
                learner.strategy.before_phase(task, whole_phase(recipe, learner.stream))
        return
    for index in range(learned):
        task = learner.begin(index)
        with learner.training(index):
            if learner.strategy.phases(task):
                steps = steps_of(recipe, len(learner.strategy.training_samples(task)))
                for phase in phases_of(learner.strategy, task, recipe, steps):
                    learner.strategy.before_phase(task, phase)
