"""The figures of a report as the contents of files. Importing this module does not import matplotlib; drawing does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from clbench.report.figures import style
from clbench.report.figures.accuracy import draw_curves, draw_forgetting, draw_heatmaps
from clbench.report.figures.arrival import draw_arrival
from clbench.report.figures.cost import draw_growth, draw_pareto
from clbench.report.figures.errors import draw_errors
from clbench.report.figures.ranks import draw_critical_difference
from clbench.report.figures.steps import draw_steps
from clbench.report.figures.style import StrategyStyle
from clbench.report.model import FILE_FORMATS, FigureData, FileFormat, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Mapping[str, Callable[[FigureData, Mapping[str, StrategyStyle]], Figure]] = {
    "pareto": draw_pareto, "growth": draw_growth, "curves": draw_curves, "heatmaps": draw_heatmaps,
    "forgetting": draw_forgetting, "errors": draw_errors, "steps": draw_steps, "arrival": draw_arrival,
    "critical-difference": draw_critical_difference}


def draw_report(report: Report, file_formats: Collection[FileFormat] = ()) -> dict[str, bytes]:
    """Return the figures of a report as the contents of files, by file name. The same numbers give the same bytes.

    Args:
        report: the report, from `build`.
        file_formats: formats in which every figure is drawn. Figures in report.md are always drawn as SVG, too.
    """
    styles = style.assign_styles(report.strategies)
    files = {}
    for data in report.every_figure:
        wanted = [f for f in FILE_FORMATS if f in file_formats or (f == "svg" and data.brief)]
        for file_format, content in zip(wanted, draw_figure(data, styles, wanted), strict=True):
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
        style.add_title(figure, data.title)
        return [style.encoded(figure, f"{data.title}: {data.subject}", f) for f in file_formats]
