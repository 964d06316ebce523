"""Methods ranked across the settings of a report: average ranks, tests, and the critical-difference figure.

The figure is that of Demsar 2006. Drawing imports matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.report.analysis.grouping import Setting
from clbench.report.figures import style
from clbench.report.figures.style import INK, PALE, StrategyStyle
from clbench.report.formatting import join_names, number
from clbench.report.model import Cell, Column, FigureData, FigurePoint, Row, Table
from clbench.results.stats import ALPHA, Ranks, rank_methods, settings_needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LEAST_METHODS, LEAST_SETTINGS = 3, 2
_TITLE = "Average ranks"


def ranking(settings: Sequence[Setting]) -> tuple[tuple[Table, ...], tuple[str, ...], tuple[FigureData, ...]] | None:
    """Rank methods by their final means across settings, and return the table, the verdicts and the figure.

    Only methods with a result for every seed of every setting are ranked. Methods are matched by their ids. There is
    no figure if Friedman's test is not significant, because Nemenyi's test then shows no differences. Return None if
    ranks would be meaningless: if fewer than three methods remain, if settings share a benchmark and are therefore
    not independent, or if there are fewer settings than the test needs.
    """
    if len(settings) < LEAST_SETTINGS or len({s.records[0].trial.benchmark.name for s in settings}) < len(settings):
        return None
    by_id = [{m.id: m.label for m in s.methods if m.label in s.eligible} for s in settings]
    ids = [id_ for id_ in by_id[0] if all(id_ in label_by_id for label_by_id in by_id)]
    labels = [by_id[0][id_] for id_ in ids]
    if len(labels) < LEAST_METHODS or len(settings) < settings_needed(len(labels)):
        return None
    scores = [{label: -setting.metric.rank(fmean(values.values()))
               for label, values in setting.compared(setting.final).items()} for setting in settings]
    ranks = rank_methods([[by_label[label_by_id[id_]] for id_ in ids]
                          for by_label, label_by_id in zip(scores, by_id, strict=True)])
    methods = chain.from_iterable(s.methods for s in settings)
    left_out = dict.fromkeys(m.label for m in methods if not m.reference and m.id not in ids)
    verdicts = list(_verdicts(labels, ranks, len(settings)))
    if left_out:
        verdicts.append(f"Not ranked, because some setting lacks a result of some seed: {', '.join(left_out)}")
    figures = (_figure(settings, labels, ranks),) if ranks.p <= ALPHA else ()
    return (_table(settings, labels, ranks),), tuple(verdicts), figures


def better(ranks: Ranks, first: int, second: int) -> bool:
    """Return whether the first method's average rank is significantly better than the second's."""
    return ranks.p <= ALPHA and ranks.average[second] - ranks.average[first] > ranks.critical


def _table(settings: Sequence[Setting], labels: Sequence[str], ranks: Ranks) -> Table:
    rows = [Row(setting.title, tuple(Cell(f"{rank:g}", rank) for rank in setting_ranks))
            for setting, setting_ranks in zip(settings, ranks.ranks, strict=True)]
    k = range(len(labels))
    winners = {i for i in k if all(better(ranks, i, j) for j in k if j != i)}
    rows.append(Row("average rank", tuple(Cell(number(rank, "number"), rank, n=len(settings), bold=i in winners)
                                          for i, rank in enumerate(ranks.average))))
    return Table(f"Ranks by {_label(settings)} (1 is the best)",
                 tuple(Column(label, "number") for label in labels), tuple(rows), corner="setting")


def _label(settings: Sequence[Setting]) -> str:
    """Return the metrics by which methods are ranked, in words."""
    labels = dict.fromkeys(setting.metric.label for setting in settings)
    return join_names(list(labels))


def _verdicts(labels: Sequence[str], ranks: Ranks, settings: int) -> Sequence[str]:
    test = f"Friedman's test of {len(labels)} methods over {settings} settings: p = {ranks.p:.2g}"
    if ranks.p > ALPHA:
        return [f"{test}. There is no significant difference between the average ranks"]
    behind = [(a, [b for j, b in enumerate(labels) if better(ranks, i, j)]) for i, a in enumerate(labels)]
    pairs = "; ".join(f"{a} ranks significantly better than {join_names(worse)}" for a, worse in behind if worse)
    return [f"{test}. The average ranks differ significantly. With a critical difference of {ranks.critical:.2f} "
            f"(Nemenyi), {pairs or 'no pair of methods differs significantly'}"]


def _figure(settings: Sequence[Setting], labels: Sequence[str], ranks: Ranks) -> FigureData:
    strategies, label = {m.label: m.strategy for m in settings[0].methods}, _label(settings)
    points = sorted((FigurePoint(label, strategies[label], False, True, None, None, None, (), rank)
                     for label, rank in zip(labels, ranks.average, strict=True)), key=lambda p: p.rank or 0)
    average_ranks = "; ".join(f"{p.label} {number(p.rank or 0, 'number')}" for p in points)
    return FigureData(
        "critical-difference", "critical-difference", _TITLE,
        f"{label[0].upper() + label[1:]} in {len(settings)} settings; Friedman p = {ranks.p:.2g}",
        f"Average ranks over {len(settings)} settings: {average_ranks}. Critical difference {ranks.critical:.2f}.",
        f"Average rank by {label} over the settings; 1 is the best. A bar joins methods whose ranks are not "
        f"significantly different (Nemenyi, {100 * ALPHA:g}%). The line at the top is as long as the critical "
        "difference.", tuple(points), critical=ranks.critical)


_STEP = 17.0  # points between two lines of text
_LABEL = 9.0  # size of labels in points


def draw_critical_difference(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw methods on a scale of average ranks, the best on the left.

    Bars join methods whose ranks do not differ significantly. The points must be in the order of rising ranks.
    """
    points, critical = data.points, data.critical or 0.0
    ranks = [p.rank or 0.0 for p in points]
    joined = groups(ranks, critical)
    half = math.ceil(len(points) / 2)
    top, between = 54.0, 12.0 + 9.0 * len(joined)  # points above the scale, and from it to the first label
    height = 34.0 + top + between + _STEP * half
    figure, axes = style.canvas(data.subject, height=height / 72)
    axes.set_position((0.0, 0.0, 1.0, (height - 30) / height))
    axes.set_axis_off()
    axes.set_title(axes.get_title(loc="left"), loc="left", color=PALE, fontsize=8.5, x=0.02, pad=9)
    labels = [style.shorten(p.label) for p in points]
    width = figure.get_figwidth() * 72
    start, end = (max(style.text_width(f"{label}  99.99", _LABEL) for label in side_labels) + 26
                  for side_labels in (labels[:half], labels[half:]))
    end = width - end
    axes.set_xlim(0, width)
    axes.set_ylim(-(between + _STEP * half + 4), top)  # one unit of the axes is one point
    worst = max(len(points), math.ceil(ranks[-1]))

    def place(rank: float) -> float:
        return start + (end - start) * (rank - 1) / (worst - 1)

    _scale(axes, [place(r) for r in range(1, worst + 1)], critical,
           place(1 + critical) if 1 + critical <= worst else None)
    for k, (first, last) in enumerate(joined):
        y = -(11.0 + 9.0 * k)
        axes.plot([place(ranks[first]) - 4, place(ranks[last]) + 4], [y, y], color=INK, linewidth=3.6,
                  solid_capstyle="round", zorder=3)
    for i, (point, rank, label) in enumerate(zip(points, ranks, labels, strict=True)):
        is_left = i < half
        y = -(between + _STEP * (i if is_left else len(points) - 1 - i) + _STEP / 2)
        x, edge = place(rank), start - 8 if is_left else end + 8
        color = styles[point.strategy].color
        axes.plot([x, x, edge], [0, y, y], color=color, linewidth=1.2, zorder=2, solid_joinstyle="miter")
        axes.plot([x], [0], marker=styles[point.strategy].marker, color=color, markersize=6.5, zorder=4,
                  markeredgecolor="white", markeredgewidth=0.6)
        text = f"{label}  {rank:.2f}" if is_left else f"{rank:.2f}  {label}"
        axes.text(edge + (-5 if is_left else 5), y, text, ha="right" if is_left else "left", va="center",
                  fontsize=_LABEL)
    return figure


def groups(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Return the first and last position of each maximal run of ranks that are no further apart than `critical`.

    The ranks must rise.

    >>> groups([1.0, 1.5, 2.8, 4.0], 1.4)
    [(0, 1), (1, 2), (2, 3)]
    """
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank <= critical)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _scale(axes: Axes, ticks: Sequence[float], critical: float, end: float | None) -> None:
    """Draw the scale with its numbers, and above it the critical difference, if that fits on the scale."""
    axes.plot([ticks[0], ticks[-1]], [0, 0], color=PALE, linewidth=1.0, zorder=1)
    for rank, x in enumerate(ticks, start=1):
        axes.plot([x, x], [0, 5], color=PALE, linewidth=1.0, zorder=1)
        axes.text(x, 9, str(rank), ha="center", va="bottom", fontsize=_LABEL)
    start, text = ticks[0], f"critical difference {critical:.2f}"
    if end is None:
        axes.text(start, 36, f"{text}, wider than the scale", ha="left", va="center", fontsize=8.5, color=PALE)
        return
    axes.plot([start, start, start, end, end, end], [29, 35, 32, 32, 35, 29], color=INK, linewidth=1.0)
    axes.text(start, 39, text, ha="left", va="bottom", fontsize=8.5, color=PALE)
