"""Curve: the accuracy, or another metric, while tasks are learned, and its metrics as pure functions (docs/metrics.md).

Indices: tasks 0, ..., T - 1; boundary t lies before task t, 0 < t < T. Old tasks at boundary t are those before t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from clbench.core.objective import ACCURACY, METRICS, Metric, find_metric
from clbench.results.metrics import mean_or_none
from clbench.results.record_parts import RecordPart

NEAR = 0.02  # values that differ by at most this count as equal for the length of a gap: shares of 1,
NEAR_NATS = 0.05  # nats,
# and `NEAR` of a value in the unit of a target.


class Gap(NamedTuple):
    """The mean of the metric on old tasks while the next task is learned; accuracies are fractions.

    Args:
        before: value after consolidation of the task before the boundary.
        worst: worst value after a step of the new task or after its consolidation.
        end: value after consolidation of the new task.
        worst_step: first step of the new task with the worst value.
        length: first later step with a value that is `near` that of `end`, or None if the metric does not recover.
        metric: the metric.
    """

    before: float
    worst: float
    end: float
    worst_step: int
    length: int | None
    metric: Metric = ACCURACY

    @property
    def depth(self) -> float:
        """Return how much worse the metric gets."""
        return self.metric.gain(self.worst, self.before)

    @property
    def recovery(self) -> float:
        """Return how much of that is recovered at the end of the new task."""
        return self.metric.gain(self.worst, self.end)

    @property
    def is_small(self) -> bool:
        """Return whether the metric gets so little worse that a recovery cannot be measured."""
        return self.depth <= near(self.end, self.metric)


def near(value: float, metric: Metric) -> float:
    """Return the difference to a value up to which values of a metric count as equal for the length of a gap."""
    if metric.unit.startswith("nats"):
        return NEAR_NATS
    return NEAR if metric.is_share or not metric.unit else NEAR * abs(value)


def task_values(curve: Curve, task: int) -> list[list[float]]:
    """Return the metric on each task so far at each point of a task, [points][task + 1]."""
    if curve.metric:
        return [list(row) for row in zip(*curve.values[curve.metric][task], strict=True)]
    return [[count / curve.samples[j] for j, count in enumerate(row)]
            for row in zip(*curve.right[task], strict=True)]


def row_after(curve: Curve, task: int) -> list[float]:
    """Return the metric on each task so far after consolidation of a task."""
    if curve.metric:
        return list(curve.values_after[curve.metric][task])
    return [count / curve.samples[j] for j, count in enumerate(curve.after[task])]


def learning(curve: Curve, task: int) -> list[tuple[int, list[float]]]:
    """Return the steps and values of a task's points after its steps, followed by its point after consolidation."""
    steps, rows = curve.steps[task], task_values(curve, task)
    return [*((step, row) for step, row in zip(steps, rows, strict=True) if step), (steps[-1], row_after(curve, task))]


def min_acc(curve: Curve) -> float | None:
    """Return min-ACC: the mean, over all tasks except the last, of a task's worst value since it was learned.

    None for a single task. De Lange et al. 2023.
    """
    tasks = curve.tasks
    if tasks < 2:
        return None
    worst_values = []
    for j in range(tasks - 1):
        later_points = chain.from_iterable(learning(curve, t) for t in range(j + 1, tasks))
        worst_values.append(curve.about.worst(row[j] for _, row in later_points))
    return fmean(worst_values)


def wc_acc(curve: Curve) -> float | None:
    """Return WC-ACC, worst-case accuracy: the last task's final value and min-ACC, weighted 1 : T - 1.

    None for a single task. De Lange et al. 2023.
    """
    tasks, worst = curve.tasks, min_acc(curve)
    return None if worst is None else row_after(curve, tasks - 1)[-1] / tasks + (1 - 1 / tasks) * worst


def anytime(curve: Curve) -> float:
    """Return the anytime average: the mean over all steps of the mean value on the tasks so far.

    A point represents the steps since the point before it. Every task has the same weight. A task without steps counts
    with its value after consolidation. Caccia et al. 2020; Koh et al. 2022 average over samples.
    """
    return fmean(_mean_over_steps(curve, task) for task in range(curve.tasks))


def _mean_over_steps(curve: Curve, task: int) -> float:
    steps = curve.steps[task]
    if not steps[-1]:
        return fmean(row_after(curve, task))
    means = list(map(fmean, task_values(curve, task)))
    return sum((b - a) * mean for a, b, mean in zip(steps, steps[1:], means[1:], strict=False)) / steps[-1]


def gaps(curve: Curve) -> list[Gap]:
    """Return the gap at each boundary."""
    return [_gap(curve, task) for task in range(1, curve.tasks)]


