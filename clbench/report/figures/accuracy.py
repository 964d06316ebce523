"""The figures of accuracy or another metric: over tasks, as heat maps of R, and forgetting per task."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clbench.core.objective import Metric, format_digits
from clbench.report.figures import style
from clbench.report.figures.data import axis_title, forgetting_per_task, values_over_tasks
from clbench.report.figures.style import INK, LABEL, PALE, StrategyStyle
from clbench.report.formatting import difference_unit, unit_of
from clbench.report.model import UNIT_SUFFIX, FigureData, Result, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL = 7.5  # font size on the axes of small panels, in points
_GAP, _HEAD = 0.3, 0.56  # inches between two panels, and above one
_LEAST, _SHARE = 4.6, 0.42  # font size of numbers in cells: the minimum in points, and as a share of a cell's width


def shades(results: Sequence[Result], styles: Mapping[str, StrategyStyle]) -> list[str]:
    """Return a color for each method: the color of its strategy, paler for each further method of that strategy."""
    from matplotlib.colors import to_hex, to_rgb

    colors = []
    for i, result in enumerate(results):
        family = [j for j, other in enumerate(results) if other.strategy == result.strategy]
        white = 0.65 * family.index(i) / len(family)
        red, green, blue = (c + (1 - c) * white for c in to_rgb(styles[result.strategy].color))
        colors.append(to_hex((red, green, blue)))
    return colors


def wrapped_label(result: Result, most: int = 22, count: int = 3) -> str:
    """Return a method's label in up to `count` lines of `most` characters, broken at spaces and before options.

    It ends with the number of seeds if some are missing.
    """
    missing = "" if result.complete else f" ({len(result.seeds)} seed{'s' * (len(result.seeds) > 1)})"
    first, *rest = re.findall(r"[: ]?[^: ]+", result.label + missing) or [""]
    lines = [first]
    for part in rest:
        if len(lines) < count and len(lines[-1] + part) > most:
            lines.append(part[1:])
        else:
            lines[-1] += part
    return "\n".join(style.shorten(line, most) for line in lines)


def draw_curves(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the metric's mean over the tasks seen so far, after each task, with its interval as a band."""
    curves = ends_of_intervals(values_over_tasks(data.results, data.metric))
    for curve, point in zip(curves, data.points, strict=True):  # the last interval is that of the comparison
        if point.low is not None and point.high is not None:
            curve[-1] = (curve[-1][0], point.low, point.high)
    return draw_lines(data, curves, styles, f"mean {axis_title(data.metric, ' over tasks seen')}")


def draw_lines(data: FigureData, curves: Sequence[Sequence[tuple[float, float, float]]],
               styles: Mapping[str, StrategyStyle], title: str, first: int = 1) -> Figure:
    """Draw a line for each method over the number of tasks, with bands of intervals.

    Args:
        data: the figure; its results are the methods.
        curves: the means of each method with the ends of their intervals.
        styles: the style of each strategy.
        title: the title of the vertical axis.
        first: the number of tasks at the start of the lines.
    """
    figure, axes = style.canvas(data.subject, height=4.3)
    texts = list(map(wrapped_label, data.results))
    style.make_room(figure, axes, texts)
    means = [[mean for mean, *_ in curve] for curve in curves]
    spans = [[(data.metric.clip(low), data.metric.clip(high)) for _, low, high in curve] for curve in curves]
    low = min(low for low, _ in chain.from_iterable(spans))
    high = max(high for _, high in chain.from_iterable(spans))
    pad = style.padding(low, high, 0.05, data.metric)
    axes.set_ylim(low - pad, high + pad)
    style.tasks_seen(axes, max(map(len, means)) - 1 + first, first)
    style.vertical_value_ticks(figure, axes, data.metric)
    axes.set_ylabel(title)
    for result, mean, span, color in zip(data.results, means, spans, shades(data.results, styles), strict=True):
        steps = range(first, len(mean) + first)
        axes.fill_between(steps, [a for a, _ in span], [b for _, b in span], color=color, alpha=0.13, linewidth=0,
                          zorder=1.5)
        axes.plot(steps, mean, color=color, linewidth=1.6, linestyle=(0, (4, 2)) if result.reference else "-",
                  marker=styles[result.strategy].marker, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
                  markevery=style.marker_interval(len(mean)), zorder=2.5 if result.reference else 3,
                  clip_on=False)
    style.label_ends(axes, means, texts, first)
    return figure


