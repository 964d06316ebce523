"""The figure of the error decomposition: for each method, a stacked bar of points lost, and the loss of a probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from clbench.report.analysis.errors import (
    BIAS,
    CONFUSED,
    HEADINGS,
    LOST,
    MISGUIDED,
    OUTDONE,
    PARTS,
    PROBE,
    UNGUIDED,
    WITHIN,
)
from clbench.report.figures import style
from clbench.report.figures.style import INK, LABEL, PALE, PALETTE, StrategyStyle
from clbench.report.model import FigureData, Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

COLORS = {WITHIN: PALETTE[5], BIAS: PALETTE[4], CONFUSED: PALETTE[1], MISGUIDED: PALETTE[3], OUTDONE: PALETTE[2],
           UNGUIDED: PALE}
_WIDTH = 7.2  # inches
_EACH, _TITLE, _KEYS, _BELOW = 0.27, 0.5, 0.25, 0.62  # inches: a method, title, a line of the legend, the axis
_MARGIN = 0.1  # inches to the left and to the right of the legend
_HANDLE, _GAP, _COLUMNS = 1.0, 0.4, 1.2  # legend: widths of a handle and of spaces, in font sizes


def errors_figure(subject: str, name: str, table: Table) -> FigureData | None:
    """Return the figure of a table of error parts, or None if the table has no values."""
    titles = [column.title for column in table.columns]
    part_cells = chain.from_iterable(table.cells(title) for title in titles if title in PARTS)
    if not any(cell.mean is not None for cell in part_cells):
        return None
    totals = "; ".join(f"{row.label} {cell.text}" for row, cell in zip(table.rows, table.cells(LOST), strict=True))
    values = {title: [cell.mean for cell in table.cells(title)] for title in (*PARTS, PROBE) if title in titles}
    part_values = chain.from_iterable(values.get(title, ()) for title in PARTS)
    negative = any(value and value < 0 for value in part_values)
    return FigureData(
        "errors", name, "Where the errors come from", subject, f"Points lost: {totals}.",
        "Points lost after the last task, mean over seeds, divided into parts that sum to the error."
        + (" Parts left of 0 are negative." if negative else "")
        + (" Task-recency bias is what the best constant for each task's outputs would correct; these constants are "
           "fitted to half of the test samples and evaluated on the others." if any(values.get(BIAS, ())) else "")
        + (" Diamonds show the points that a linear probe loses: ridge regression on the final features with all "
           "training samples."
           if any(value is not None for value in values.get(PROBE, ())) else ""), table=table)


def draw_errors(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw a bar for each method with its parts side by side. Negative parts are to the left of 0."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    table = data.table
    assert table is not None
    titles = [c.title for c in table.columns]
    parts = [name for name in PARTS if name in titles]
    rows = [row for row in table.rows if any(row.cells[titles.index(name)].mean is not None for name in parts)]
    drawn = [name for name in parts if any(row.cells[titles.index(name)].mean for row in rows)]
    handles: list[Artist] = [Patch(color=COLORS[name], linewidth=0, label=HEADINGS[name]) for name in drawn]
    probes = [row.cells[titles.index(PROBE)].mean if PROBE in titles else None for row in rows]
    marker_style: dict[str, Any] = {"marker": "D", "color": "white", "markeredgecolor": INK, "markersize": 4.5,
                                    "linestyle": "none"}
    if any(probe is not None for probe in probes):
        handles.append(Line2D([], [], label="linear probe", **marker_style))
    across = _columns([str(handle.get_label()) for handle in handles], 72 * (_WIDTH - 2 * _MARGIN))
    lines = math.ceil(len(handles) / across)
    height = _TITLE + _KEYS * lines + _BELOW + _EACH * len(rows)
    figure, axes = style.canvas(data.subject, _WIDTH, height)
    labels = [style.shorten(row.label) for row in rows]
    left = (max(style.text_width(label, LABEL) for label in labels) + 16) / (_WIDTH * 72)
    axes.set_position((left, _BELOW / height, 0.97 - left, _EACH * len(rows) / height))
    edge = (_MARGIN / _WIDTH - left) / (0.97 - left)  # left end of the legend, as a share of the axes' width
    axes.grid(False, axis="y")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), labels, fontsize=LABEL)
    for y, (row, probe) in enumerate(zip(rows, probes, strict=True)):
        ends = {True: 0.0, False: 0.0}  # ends of the bar to the right and to the left of 0
        for name in drawn:
            mean = row.cells[titles.index(name)].mean
            if not mean:
                continue
            axes.barh(y, mean, 0.72, left=ends[mean > 0], color=COLORS[name], linewidth=0,
                      alpha=0.75 if row.reference else 1)
            ends[mean > 0] += mean
        if probe is not None:
            axes.plot([1 - probe], [y], zorder=4, clip_on=False, **marker_style)
    axes.axvline(0, color=PALE, linewidth=0.8)
    axes.set_xlim(left=min(axes.get_xlim()[0], 0.0), right=max(axes.get_xlim()[1], 0.01))
    axes.set_xlabel("points lost")
    style.percentages(axes.xaxis)
    axes.title.set_position((0, 1))
    axes.set_title(axes.get_title(loc="left"), loc="left", color=PALE, fontsize=LABEL, pad=10 + 16 * lines)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(edge, 1.0), ncols=across, handlelength=_HANDLE,
                handletextpad=_GAP, columnspacing=_COLUMNS, borderpad=0, borderaxespad=0.6)
    return figure


def _columns(names: Sequence[str], width: float) -> int:
    """Return the largest number of columns with which a legend of these names, filled by column, fits into a width."""
    import numpy as np

    sizes = [style.text_width(name, LABEL) + LABEL * (_HANDLE + _GAP + _COLUMNS) for name in names]
    for across in range(len(names), 1, -1):
        if sum(max(column) for column in np.array_split(sizes, across)) <= width:
            return across
    return 1
