"""What the harness grants a strategy for a task: a phase of the steps, or the whole budget for a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.experiment.spec import Recipe


@dataclass(frozen=True)
class Budget:
    """What the recipe grants for one task, for a strategy with its own training loop (`Strategy.fit`).

    Args:
        recipe: epochs or iterations, batch size, precision, whether the optimiser's state is kept.
        following: returns the indices of the next batch within the task's samples, int64 [N] on the CPU; pass after
            pass, in the same order as for every other method.
        optimizer: makes the recipe's optimiser for parameters.
        schedule: makes the recipe's schedule for an optimiser over a number of steps; None if the rate is constant.
        augment: augments raw training images [N, C, H, W]; None if the benchmark does not. The flag says whether they
            are replayed. For the batches of `following`, each given as a whole, the draws are the same as for every
            other method; everything else gets draws of its own.
    """

    recipe: Recipe
    following: Callable[[], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler | None]
    augment: Callable[[Tensor, bool], Tensor] | None = None


class Phase(int):
    """The number of a phase of a task, 0, 1, ..., and what the harness grants it.

    Args:
        number: of the phase.
        steps: optimiser steps it has.
        lr: learning rate that the recipe begins with (before warm-up, schedule and `Strategy.learning_rates`).
    """

    steps: int
    lr: float

    def __new__(cls, number: int, steps: int = 0, lr: float = 0.0) -> Phase:
        """Make the number."""
        phase = super().__new__(cls, number)
        phase.steps, phase.lr = steps, lr
        return phase
