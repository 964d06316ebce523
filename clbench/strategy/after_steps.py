"""A base of the strategies that do something after each optimizer step, such as averaging weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from clbench.strategy.base import Batch, Strategy, Task


class ActsAfterSteps(Strategy):
    """Base of strategies with `after_step`; in a list of bases, it comes first.

    It is called when the next step begins, or when the task ends. Accuracy that is measured within a task therefore
    lacks the latest step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin with no step."""
        super().__init__(*args, **kwargs)
        self.steps, self.completed_steps = 0, 0  # that have begun; that `after_step` has followed

    @abstractmethod
    def after_step(self) -> None:
        """Follow the latest step, the `self.steps`th of all tasks."""

    def complete_step(self) -> None:
        """Call `after_step`, unless it has been called for the latest step or there was none."""
        if self.completed_steps != self.steps:
            self.completed_steps = self.steps
            self.after_step()

    def prepare_batch(self, batch: Batch) -> Batch:
        """Complete the latest step and begin the next one; the batch is that of the other bases."""
        self.complete_step()
        self.steps += 1
        return super().prepare_batch(batch)

    def after_task(self, task: Task) -> None:
        """Complete the last step, before what the other bases do."""
        self.complete_step()
        super().after_task(task)