def ends_of_intervals(table: Table) -> list[list[tuple[float, float, float]]]:
    """Return each method's means with the ends of their intervals. With a single seed, both ends are the mean."""
    return [[(c.mean, c.mean if c.low is None else c.low, c.mean if c.high is None else c.high)
             for c in row.cells if c.mean is not None] for row in table.rows]


def draw_forgetting(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw each task's forgetting with its interval, methods side by side."""
    method_values = ends_of_intervals(forgetting_per_task(data.results, data.metric))
    tasks, count = max(map(len, method_values)), len(method_values)
    labels = list(map(wrapped_label, data.results))
    lines = max(2, 1 + max(label.count("\n") for label in labels))
    legend_height = 0.62 + (0.02 + 0.14 * lines) * math.ceil(count / 4)  # inches, for the legend
    figure, axes = style.canvas(data.subject, height=3.3 + legend_height)
    axes.set_position((0.095, legend_height / (3.3 + legend_height), 0.88, 2.95 / (3.3 + legend_height)))
    axes.set_xlim(0.5, tasks + 0.5)
    axes.set_xticks(range(1, tasks + 1) if tasks <= 20 else range(5, tasks + 1, 5))
    if names := _fitting(data.results, tasks, 0.88 * figure.get_figwidth() * 72 / tasks, LABEL):
        axes.set_xticks(range(1, tasks + 1), names, fontsize=LABEL)
    axes.grid(False, axis="x")
    axes.set_xlabel("task")
    unit = difference_unit(unit_of(data.metric))
    axes.set_ylabel(f"forgetting{UNIT_SUFFIX.get(unit, '')}")
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=1.5)
    for edge in range(1, tasks):
        axes.axvline(edge + 0.5, color=style.FAINT, linewidth=0.7, zorder=1)
    step = 0.8 / count
    colors = shades(data.results, styles)
    for k, (result, values, color) in enumerate(zip(data.results, method_values, colors, strict=True)):
        places = [task + (k - (count - 1) / 2) * step for task in range(1, len(values) + 1)]
        arms = [[max(mean - low, 0.0) for mean, low, _ in values], [max(high - mean, 0.0) for mean, _, high in values]]
        axes.errorbar(places, [mean for mean, *_ in values], arms, color=color,
                      linestyle="none", marker=styles[result.strategy].marker, elinewidth=1.1, zorder=3,
                      markersize=max(3.2, min(6.0, 400 * step / tasks)), label=labels[k],
                      markeredgewidth=1.0, markeredgecolor=color, clip_on=False,
                      markerfacecolor="white" if result.reference else color)
    style.vertical_value_ticks(figure, axes, data.metric)
    figure.legend(loc="lower left", bbox_to_anchor=(0.085, 0.0), ncols=4, handletextpad=0.3, columnspacing=1.6)
    return figure


