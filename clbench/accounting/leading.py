"""A strategy led through the phases of a task without being trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from clbench.accounting.flops import FlopCount
from clbench.core.errors import SpecError
from clbench.data.augmentation import Augmentation
from clbench.data.samples import Samples
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import Phase
from clbench.training.budget import phases_of, steps_of
from clbench.training.replica import begin_phase
from clbench.training.sampling import BatchSampler, StreamSampler


class Led(NamedTuple):
    """A phase that has begun: the order in which its batches are drawn from which samples, and the FLOPs so far."""

    phase: Phase
    samples: Samples
    order: BatchSampler
    flops: int

    def one_pass(self, strategy: Strategy, most: int | None = None) -> int:
        """Lead a strategy's replay memory through a pass, of at most so many steps; return its steps."""
        passing = math.ceil(len(self.samples) / self.order.batch_size)
        steps = passing if most is None else min(most, passing)
        for _ in range(steps):
            stream = self.order if isinstance(self.order, StreamSampler) else None
            strategy.augment_batch(stream.observed(strategy) if stream else self.order.batch(self.samples))
        return steps


def observing_flops(strategy: Strategy, task: Task, recipe: Recipe) -> int:
    """Let a strategy that takes no steps observe a stream with hidden boundaries, and return the FLOPs; else 0."""
    if strategy.world.boundaries or strategy.phases(task):
        return 0
    sampler = StreamSampler([task.train], recipe.batch_size, 0)
    with FlopCount() as spent:
        for _ in range(sampler.until(1)):
            sampler.observed(strategy)
    return int(spent.total)


def lead_phases(strategy: Strategy, task: Task, recipe: Recipe, augment: Augmentation | None = None) -> Iterator[Led]:
    """Begin one phase of a task after the other.

    Raises:
        SpecError: the recipe grants fewer steps than there are phases.
    """
    if not strategy.phases(task):
        return
    usual = strategy.training_samples(task)
    order = (BatchSampler(len(usual), recipe.batch_size, 0, task.index, augment) if strategy.world.boundaries
             else StreamSampler([usual], recipe.batch_size, 0, augment))
    try:
        phases = phases_of(strategy, task, recipe, steps_of(recipe, len(usual)))
    except ValueError as error:
        raise SpecError(str(error)) from None
    for phase in phases:
        with FlopCount() as spent:
            begin_phase(strategy, task, phase)
        own = strategy.phase_samples(task, phase)
        yield Led(phase, usual, order, spent.total) if own is None else Led(
            phase, own, BatchSampler(len(own), recipe.batch_size, 0, task.index, augment, phase), spent.total)
