"""The figure of `scaling.py` and its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from measure import exponent

matplotlib.use("Agg")
from matplotlib import pyplot

TITLES = {  # panel: title, x axis, y axis
    "seeds": ("Seeds of one method", "seeds", "whole trials, s"),
    "tasks": ("Length of the stream", "tasks", "learning all tasks, s"),
    "along": ("Each task of the longest stream", "task", "learning the task, s"),
    "rows": ("One row of R, all tasks tested", "tasks", "evaluation, s"),
    "capacity": ("Replay memory", "samples kept", "learning all tasks, s"),
    "width": ("Width of the model", "parameters", "learning all tasks, s"),
}
# Okabe & Ito's colors, which color-blind readers can distinguish. Markers distinguish the lines without color.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P")]

MOST_TICKS = 6  # on an axis that names every size


@dataclass(frozen=True)
class Curve:
    """A line of the figure, and its exponent: the slope on log-log axes."""

    panel: str
    series: str
    sizes: list[float]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Return the exponent: 1 if the cost is linear in the size, 0 if it does not depend on the size."""
        return exponent(self.sizes, self.seconds)


def draw(lines: Sequence[Curve], machine: str, paths: Sequence[Path]) -> None:
    """Draw one panel per kind of cost on log-log axes, with the exponent of each line, and write the image files."""
    panels = [panel for panel in TITLES if any(line.panel == panel for line in lines)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
    series: list[str] = []
    for axis, panel in zip(axes.flat, panels, strict=False):
        own = [line for line in lines if line.panel == panel]
        series = [line.series for line in own]
        for name, line in zip(series, own, strict=True):
            color, marker = STYLES[series.index(name) % len(STYLES)]
            axis.loglog(line.sizes, line.seconds, color=color, marker=marker, markersize=4, linewidth=1.4,
                        label=f"{name} ({line.exponent:.2f})")
        sizes = sorted({size for line in own for size in line.sizes})
        floor, ratio = min(line.seconds[0] for line in own), sizes[-1] / sizes[0]
        axis.loglog([sizes[0], sizes[-1]], [floor, floor * ratio], color="0.6", linestyle=":", linewidth=1,
                    label="linear")
        if len(sizes) <= MOST_TICKS:
            axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], fontsize=8)
            axis.set_xticks([], minor=True)
        title, x_label, y_label = TITLES[panel]
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    figure.suptitle(f"Cost against size; in brackets the exponent (1 is linear). {machine}", fontsize=9)
    figure.tight_layout()
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
