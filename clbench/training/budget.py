"""Budgets: the number of optimizer steps that a recipe gives a task, and how the phases of the task share them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Real

from clbench.core.errors import PluginError, SpecError
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import PhaseSpec

FEW = 50  # steps: with fewer, tasks of split-mnist-5k and of its rotations were not learned (docs/fair-comparison.md)


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return the number of optimizer steps that a recipe gives a task with so many training samples."""
    if recipe.iterations is not None:
        return recipe.iterations
    assert recipe.epochs is not None
    return recipe.epochs * steps_per_epoch(recipe, samples)


def steps_per_epoch(recipe: Recipe, samples: int) -> int:
    """Return the number of optimizer steps of one pass over so many training samples."""
    return math.ceil(samples / recipe.batch_size) * (recipe.repeats or 1)


def shares_of(strategy: Strategy, task: Task) -> list[float]:
    """Return the relative lengths of a task's phases; empty if there are no training steps.

    Raises:
        PluginError: `phases` of the strategy returned neither a number of phases nor finite relative lengths.
    """
    phases: object = strategy.phases(task)
    if isinstance(phases, int) and phases >= 0:
        return [1.0] * phases
    if isinstance(phases, Sequence) and all(isinstance(share, Real) and 0 <= float(share) < math.inf
                                            for share in phases) and (not phases or sum(phases) > 0):
        return list(phases)
    raise PluginError(f"`phases` of {type(strategy).__name__} returned {phases!r}; it must return the number of "
                      "phases, mostly 1, or their relative lengths, as in (3, 1), or 0 for no training steps")


def phases_of(strategy: Strategy, task: Task, recipe: Recipe, steps: int) -> list[PhaseSpec]:
    """Return the phases of a task; each has its share of the steps, and at least one step.

    Raises:
        SpecError: there are fewer steps than phases.
    """
    shares = shares_of(strategy, task)
    total = sum(shares)
    if steps < len(shares):
        raise SpecError(f"{type(strategy).__name__}, task {task.index + 1}: {steps} steps cannot be split into "
                        f"{len(shares)} phases; give the task a larger budget")
    ends = [0]
    for number, cumulative_share in enumerate(itertools.accumulate(shares), start=1):
        latest_end = steps - (len(shares) - number)
        ends.append(min(max(round(steps * cumulative_share / total), ends[-1] + 1), latest_end))
    parts = [end - begin for begin, end in itertools.pairwise(ends)]
    return [PhaseSpec(number, part, recipe.lr, recipe.head_lr) for number, part in enumerate(parts)]


def whole_phase(recipe: Recipe, stream: Stream) -> PhaseSpec:
    """Return the only phase of a stream with hidden boundaries, which has the steps of all tasks."""
    return PhaseSpec(0, steps_of(recipe, sum(len(task.train) for task in stream.tasks)), recipe.lr, recipe.head_lr)


def describe_task_steps(recipe: Recipe, samples: Sequence[int]) -> str:
    """Describe the number of optimizer steps that a recipe gives a task, with a hint if they are few.

    Args:
        recipe: the recipe of the trials.
        samples: the number of training samples of each task.

    >>> describe_task_steps(Recipe(), [96, 120])
    '10 optimizer steps a task (96 to 120 samples, batch 128, 10 epochs): few; --epochs N or --iterations N gives more'
    """
    steps = [steps_of(recipe, count) for count in samples]
    passes = _amount([recipe.epochs], "epoch") if recipe.epochs else _amount([recipe.iterations or 0], "iteration")
    hint = ": few; --epochs N or --iterations N gives more" if min(steps) < FEW else ""
    return (f"{_amount(steps, 'optimizer step')} a task ({_amount(samples, 'sample')}, batch {recipe.batch_size:,}, "
            f"{passes}){hint}")


def _amount(counts: Sequence[int], noun: str) -> str:
    """Return `1 step`, `8 steps` or `7 to 9 steps`."""
    low, high = min(counts), max(counts)
    return (f"{low:,}" if low == high else f"{low:,} to {high:,}") + f" {noun}" + ("" if high == 1 else "s")