def draw_heatmaps(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw R of each method on one scale. Rows are after training on a task, columns are tasks; row 0 is left out."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    matrices = [[[fmean(values) for values in zip(*rows, strict=True)]
                 for rows in list(zip(*result.R, strict=True))[1:]] for result in data.results]
    rows = chain.from_iterable(matrices)
    values = list(chain.from_iterable(rows))
    ends = min(values), max(values)
    if data.metric.is_share:
        ends = math.floor(10 * ends[0]) / 10, max(math.ceil(10 * ends[1]) / 10, 0.1)
    scale = ScalarMappable(Normalize(*ends), "Blues" if data.metric.direction == "up" else "Blues_r")
    column_count, side = _grid(len(matrices), max(map(len, matrices)))
    row_count = math.ceil(len(matrices) / column_count)
    width, height = 0.6 + column_count * side + (column_count - 1) * _GAP, 1.02 + row_count * (side + _HEAD)
    figure = style.blank(width, height)
    figure.text(0.42 / width, 1 - 0.1 / height, style.shorten(data.subject, int(13 * width)), color=PALE,
                fontsize=LABEL, va="top")
    for k, (result, R, color) in enumerate(zip(data.results, matrices, shades(data.results, styles), strict=True)):
        row, column = divmod(k, column_count)
        left, bottom = 0.5 + column * (side + _GAP), height - 0.2 - (row + 1) * (side + _HEAD)
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        cell = side * 72 / len(R)
        _panel(axes, R, scale, cell, data.metric, _fitting(data.results, len(R), cell, _SMALL))
        text = wrapped_label(result, int(side * 12.5), 2)
        marker_y = 1 + (0.1 + 0.13 * text.count("\n")) / side
        axes.plot([0.08 / side], [marker_y], marker=styles[result.strategy].marker, color=color, markersize=5,
                  transform=axes.transAxes, clip_on=False)
        axes.text(0.17 / side, 1 + 0.035 / side, text, transform=axes.transAxes, fontsize=LABEL, va="bottom",
                  linespacing=1.1)
        if column == 0:
            axes.set_ylabel("after task", fontsize=_SMALL, labelpad=2)
        if k + column_count >= len(matrices):
            axes.set_xlabel(f"{data.metric.label} on task", fontsize=_SMALL, labelpad=2)
    bar = figure.add_axes((0.5 / width, 0.3 / height, min(2.4, width - 0.7) / width, 0.09 / height))
    figure.colorbar(scale, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=_SMALL, length=2)
    style.value_ticks(bar.xaxis, data.metric, 8 if data.metric.is_share else 4)
    bar.set_title(axis_title(data.metric) + ", mean over seeds", fontsize=_SMALL, loc="left", pad=3)
    return figure


def _grid(panels: int, tasks: int) -> tuple[int, float]:
    """Return the number of panels in a row and their width in inches. A row has 4, or 3 if numbers only fit then."""
    for limit in (4, 3, 4):
        column_count = min(panels, limit)
        side = min(2.4, (6.6 - _GAP * (column_count - 1)) / column_count)
        if _SHARE * side * 72 / tasks >= _LEAST:
            break
    return column_count, side


def _fitting(results: Sequence[Result], tasks: int, width: float, size: float) -> list[str]:
    """Return the names of the tasks if the results share them and each fits into a width in points, else nothing."""
    names = list(results[0].task_names[:tasks])
    has_shared_names = names and all(result.task_names == results[0].task_names for result in results)
    return names if has_shared_names and max(style.text_width(name, size) for name in names) < width - 4 else []


def _panel(axes: Axes, R: Sequence[Sequence[float]], scale: Any, cell: float, metric: Metric,
           names: Sequence[str]) -> None:
    """Draw one matrix of square cells `cell` points wide; a line separates tasks seen from tasks to come."""
    tasks = len(R)
    axes.imshow(R, cmap=scale.cmap, norm=scale.norm, interpolation="nearest", aspect="equal")
    ticks = range(0, tasks, math.ceil(tasks / 10))
    axes.set_xticks(ticks, [names[t] if names else str(t + 1) for t in ticks])
    axes.set_yticks(ticks, [str(t + 1) for t in ticks])
    axes.tick_params(length=0, labelsize=min(_SMALL, 0.9 * cell * math.ceil(tasks / 10)), pad=2)
    axes.spines[:].set_visible(False)
    corners: list[tuple[float, float]] = []
    for i in range(tasks - 1):
        corners += [(i + 0.5, i - 0.5), (i + 0.5, i + 0.5)]
    corners.append((tasks - 0.5, tasks - 1.5))
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.8, alpha=0.6)
    texts = [[f"{100 * value:.0f}" if metric.is_share else format_digits(value) for value in row] for row in R]
    widest = max(style.text_width(text, 1.0) for text in chain.from_iterable(texts))
    size = min(8.0, _SHARE * cell, (cell - 4) / widest)
    if size < _LEAST:
        return
    for i, row in enumerate(R):
        for j, value in enumerate(row):
            shade = scale.norm(value) if metric.direction == "up" else 1 - scale.norm(value)
            axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=size,
                      color="white" if shade > 0.6 else INK)
