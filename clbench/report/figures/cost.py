"""The figures of cost: accuracy (or another metric) against trainable parameters and compute, and growth over tasks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from clbench.core.objective import Metric
from clbench.report.figures import style
from clbench.report.figures.data import Panel, axis_title, panels
from clbench.report.figures.labels import Box, place, sample_polyline
from clbench.report.figures.style import INK, LABEL, PALE, StrategyStyle
from clbench.report.model import FigureData, FigurePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARGIN = 1.5  # points of space to the left and right of a label


def draw_pareto(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the metric against each cost on a log axis, with the Pareto front and a line for each sweep."""
    sides = panels(data.points, data.metric)
    figure, axes = style.panels(data.subject, len(sides), 7.2 if len(sides) == 1 else 11.4)
    points = list(chain.from_iterable(side.points for side in sides))
    ends = list(chain.from_iterable(_span(p, data.metric) for p in points))
    pad = style.padding(min(ends), max(ends), 0.06, data.metric)
    axes[0].set_ylim(min(ends) - pad, max(ends) + pad)
    axes[0].set_ylabel(axis_title(data.metric))
    style.vertical_value_ticks(figure, axes[0], data.metric)
    for side, panel_axes in zip(sides, axes, strict=True):
        _draw_panel(panel_axes, side, styles)
    _legend(figure, any(p.reference for p in points), any(side.best for side in sides))
    return figure


def _span(p: FigurePoint, metric: Metric) -> tuple[float, float]:
    """Return the ends of the interval of a method's final mean, clipped to possible values."""
    mean = p.accuracy or 0.0
    return metric.clip(mean if p.low is None else p.low), metric.clip(mean if p.high is None else p.high)


def _draw_panel(axes: Axes, side: Panel, styles: Mapping[str, StrategyStyle]) -> None:
    points, best = side.points, side.best
    x, y = list(side.costs), [p.accuracy or 0.0 for p in points]
    spans = [_span(p, side.metric) for p in points]
    ratio = max((max(x) / min(x)) ** 0.08, 1.25)
    bounds = min(x) / ratio, max(x) * ratio
    axes.set_xscale("log")
    axes.set_xlim(*bounds)
    style.log_counts(axes.xaxis, *bounds)
    axes.set_xlabel(side.title + (" (FLOPs)" if side.unit == "flops" else ""))
    lines = [_steps(axes, [(x[i], y[i]) for i in best], bounds[1])] if best else []
    for strategy, sweep in dict.fromkeys((p.strategy, p.sweep) for p in points if not p.reference):
        sweep_points = sorted((x[i], y[i]) for i, p in enumerate(points)
                              if (p.strategy, p.sweep) == (strategy, sweep) and not p.reference)
        axes.plot(*zip(*sweep_points, strict=True), color=styles[strategy].color, linewidth=1.0, alpha=0.8, zorder=2)
        lines.append(sweep_points)
    for i, p in enumerate(points):
        axes.plot([x[i], x[i]], spans[i], color=styles[p.strategy].color, linewidth=1.1, alpha=0.55, zorder=2.5,
                  solid_capstyle="butt")
        _marker(axes, x[i], y[i], styles[p.strategy], p.reference, i in best)
    _label_points(axes, points, list(zip(x, y, strict=True)), spans, lines)