def _gap(curve: Curve, task: int) -> Gap:
    series, metric = old_tasks(curve, task), curve.about
    before, end = fmean(row_after(curve, task - 1)), series[-1][1]
    worst_step, worst = max(series, key=lambda point: metric.rank(point[1]))
    limit = near(end, metric)
    recovered = metric.rank(end - limit if metric.direction == "up" else end + limit)
    recovery_step = next(step for step, mean in series if step >= worst_step and metric.rank(mean) <= recovered)
    return Gap(before, worst, end, worst_step, recovery_step if metric.gain(worst, end) > limit else None, metric)


def old_tasks(curve: Curve, task: int) -> list[tuple[int, float]]:
    """Return the mean value on the tasks before one at each of its points (`learning`), with their steps."""
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


Decimals = Annotated[  # likewise: "0.25 1.5"
    list[float], BeforeValidator(lambda value: list(map(float, value.split())) if isinstance(value, str) else value),
    PlainSerializer(lambda value: " ".join(map(repr, value)), return_type=str, when_used="json")]


class Curve(RecordPart):
    """Metrics during training, on a fixed set of test samples of each task.

    Of classes, it has the number of correct answers (`right`, `after`); else the values of each metric.

    Each list has an entry for each task that was trained. The points of a task are before its first step, after each
    of the first steps, after every `every`-th step and after the last step (`clbench.training.callbacks.curve`). A
    point covers the tasks up to the current one, whose outputs compete. A task has only the first point if it takes no
    steps or if its training loop cannot be observed.
    """

    LATER: ClassVar[tuple[str, ...]] = ("metric", "values", "values_after")

    every: int = Field(description="Requested number of steps between points.")
    samples: list[int] = Field(description="Number of test samples of each task that are evaluated at each point.")
    steps: list[Numbers] = Field([], description="Optimizer steps on the task before each point.")
    right: list[list[Numbers]] = Field(
        [], description="Number of correct predictions at each point, for each task up to the trained one.")
    after: list[Numbers] = Field(
        [], description="Number of correct predictions on each task up to the trained one, after consolidation.")
    metric: str = Field("", description="Metric that the curve is about; empty for accuracy.")
    values: dict[str, list[list[Decimals]]] = Field(
        {}, description="Without classes: values at each point, by metric, for each task up to the trained one.")
    values_after: dict[str, list[Decimals]] = Field(
        {}, description="Without classes: values on each task up to the trained one, by metric, after consolidation.")

    @model_validator(mode="after")
    def _check(self) -> Curve:
        """Check that there is a number for each point and that there are no more right answers than samples."""
        if self.metric and self.metric not in METRICS:
            raise ValueError(f"{self.metric!r} is no metric; known are {', '.join(METRICS)}")
        matrices: list[Sequence[Sequence[Sequence[float]]]] = [*self.values.values()] if self.metric else [self.right]
        for by_task in matrices:
            for index, (steps, series_by_task) in enumerate(zip(self.steps, by_task, strict=True)):
                if len(series_by_task) != index + 1 or any(len(series) != len(steps) for series in series_by_task):
                    raise ValueError("a curve has not one number for each point and task")
        for counts_by_task in (*self.right, *([[count] for count in after] for after in self.after)):
            for j, counts in enumerate(counts_by_task):
                if any(not 0 <= count <= self.samples[j] for count in counts):
                    raise ValueError("a curve has more right answers than test samples")
        return self

    @property
    def about(self) -> Metric:
        """Return the metric that the curve is about."""
        return find_metric(self.metric)

    @property
    def tasks(self) -> int:
        """Return the number of tasks that were trained to their end."""
        return len(self.values_after.get(self.metric, ()) if self.metric else self.after)

    def by_metric(self, name: str) -> Curve:
        """Return the curve of another metric; the values of all metrics stay."""
        return self.model_copy(update={"metric": name})

    def serves(self, every: int, samples: int, available: Sequence[int]) -> bool:
        """Return whether the curve is at least as fine as requested.

        Args:
            every: requested number of steps between points.
            samples: requested number of test samples per task.
            available: number of test samples that each task has.
        """
        return self.every <= every and all(
            count >= min(samples, n) for count, n in zip(self.samples, available, strict=True))


# the numbers of correct samples of each task so far or, without classes, the values on each of them by metric
Point = list[int] | dict[str, list[float]]


def add_point(curve: Curve, task: int, step: int, point: Point) -> None:
    """Add a point of a task to a curve."""
    rows: dict[str, Any] = point if isinstance(point, dict) else {"": point}
    if len(curve.steps) == task:
        curve.steps.append([])
        for name in rows:
            series_by_task = curve.values.setdefault(name, []) if name else curve.right
            series_by_task.append([[] for _ in range(task + 1)])
    curve.steps[task].append(step)
    for name, row in rows.items():
        by_task: list[list[Any]] = (curve.values[name] if name else curve.right)[task]
        for series, value in zip(by_task, row, strict=True):
            series.append(value)


def add_last_point(curve: Curve, point: Point) -> None:
    """Add the point after consolidation of a task to a curve."""
    if isinstance(point, dict):
        for name, row in point.items():
            curve.values_after.setdefault(name, []).append(row)
    else:
        curve.after.append(point)
