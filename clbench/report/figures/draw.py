"""Draw the figures of a report as the contents of files, and implement `Results.plot`.

Functions that draw import matplotlib. Importing this module does not.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clbench.core.errors import SpecError, unknown
from clbench.report.analysis.grouping import Setting, group_by_setting
from clbench.report.figures import style
from clbench.report.figures.accuracy import draw_curves, draw_forgetting, draw_heatmaps
from clbench.report.figures.arrival import draw_arrival
from clbench.report.figures.cost import draw_growth, draw_pareto
from clbench.report.figures.errors import draw_errors
from clbench.report.figures.general import draw_general
from clbench.report.figures.grid import draw_grid, grid
from clbench.report.figures.ranks import draw_critical_difference
from clbench.report.figures.steps import draw_steps
from clbench.report.figures.style import StrategyStyle
from clbench.report.model import FILE_FORMATS, FigureData, FileFormat, Report
from clbench.report.tables import build
from clbench.results.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DRAWN = {"curves": "curves", "cost": "pareto", "matrix": "heatmaps", "forgetting": "forgetting", "growth": "growth",
         "steps": "steps", "errors": "errors", "arrival": "arrival",
         "general": "general"}  # kinds of `Results.plot`, and the report's kinds
GRID = "grid"
DPI = 110  # resolution of a figure on a screen
WHY = {  # reasons why a setting may have no figure of a kind
    "curves": "it needs a finished trial with more than one task",
    **dict.fromkeys(("matrix", "forgetting"), "it needs a finished trial with more than one task, and a test set for "
                    "each task"),
    "cost": "it needs methods that differ in trainable parameters or compute", "growth": "no method grows",
    "steps": "it needs accuracies while tasks were learned (evaluate_every=100)",
    "errors": "it needs scenario class, and records that have the parts of their errors",
    "arrival": "samples arrive as the benchmark has them",
    "general": "it needs scores of general texts under a language model (general=['english'])"}


def plot(records: Sequence[Record], kind: str, *, setting: str | None, x: str | None, y: str | None,
         metric: str | None) -> Figure:
    """Return a figure. The arguments and errors are those of `Results.plot`."""
    if kind != GRID and kind not in DRAWN:
        raise SpecError(unknown("plot", kind, [*DRAWN, GRID], "help(clbench.Results.plot)"))
    if kind != GRID and (x, y, metric) != (None, None, None):
        raise SpecError(f"plot({kind!r}) takes no x, y or metric, which belong to plot({GRID!r}); by_metric(NAME) "
                        "gives results by another metric")
    chosen_setting = choose(group_by_setting(records), setting, kind)
    if kind == GRID:
        data = grid(chosen_setting, x, y, metric)
        if not data.cells:
            raise SpecError(f"nothing to draw: no trial of the grid has a value of {data.column.title!r}")
        with style.styled():
            return show_in_notebook(draw_grid(data))
    report = build(chosen_setting.records)
    figure = next((f for f in report.sections[0].figures if f.kind == DRAWN[kind]), None)
    if figure is None:
        raise SpecError(f"nothing to draw for {kind!r}: {WHY[kind]}")
    with style.styled():
        subject = _with_selection(chosen_setting.title, figure)  # there is no caption that would say it
        return show_in_notebook(KINDS[figure.kind](replace(figure, subject=subject),
                                                   style.assign_styles(report.strategies)))


def _with_selection(text: str, figure: FigureData) -> str:
    """Return a text with the number of methods in parentheses if a figure shows only some of them."""
    return f"{text} ({figure.selection})" if figure.selection else text


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
    description = "several settings here" if wanted is None else f"{len(fitting) or 'no'} settings that fit {wanted!r}"
    raise SpecError(f"there are {description}, name one by its title or a word of it, as in "
                    f"plot({kind!r}, setting='class'): {'; '.join(titles)}")


def show_in_notebook(figure: Figure) -> Figure:
    """Make notebooks show a figure that was drawn without pyplot if it is the last value of a cell, and return it."""
    figure.set_dpi(DPI)
    vars(figure)["_original_dpi"] = figure.dpi  # the resolution that `savefig` uses by default
    vars(figure)["_repr_png_"] = functools.partial(png, figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


KINDS: Mapping[str, Callable[[FigureData, Mapping[str, StrategyStyle]], Figure]] = {
    "pareto": draw_pareto, "growth": draw_growth, "curves": draw_curves, "heatmaps": draw_heatmaps,
    "forgetting": draw_forgetting, "errors": draw_errors, "steps": draw_steps, "arrival": draw_arrival,
    "critical-difference": draw_critical_difference, "general": draw_general}


def draw_report(report: Report, file_formats: Collection[FileFormat] = ()) -> dict[str, bytes]:
    """Return the figures of a report as the contents of files, by file name. The same numbers give the same bytes.

    Args:
        report: the report, from `build`.
        file_formats: formats in which every figure is drawn. Figures in report.md are always drawn as SVG, too.
    """
    styles = style.assign_styles(report.strategies)
    files = {}
    for data in report.every_figure:
        figure_formats = [f for f in FILE_FORMATS if f in file_formats or (f == "svg" and data.brief)]
        for file_format, content in zip(figure_formats, draw_figure(data, styles, figure_formats), strict=True):
            files[f"{data.name}.{file_format}"] = content
    return files


def draw_figure(data: FigureData, styles: Mapping[str, StrategyStyle],
                file_formats: Sequence[FileFormat]) -> list[bytes]:
    """Draw a figure and return the content of a file in each format.

    Args:
        data: the numbers and texts that the figure shows.
        styles: the style of each strategy in the figure.
        file_formats: formats of the files. If there are none, nothing is drawn.
    """
    if not file_formats:
        return []
    with style.styled():
        figure = KINDS[data.kind](data, styles)
        title = data.title if data.brief else _with_selection(data.title, data)  # the others have no caption
        style.add_title(figure, title)
        return [style.encode_figure(figure, f"{title}: {data.subject}", f) for f in file_formats]
