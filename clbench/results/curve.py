"""Curve: the accuracy while tasks are learned, and its metrics as pure functions (docs/metrics.md).

Indices: tasks 0, ..., T - 1; boundary t lies before task t, 0 < t < T. Old tasks at boundary t are those before t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from clbench.results.metrics import mean_or_none

NEAR = 0.02  # accuracies that differ by at most this count as equal for the length of a gap


class Gap(NamedTuple):
    """The mean accuracy on old tasks while the next task is learned, as fractions.

    Args:
        before: accuracy after consolidation of the task before the boundary.
        lowest: lowest accuracy after a step of the new task or after its consolidation.
        end: accuracy after consolidation of the new task.
        lowest_step: first step of the new task with the lowest accuracy.
        length: first later step with an accuracy within `NEAR` of `end`, or None if the accuracy does not recover.
    """

    before: float
    lowest: float
    end: float
    lowest_step: int
    length: int | None

    @property
    def depth(self) -> float:
        """Return how far the accuracy falls."""
        return self.before - self.lowest

    @property
    def recovery(self) -> float:
        """Return how much of the drop is recovered at the end of the new task."""
        return self.end - self.lowest


def accuracies(curve: Curve, task: int) -> list[list[float]]:
    """Return the accuracy on each task so far at each point of a task, [points][task + 1]."""
    return [[count / curve.samples[j] for j, count in enumerate(row)]
            for row in zip(*curve.right[task], strict=True)]


def row_after(curve: Curve, task: int) -> list[float]:
    """Return the accuracy on each task so far after consolidation of a task."""
    return [count / curve.samples[j] for j, count in enumerate(curve.after[task])]


def learning(curve: Curve, task: int) -> list[tuple[int, list[float]]]:
    """Return the steps and accuracies of a task's points after its steps, followed by its point after consolidation."""
    steps, rows = curve.steps[task], accuracies(curve, task)
    return [*((step, row) for step, row in zip(steps, rows, strict=True) if step), (steps[-1], row_after(curve, task))]


def min_acc(curve: Curve) -> float | None:
    """Return min-ACC: the mean, over all tasks except the last, of a task's lowest accuracy since it was learned.

    None for a single task. De Lange et al. 2023.
    """
    tasks = len(curve.after)
    if tasks < 2:
        return None
    minima = []
    for j in range(tasks - 1):
        later_points = chain.from_iterable(learning(curve, t) for t in range(j + 1, tasks))
        minima.append(min(accuracies_by_task[j] for _, accuracies_by_task in later_points))
    return fmean(minima)


def wc_acc(curve: Curve) -> float | None:
    """Return WC-ACC, worst-case accuracy: the last task's final accuracy and min-ACC, weighted 1 : T - 1.

    None for a single task. De Lange et al. 2023.
    """
    tasks, min_accuracy = len(curve.after), min_acc(curve)
    return None if min_accuracy is None else row_after(curve, tasks - 1)[-1] / tasks + (1 - 1 / tasks) * min_accuracy


def anytime(curve: Curve) -> float:
    """Return the anytime average: the mean over all steps of the mean accuracy on the tasks so far.

    A point represents the steps since the point before it. Every task has the same weight. A task without steps counts
    with its accuracy after consolidation. Caccia et al. 2020; Koh et al. 2022 average over samples.
    """
    return fmean(_mean_over_steps(curve, task) for task in range(len(curve.after)))


def _mean_over_steps(curve: Curve, task: int) -> float:
    steps = curve.steps[task]
    if not steps[-1]:
        return fmean(row_after(curve, task))
    means = list(map(fmean, accuracies(curve, task)))
    return sum((b - a) * mean for a, b, mean in zip(steps, steps[1:], means[1:], strict=False)) / steps[-1]


def gaps(curve: Curve) -> list[Gap]:
    """Return the gap at each boundary."""
    return [_gap(curve, task) for task in range(1, len(curve.after))]


def _gap(curve: Curve, task: int) -> Gap:
    series = old_tasks(curve, task)
    before, end = fmean(row_after(curve, task - 1)), series[-1][1]
    lowest_step, lowest = min(series, key=lambda point: point[1])
    recovery_step = next(step for step, mean in series if step >= lowest_step and mean >= end - NEAR)
    return Gap(before, lowest, end, lowest_step, recovery_step if end - lowest > NEAR else None)


def old_tasks(curve: Curve, task: int) -> list[tuple[int, float]]:
    """Return the mean accuracy on the tasks before one at each of its points (`learning`), with their steps."""
    return [(step, fmean(row[:task])) for step, row in learning(curve, task)]


def mean_depth(curve: Curve) -> float | None:
    """Return the mean depth of the gaps; None for a single task."""
    return mean_or_none([gap.depth for gap in gaps(curve)])


def mean_recovery(curve: Curve) -> float | None:
    """Return the mean recovery from the gaps; None for a single task."""
    return mean_or_none([gap.recovery for gap in gaps(curve)])


def mean_length(curve: Curve) -> float | None:
    """Return the mean length of the gaps that are recovered from, in steps; None if there are none."""
    return mean_or_none([gap.length for gap in gaps(curve) if gap.length is not None])


Numbers = Annotated[  # long lists are written as text on one line: "0 1 2 3"
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
    samples: list[int] = Field(description="Number of test samples of each task that are evaluated at each point.")
    steps: list[Numbers] = Field([], description="Optimizer steps on the task before each point.")
    right: list[list[Numbers]] = Field(
        [], description="Number of correct predictions at each point, for each task up to the trained one.")
    after: list[Numbers] = Field(
        [], description="Number of correct predictions on each task up to the trained one, after consolidation.")

    @model_validator(mode="after")
    def _check(self) -> Curve:
        """Check that there is a number for each point and that there are no more right answers than samples."""
        for index, (steps, right) in enumerate(zip(self.steps, self.right, strict=True)):
            if len(right) != index + 1 or any(len(series) != len(steps) for series in right):
                raise ValueError("a curve has not one number for each point and task")
        for counts_by_task in (*self.right, *([[count] for count in after] for after in self.after)):
            for j, counts in enumerate(counts_by_task):
                if any(not 0 <= count <= self.samples[j] for count in counts):
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
