"""Strategies on a base that is frozen: with `base = task1` the first half of the first task's steps makes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import Phase


class FrozenBase(Strategy, ABC):
    """Splits the first task in two phases where the base is to be trained; it stands before other bases.

    Subclasses let the base learn in `before_task` if the task has two phases, and define `base_learned`.
    """

    options: Any  # has the fields of StartOptions, among others

    def phases(self, task: Task) -> int:
        """Return 2 for the first task with `base = task1`: one phase for the base, one for the parts on top of it.

        Return 1 if the model consists of a head alone, so that no steps are spent on a base that does not exist.
        """
        phases: int = self.options.phases(task.index) if self.model.has_body else 1
        return phases

    def before_phase(self, task: Task, phase: Phase) -> None:
        """Go on from the base once it has been trained."""
        if phase == 1:
            self.base_learned(task)

    @abstractmethod
    def base_learned(self, task: Task) -> None:
        """Freeze the trained base, and make the parts on top of it trainable."""
