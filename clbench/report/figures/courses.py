"""Accuracy over steps: each method's curve as its mean over seeds, for the figure that shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.report.model import FigureData, Result
from clbench.results import curve_metrics as metrics
from clbench.results.curve import Curve

Point = tuple[int, float]  # steps over all tasks, accuracy
MOST = 250  # points of a task that are drawn; the first ones, which a boundary is about, are left as they are
DENSE = 51


@dataclass(frozen=True)
class Course:
    """The mean curve of a method.

    Args:
        label: of the method.
        row: of the method in every table of its section.
        ends: steps over all tasks at the end of each task; where seeds differ in that, of the longest.
        tasks: the course of the accuracy on each task, from its own first step on.
        old: of the mean accuracy on the tasks before the one that is trained, a piece for each task from the second on.
    """

    label: str
    row: int
    ends: tuple[int, ...]
    tasks: tuple[tuple[Point, ...], ...]
    old: tuple[tuple[Point, ...], ...]

    @property
    def low(self) -> float:
        """Return the least accuracy."""
        return min(value for points in self.tasks for _, value in points)


def courses(results: Sequence[Result]) -> list[Course]:
    """Return the course of each method whose curve has training steps and whose seeds have the same number of tasks."""
    method_courses = []
    for row, result in enumerate(results):
        curves = result.curves
        if curves and len({len(curve.after) for curve in curves}) == 1 and any(curve.steps[-1][-1] for curve in curves):
            method_courses.append(_course(result.label, row, curves))
    return method_courses


def _course(label: str, position: int, curves: Sequence[Curve]) -> Course:
    tasks = len(curves[0].after)
    lines: list[list[Point]] = [[] for _ in range(tasks)]
    old: list[tuple[Point, ...]] = []
    ends: list[int] = []
    begin = 0
    for task in range(tasks):
        shared = sorted(set.intersection(*(set(curve.steps[task]) for curve in curves)))
        end = begin + max(curve.steps[task][-1] for curve in curves)
        places = [dict(zip(curve.steps[task], metrics.accuracies(curve, task), strict=True)) for curve in curves]
        rows = [(begin + step, [of[step] for of in places]) for step in thinned(shared)]
        rows.append((end, [metrics.after(curve, task) for curve in curves]))
        means = [(x, list(map(fmean, zip(*of_seeds, strict=True)))) for x, of_seeds in rows]
        for x, row in means:
            for line, mean in zip(lines, row, strict=False):
                line.append((x, mean))
        if task:
            old.append(tuple((x, fmean(row[:task])) for x, row in means))
        ends.append(end)
        begin = end
    return Course(label, position, tuple(ends), tuple(map(tuple, lines)), tuple(old))


def thinned(steps: Sequence[int]) -> list[int]:
    """Return at most about `MOST` of the steps that have a point: the first ones, then evenly spaced ones."""
    rest = steps[DENSE:]
    return [*steps[:DENSE], *rest[::max(1, math.ceil(len(rest) / MOST))]]


def steps_figure(subject: str, name: str, results: Sequence[Result]) -> FigureData | None:
    """Return the figure of accuracy over steps, or None if no method has points between its boundaries."""
    method_courses = courses(results)
    if not method_courses:
        return None
    falls = []
    for course in method_courses:
        gaps = [gap for curve in results[course.row].curves for gap in metrics.gaps(curve)]
        falls.append(course.label + (f" falls by {100 * fmean(gap.depth for gap in gaps):.1f} points on average"
                                     if gaps else ""))
    return FigureData(
        "steps", name, "Accuracy during training", subject,
        f"Accuracy on each task while tasks are learned, in one panel per method. Mean accuracy on old tasks after a "
        f"new task begins: {'; '.join(falls)}.",
        "Accuracy on each task from its first step on; the dark line is the mean over the tasks before the current "
        "one. Lines are means over seeds. Vertical lines show where a new task begins.",
        results=tuple(results[course.row] for course in method_courses))
