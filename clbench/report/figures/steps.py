"""A metric over steps: the mean curve of each method, and the figure with a panel for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.core.objective import ACCURACY, Metric
from clbench.report.figures import style
from clbench.report.figures.style import INK, LABEL, PALE, PALETTE, StrategyStyle
from clbench.report.formatting import describe_difference, unit_of
from clbench.report.model import UNIT_SUFFIX, FigureData, Result
from clbench.results import curve as metrics
from clbench.results.curve import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Point = tuple[int, float]  # (number of steps over all tasks, value)
MOST = 250  # points drawn per task after the first `DENSE` points, which show the boundary and are all drawn
DENSE = 51


@dataclass(frozen=True)
class MeanCurve:
    """The mean curve of a method.

    Args:
        label: of the method.
        row: of the method in every table of its section.
        ends: number of steps over all tasks at the end of each task; if seeds differ, of the longest.
        tasks: the metric on each task, from its first training step on.
        old: its mean over the earlier tasks while a task is trained, for each task from the second on.
    """

    label: str
    row: int
    ends: tuple[int, ...]
    tasks: tuple[tuple[Point, ...], ...]
    old: tuple[tuple[Point, ...], ...]

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest value."""
        values = [value for _, value in chain.from_iterable(self.tasks)]
        return min(values), max(values)


def mean_curves(results: Sequence[Result]) -> list[MeanCurve]:
    """Return the mean curves of the methods that are trained by steps and whose seeds have equally many tasks."""
    method_curves = []
    for row, result in enumerate(results):
        curves = result.curves
        has_steps = any(steps[-1] for curve in curves for steps in curve.steps)
        if has_steps and len({curve.tasks for curve in curves}) == 1:
            method_curves.append(_mean_curve(result.label, row, curves))
    return method_curves


def _mean_curve(label: str, position: int, curves: Sequence[Curve]) -> MeanCurve:
    tasks = curves[0].tasks
    lines: list[list[Point]] = [[] for _ in range(tasks)]
    old: list[tuple[Point, ...]] = []
    ends: list[int] = []
    begin = 0
    for task in range(tasks):
        shared_steps = sorted(set.intersection(*(set(curve.steps[task]) for curve in curves)))
        end = begin + max(curve.steps[task][-1] for curve in curves)
        curve_values = [dict(zip(curve.steps[task], metrics.task_values(curve, task), strict=True)) for curve in curves]
        rows = [(begin + step, [by_step[step] for by_step in curve_values]) for step in thin_steps(shared_steps)]
        rows.append((end, [metrics.row_after(curve, task) for curve in curves]))
        means = [(x, list(map(fmean, zip(*seed_rows, strict=True)))) for x, seed_rows in rows]
        for x, row in means:
            for line, mean in zip(lines, row, strict=False):
                line.append((x, mean))
        if task:
            old.append(tuple((x, fmean(row[:task])) for x, row in means))
        ends.append(end)
        begin = end
    return MeanCurve(label, position, tuple(ends), tuple(map(tuple, lines)), tuple(old))


def thin_steps(steps: Sequence[int]) -> list[int]:
    """Return the first `DENSE` of the steps that have a point, then at most `MOST` evenly spaced ones."""
    later_steps = steps[DENSE:]
    return [*steps[:DENSE], *later_steps[::max(1, math.ceil(len(later_steps) / MOST))]]


def steps_figure(subject: str, name: str, results: Sequence[Result], metric: Metric = ACCURACY) -> FigureData | None:
    """Return the figure of the metric over steps, or None if no method has points between its boundaries."""
    method_curves = mean_curves(results)
    if not method_curves:
        return None
    descriptions = []
    for curve in method_curves:
        gaps = list(chain.from_iterable(map(metrics.gaps, results[curve.row].curves)))
        change = "falls" if metric.direction == "up" else "rises"
        descriptions.append(curve.label + (
            f" {change} by {describe_difference(fmean(gap.depth for gap in gaps), metric)} on average" if gaps else ""))
    return FigureData(
        "steps", name, f"{metric.heading} during training", subject,
        f"{metric.heading} on each task while tasks are learned, in one panel per method. Mean {metric.label} on old "
        f"tasks after a new task begins: {'; '.join(descriptions)}.",
        f"{metric.heading} on each task from its first step on; the dark line is the mean over the tasks before the "
        "current one. Lines are means over seeds. Vertical lines show where a new task begins.",
        results=tuple(results[curve.row] for curve in method_curves), metric=metric)