def _steps(axes: Axes, best: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Draw the best value at each cost as a stepped line, and return its corners."""
    corners = [best[0]]
    for before, after in pairwise(best):
        corners += [(after[0], before[1]), after]
    corners.append((end, best[-1][1]))
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=1.0, alpha=0.55, zorder=1.5)
    return corners


def _marker(axes: Axes, x: float, y: float, strategy_style: StrategyStyle, hollow: bool, heavy: bool) -> None:
    level = 4.0 if heavy else 3.3 if hollow else 3.5
    axes.plot([x], [y], marker=strategy_style.marker, markersize=8.5 if heavy else 6.5, zorder=level,
              color="white" if hollow else strategy_style.color, markeredgewidth=1.3 if heavy or hollow else 0.6,
              markeredgecolor=strategy_style.color if hollow else INK if heavy else "white", clip_on=False)


def _label_points(axes: Axes, points: Sequence[FigurePoint], at: Sequence[tuple[float, float]],
                  spans: Sequence[tuple[float, float]], lines: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Write each method's label next to its marker, with a thin line to it if there is no room nearby."""
    texts = _labels(points, at)
    sizes = [(style.text_width(text, LABEL) + 2 * _MARGIN, 1.25 * LABEL) for text in texts]
    to_page = axes.transData.transform
    page = [(float(a), float(b)) for a, b in to_page(at)]
    bars = [sample_polyline([(float(a), float(b)) for a, b in to_page([(p[0], low), (p[0], high)])])
            for p, (low, high) in zip(at, spans, strict=True)]
    line_points = [sample_polyline([(float(a), float(b)) for a, b in to_page(line)]) for line in lines]
    offsets = list(product((-4, 0, 4), repeat=2))
    marks = [np.asarray([(a + dx, b + dy) for dx, dy in offsets]) for a, b in page]
    obstacles = np.concatenate([*marks, *bars, *line_points])
    weights = np.repeat([9.0, 1.5, 1.5], [sum(map(len, parts)) for parts in (marks, bars, line_points)])
    area = axes.get_window_extent()
    boxes = place(page, sizes, obstacles, weights, Box(area.x0 + 2, area.y0 + 2, area.width - 4, area.height + 2))
    to_data = axes.transData.inverted().transform
    for p, text, (x, y), box in zip(points, texts, page, boxes, strict=True):
        end = box.nearest(x, y)
        if (end[0] - x) ** 2 + (end[1] - y) ** 2 > 13 ** 2:
            axes.plot(*zip(*to_data([(x, y), end]), strict=True), color=PALE, linewidth=0.6, zorder=1.8)
        left, middle = to_data((box.x + _MARGIN, box.y + box.height / 2))
        axes.text(left, middle, text, fontsize=LABEL, color=PALE if p.reference else INK, zorder=5,
                  va="center", ha="left")


def _labels(points: Sequence[FigurePoint], at: Sequence[tuple[float, float]]) -> list[str]:
    """Return the label of each point. Options that all methods of a strategy share are shown only for the cheapest."""
    texts = []
    for i, p in enumerate(points):
        family = [j for j, q in enumerate(points) if q.strategy == p.strategy]
        parts = [points[j].label.split(":") for j in family]
        own_parts = [part for part in p.label.split(":") if not all(part in other_parts for other_parts in parts)]
        is_shortened = own_parts and at[i] != min(at[j] for j in family)
        texts.append(style.shorten(":".join(own_parts) if is_shortened else p.label))
    return texts


def _legend(figure: Figure, references: bool, ranked: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if ranked:
        handles.append(Line2D([], [], color=INK, linewidth=1.0, marker="o", markersize=8, markerfacecolor="#c8c8c8",
                              markeredgecolor=INK, markeredgewidth=1.3, label="Pareto front"))
    if references:
        handles.append(Line2D([], [], color=PALE, linewidth=0, marker="v", markersize=6.5, markerfacecolor="white",
                              markeredgewidth=1.3, label="reference"))
    handles.append(Line2D([], [], color=PALE, linewidth=0, marker="|", markersize=11, markeredgewidth=1.1,
                          label="95% confidence interval"))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.085, 0.005), ncols=3, columnspacing=1.8,
                  handlelength=1.7, handletextpad=0.6, borderpad=0.3)


def draw_growth(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the stored size over the tasks seen. Methods with the same sizes share a line in all their colors."""
    figure, axes = style.canvas(data.subject, height=3.9)
    curves: dict[tuple[float, ...], list[FigurePoint]] = {}
    for p in data.points:
        curves.setdefault(p.sizes, []).append(p)
    texts = [textwrap.fill(", ".join(style.shorten(p.label) for p in points), 34) for points in curves.values()]
    tasks = max(map(len, curves))
    top, low = max(map(max, curves)), min(map(min, curves))
    style.make_room(figure, axes, texts)
    style.tasks_seen(axes, tasks)
    if low > 0 and top / low > 4:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, top * 1.15)
        style.log_counts(axes.yaxis, low / 1.15, top * 1.15)
    else:
        axes.set_ylim(0, top * 1.08)
        axes.yaxis.set_major_formatter(lambda value, _: style.short_count(value))
    axes.set_ylabel(data.axis)
    for sizes, points in curves.items():
        _draw_shared(axes, sizes, [styles[s] for s in dict.fromkeys(p.strategy for p in points)])
    style.label_ends(axes, list(curves), texts)
    return figure


def _draw_shared(axes: Axes, sizes: Sequence[float], used_styles: Sequence[StrategyStyle]) -> None:
    """Draw one curve. If several strategies share it, its dashes and markers alternate between their styles."""
    steps = range(1, len(sizes) + 1)
    spacing = style.marker_interval(len(sizes))
    dash = 7.0
    for k, appearance in enumerate(used_styles):
        dashes = "-" if len(used_styles) == 1 else (k * dash, (dash, dash * (len(used_styles) - 1)))
        axes.plot(steps, sizes, color=appearance.color, linewidth=1.6, linestyle=dashes, dash_capstyle="butt",
                  zorder=2)
        marked = slice(k * spacing, None, len(used_styles) * spacing)
        axes.plot(steps[marked], sizes[marked], color=appearance.color, linestyle="none", marker=appearance.marker,
                  markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, zorder=3, clip_on=False)
