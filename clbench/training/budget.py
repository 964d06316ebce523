"""What a recipe grants: optimiser steps for a task, and what each of its phases has of them."""

from __future__ import annotations

import itertools
import math

from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import Phase


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return the number of optimiser steps that a recipe gives a task, for its number of training samples."""
    if recipe.iterations is not None:
        return recipe.iterations
    assert recipe.epochs is not None
    return recipe.epochs * math.ceil(samples / recipe.batch_size)


def phases_of(strategy: Strategy, task: Task, recipe: Recipe, steps: int) -> list[Phase]:
    """Return the phases of a task, each with its part of the steps.

    Raises:
        ValueError: a phase would have no step.
    """
    given = strategy.phases(task)
    shares = [1.0] * given if isinstance(given, int) else list(given)
    total = sum(shares)
    bounds = [round(steps * done / total) for done in itertools.accumulate(shares, initial=0.0)]
    parts = [end - begin for begin, end in itertools.pairwise(bounds)]
    if not all(part > 0 for part in parts):
        raise ValueError(f"{steps} steps cannot be split into {len(parts)} phases; give the task a larger budget")
    return [Phase(number, part, recipe.lr) for number, part in enumerate(parts)]
