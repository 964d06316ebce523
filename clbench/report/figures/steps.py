"""The figure of accuracy over steps: a panel for each method, a line for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clbench.report.figures import style
from clbench.report.figures.courses import Course, courses
from clbench.report.figures.style import INK, LABEL, PALE, PALETTE, StrategyStyle
from clbench.report.model import FigureData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 2  # panels side by side
DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)))  # for tasks beyond the colours
_TALL, _HEAD, _FOOT = 2.0, 0.42, 0.42  # inches: a panel, what is above it, what is below


def draw_steps(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the accuracy on each task over the steps of all tasks."""
    method_courses = courses(data.results)
    across = min(ACROSS, len(method_courses))
    down = math.ceil(len(method_courses) / across)
    tasks = max(len(course.tasks) for course in method_courses)
    keys = math.ceil((tasks + 1) / 8)  # lines of the legend
    width, height = 7.2, 0.25 + down * (_HEAD + _TALL + _FOOT) + 0.1 + 0.2 * keys
    figure = style.blank(width, height)
    figure.text(0.42 / width, 1 - 0.1 / height, style.shorten(data.subject, 90), color=PALE, fontsize=LABEL, va="top")
    each = (width - 0.6 - 0.15 - 0.45 * (across - 1)) / across
    for k, course in enumerate(method_courses):
        row, column = divmod(k, across)
        left = 0.6 + column * (each + 0.45)
        bottom = height - 0.25 - row * (_HEAD + _TALL + _FOOT) - _HEAD - _TALL
        axes = figure.add_axes((left / width, bottom / height, each / width, _TALL / height))
        _panel(axes, course)
        axes.set_title(style.shorten(course.label, int(13 * each)), loc="left", fontsize=9.5, pad=5)
        axes.plot([1.0], [1.07], marker=styles[data.results[k].strategy].marker,
                  color=styles[data.results[k].strategy].colour, markersize=5, transform=axes.transAxes, clip_on=False)
        if column == 0:
            axes.set_ylabel("accuracy (%)")
        if k + across >= len(method_courses):
            axes.set_xlabel("optimizer steps")
    figure.axes[0].plot([], [], color=INK, linewidth=1.6, label="mean over old tasks")
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=8, columnspacing=1.2,
                  handlelength=1.6, handletextpad=0.4)
    return figure


def look_of(task: int) -> tuple[str, int]:
    """Return the color of a task's line and the number of its dashes."""
    return PALETTE[task % len(PALETTE)], task // len(PALETTE) % len(DASHES)


def _panel(axes: Axes, course: Course) -> None:
    axes.grid(True, axis="y")
    axes.tick_params(length=3)
    axes.set_xlim(0, course.ends[-1])
    axes.set_ylim(min(course.low, 0.98) - 0.03, 1.02)
    style.percentages(axes.yaxis)
    for end in course.ends[:-1]:
        axes.axvline(end, color=PALE, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1.5)
    for task, points in enumerate(course.tasks):
        colour, dashes = look_of(task)
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=DASHES[dashes], linewidth=0.9, zorder=2.5,
                  label=f"task {task + 1}")
    for points in course.old:
        axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.6, zorder=3)
