"""Curve: the accuracy while tasks were learned, as a record keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

Numbers = Annotated[  # long lists, which are written on one line: "0 1 2 3"
    list[int], BeforeValidator(lambda value: list(map(int, value.split())) if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(map(str, value)), return_type=str, when_used="json")]


class Curve(BaseModel):
    """Accuracy during training: the number of correct answers on a fixed set of test samples of each task.

    Each list has an entry for each task that was trained. The points of a task are before its first step, after each
    of the first steps, after every `every`-th step and after the last step (`clbench.training.callbacks.curve`). A
    point covers the tasks up to the current one, whose outputs compete. A task has only the first point if it takes no
    steps or if its training loop cannot be observed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(description="Requested number of steps between points.")
    samples: list[int] = Field(description="Test samples of each task that are evaluated at each point.")
    steps: list[Numbers] = Field([], description="Optimizer steps taken on the task at each point.")
    right: list[list[Numbers]] = Field(
        [], description="Right answers at each point, for each task up to the trained one.")
    after: list[Numbers] = Field(
        [], description="Right answers on each task up to the trained one, after consolidation.")

    @model_validator(mode="after")
    def _consistent(self) -> Curve:
        """Check that there is a number for each point and that there are no more right answers than samples."""
        for index, (steps, right) in enumerate(zip(self.steps, self.right, strict=True)):
            if len(right) != index + 1 or any(len(series) != len(steps) for series in right):
                raise ValueError("a curve has not one number for each point and task")
        series = [*(pair for right in self.right for pair in enumerate(right)),
                  *((j, [count]) for after in self.after for j, count in enumerate(after))]
        if any(not 0 <= count <= self.samples[j] for j, counts in series for count in counts):
            raise ValueError("a curve has more right answers than test samples")
        return self

    def serves(self, every: int, samples: int, available: Sequence[int]) -> bool:
        """Return whether the curve is at least as fine as requested.

        Args:
            every: requested number of steps between points.
            samples: requested number of test samples per task.
            available: number of test samples that each task has.
        """
        return self.every <= every and all(
            count >= min(samples, n) for count, n in zip(self.samples, available, strict=True))