ACROSS = 2  # panels side by side
DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)))  # line styles; the next one is used when all colors are used up
_TALL, _HEAD, _FOOT = 2.0, 0.42, 0.42  # heights in inches: a panel, the space above it, the space below


def draw_steps(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the metric on each task over the steps of all tasks."""
    method_curves = mean_curves(data.results)
    column_count = min(ACROSS, len(method_curves))
    row_count = math.ceil(len(method_curves) / column_count)
    tasks = max(len(curve.tasks) for curve in method_curves)
    keys = math.ceil((tasks + 1) / 8)  # lines of the legend
    width, height = 7.2, 0.25 + row_count * (_HEAD + _TALL + _FOOT) + 0.1 + 0.2 * keys
    figure = style.blank(width, height)
    figure.text(0.42 / width, 1 - 0.1 / height, style.shorten(data.subject, 90), color=PALE, fontsize=LABEL, va="top")
    last = max(curve.ends[-1] for curve in method_curves)
    right = max(0.15, (style.text_width(str(last), 9.5) / 2 + 4) / 72)  # room for half of the last tick's label
    panel_width = (width - 0.6 - right - 0.45 * (column_count - 1)) / column_count
    for k, curve in enumerate(method_curves):
        row, column = divmod(k, column_count)
        left = 0.6 + column * (panel_width + 0.45)
        bottom = height - 0.25 - row * (_HEAD + _TALL + _FOOT) - _HEAD - _TALL
        axes = figure.add_axes((left / width, bottom / height, panel_width / width, _TALL / height))
        _panel(axes, curve, data.metric)
        axes.set_title(style.shorten(curve.label, int(13 * panel_width)), loc="left", fontsize=9.5, pad=5)
        axes.plot([1.0], [1.07], marker=styles[data.results[k].strategy].marker,
                  color=styles[data.results[k].strategy].color, markersize=5, transform=axes.transAxes, clip_on=False)
        if column == 0:
            axes.set_ylabel(f"{data.metric.label}{UNIT_SUFFIX.get(unit_of(data.metric), '')}")
        if k + column_count >= len(method_curves):
            axes.set_xlabel("optimizer steps")
    figure.axes[0].plot([], [], color=INK, linewidth=1.6, label="mean over old tasks")
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=8, columnspacing=1.2,
                  handlelength=1.6, handletextpad=0.4)
    return figure


def style_of(task: int) -> tuple[str, int]:
    """Return the color of a task's line and the number of its dashes."""
    return PALETTE[task % len(PALETTE)], task // len(PALETTE) % len(DASHES)


def _panel(axes: Axes, curve: MeanCurve, metric: Metric) -> None:
    axes.grid(True, axis="y")
    axes.tick_params(length=3)
    axes.set_xlim(0, curve.ends[-1])
    low, high = curve.range
    pad = style.padding(low, high, 0.05, metric)
    axes.set_ylim(*((min(low, 0.98) - 0.03, 1.02) if metric.is_share else (low - pad, high + pad)))
    style.value_ticks(axes.yaxis, metric)
    for end in curve.ends[:-1]:
        axes.axvline(end, color=PALE, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1.5)
    for task, points in enumerate(curve.tasks):
        color, dashes = style_of(task)
        axes.plot(*zip(*points, strict=True), color=color, linestyle=DASHES[dashes], linewidth=0.9, zorder=2.5,
                  label=f"task {task + 1}")
    for points in curve.old:
        axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.6, zorder=3)
