"""`Results.plot`: a figure of one setting as a matplotlib `Figure`, drawn as in a report."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clbench.core.errors import SpecError, unknown
from clbench.report.analysis.grouping import Setting, by_setting
from clbench.report.tables import build
from clbench.results.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = {"curves": "curves", "cost": "pareto", "matrix": "heatmaps", "forgetting": "forgetting", "growth": "growth",
         "steps": "steps", "errors": "errors", "arrival": "arrival"}  # what users say, and the report's kind of figure
GRID = "grid"
DPI = 110  # of a figure on a screen
WHY = {  # a setting may have no such figure
    "curves": "it needs a finished trial with more than one task", "matrix": "it needs a finished trial with more than "
    "one task", "forgetting": "it needs a finished trial with more than one task",
    "cost": "it needs methods that differ in trainable parameters or compute", "growth": "no method grows",
    "steps": "it needs accuracies while tasks were learned (evaluate_every=100)",
    "errors": "it needs scenario class, and records that have the parts of their errors",
    "arrival": "samples arrive as the benchmark has them"}


def plot(records: Sequence[Record], kind: str, *, setting: str | None, x: str | None, y: str | None,
         metric: str) -> Figure:
    """Return a figure; arguments and errors are those of `Results.plot`."""
    if kind != GRID and kind not in DRAWN:
        raise SpecError(unknown("plot", kind, [*DRAWN, GRID], "help(clbench.Results.plot)"))
    chosen = choose(by_setting(records), setting, kind)
    from clbench.report.figures import style
    from clbench.report.figures.draw import KINDS
    from clbench.report.figures.grid import draw_grid, grid

    if kind == GRID:
        data = grid(chosen, x, y, metric)
        if not data.cells:
            raise SpecError(f"nothing to draw: no trial of the grid has a value of {data.column.title!r}")
        with style.styled():
            return shown(draw_grid(data))
    report = build(chosen.records)
    figure = next((f for f in report.sections[0].figures if f.kind == DRAWN[kind]), None)
    if figure is None:
        raise SpecError(f"nothing to draw for {kind!r}: {WHY[kind]}")
    with style.styled():
        return shown(KINDS[figure.kind](replace(figure, subject=chosen.title), style.assign_styles(report.strategies)))


def choose(settings: Sequence[Setting], wanted: str | None, kind: str) -> Setting:
    """Return the only setting, or the one with this title or with these words in its title.

    Raises:
        SpecError: no setting matches, or several do.
    """
    titles = [s.title for s in settings]
    fitting = list(settings) if wanted is None else [s for s in settings if s.title == wanted] or [
        s for s in settings if re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", s.title, re.IGNORECASE)]
    if len(fitting) == 1:
        return fitting[0]
    which = "several settings here" if wanted is None else f"{len(fitting) or 'no'} settings that fit {wanted!r}"
    raise SpecError(f"there are {which}, name one by its title or a word of it, as in "
                    f"plot({kind!r}, setting='class'): {'; '.join(titles)}")


def shown(figure: Figure) -> Figure:
    """Return a figure that was drawn without pyplot such that a notebook shows it as the last value of a cell."""
    figure.set_dpi(DPI)
    vars(figure)["_original_dpi"] = figure.dpi  # that of `savefig` where the user gives none: what it was drawn at
    vars(figure)["_repr_png_"] = functools.partial(png, figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
