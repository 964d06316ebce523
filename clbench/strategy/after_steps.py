"""Base class of strategies that act after each optimizer step, for example to average weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from clbench.strategy.base import Batch, Strategy, Task


class ActsAfterSteps(Strategy):
    """Base of strategies with `after_step`; it must be the first base class.

    `after_step` is called when the next step begins, or when the task ends. Accuracy that is measured within a task
    therefore does not include its effect for the latest step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start with zero steps."""
        super().__init__(*args, **kwargs)
        self.steps, self.completed_steps = 0, 0  # steps that have begun; steps for which `after_step` was called

    @abstractmethod
    def after_step(self) -> None:
        """Act after the latest step. `self.steps` is its number, counted from 1 over all tasks."""

    def complete_step(self) -> None:
        """Call `after_step`, unless it has been called for the latest step or there was none."""
        if self.completed_steps != self.steps:
            self.completed_steps = self.steps
            self.after_step()

    def prepare_batch(self, batch: Batch) -> Batch:
        """Complete the latest step and begin the next one; return the batch that the other base classes prepare."""
        self.complete_step()
        self.steps += 1
        return super().prepare_batch(batch)

    def after_task(self, task: Task) -> None:
        """Complete the last step, then call `after_task` of the other base classes."""
        self.complete_step()
        super().after_task(task)
