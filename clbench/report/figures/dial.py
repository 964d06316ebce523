"""The figure of the dial: change of nll on each file as an adapter is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.objective import NLL
from clbench.report.figures import style
from clbench.report.figures.style import INK, PALE
from clbench.report.model import FileFormat
from clbench.results.audit import Audit, Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Gain and loss by scale of the adapter"
LINES = {"new": "-", "task": "-", "general": "--"}


def drawn(audit: Audit, file_format: FileFormat = "svg") -> bytes:
    """Return the figure as the content of a file; the same numbers give the same bytes."""
    with style.styled():
        return style.encoded(draw(audit), TITLE, file_format)


def draw(audit: Audit) -> Figure:
    """Draw a line for each file: the new task bold, general texts dashed. The margins are gray."""
    figure, axes = style.canvas("nll minus that of the base; lower is better")
    styles = style.assign_styles([(file.name, False) for file in audit.files])
    scales = [point.scale for point in audit.dial]
    margins = []
    for offset, file in enumerate(audit.files):
        cells = [_nll(point.cells, file.name) for point in audit.dial]
        shift = 0.004 * (max(scales) - min(scales)) * (offset - (len(audit.files) - 1) / 2)  # intervals do not overlap
        x = [scale + shift for scale in scales]
        color, marker = styles[file.name].colour, styles[file.name].marker
        axes.plot(x, [one.difference for one in cells], color=color, marker=marker, label=style.shorten(file.name),
                  linewidth=2.2 if file.role == "new" else 1.4, linestyle=LINES[file.role], markersize=5.5,
                  markeredgecolor="white", markeredgewidth=0.6, zorder=3)
        for at, one in zip(x, cells, strict=True):
            if one.low is not None and one.high is not None:
                axes.plot([at, at], [one.low, one.high], color=color, linewidth=1.1, alpha=0.7, zorder=2.5)
        margins += [one.margin for one in cells if file.role != "new"]
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if margins:
        axes.axhline(min(margins), color=PALE, linewidth=1.0, linestyle=":", zorder=1, label="margin of a loss")
    if largest := audit.largest_scale:
        axes.axvline(largest, color=PALE, linewidth=1.0, zorder=1, label=f"largest scale within: {largest:g}")
    axes.set_xticks(scales)
    axes.set_xticklabels([f"{scale:g}" for scale in scales])
    axes.set_xlabel("scale of the adapter")
    axes.set_ylabel(f"difference ({NLL.unit})")
    axes.legend(loc="best")
    return figure


def _nll(cells: tuple[Cell, ...], file: str) -> Cell:
    return next(one for one in cells if one.file == file and one.metric == NLL)
