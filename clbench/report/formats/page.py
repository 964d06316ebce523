"""What the HTML page adds to the report's tables: the figures of each section and the styles of methods in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from clbench.core.objective import Metric
from clbench.report.analysis import errors
from clbench.report.analysis.facts import front
from clbench.report.columns import FORGETTING
from clbench.report.figures.data import (
    SEEDS_MEAN,
    axis_title,
    forgetting_per_task,
    parameters_over_tasks,
    values_by_seed,
    values_over_tasks,
    with_finals,
)
from clbench.report.figures.general import general_figures
from clbench.report.figures.steps import Point, mean_curves, steps_figure
from clbench.report.figures.style import PALETTE, StrategyStyle
from clbench.report.formats.choosable import ALL, FEW, LegendEntry, choose_legend
from clbench.report.formats.markdown import MANY
from clbench.report.formats.palette import color_class
from clbench.report.formatting import join_names, number, unit_of, unit_suffix
from clbench.report.metric_columns import final_of, measures_of
from clbench.report.model import UNIT_SUFFIX, Cell, FigureData, FigurePoint, Report, Result, Section, Table
from clbench.results.stats import ALPHA

_DASHES = 5  # line styles in report.css, for the methods of one strategy


@dataclass(frozen=True)
class MatrixView:
    """The table of R of one method, and the values of each seed for its cells."""

    id: str
    table: Table
    seeds: tuple[int, ...]
    values: list[list[str]]  # of each cell, the values of the seeds as text


@dataclass(frozen=True)
class CostAxis:
    """A cost on an axis of the Pareto figure: a column of the comparison, and the rows on the front."""

    title: str
    column: int
    front: list[int]


@dataclass(frozen=True)
class FigureView:
    """A figure that a script draws from tables of the page."""

    kind: str
    title: str
    caption: str
    alt: str  # what it shows, in words
    tables: tuple[str, ...]  # ids of the tables
    file: str  # name of the saved file
    axis: str = ""  # title of the vertical axis; for kind seeds, of the horizontal axis
    better: str = "up"  # whether higher values are better
    metric: Metric | None = None  # whose values the figure shows; intervals end at its bounds
    wide: bool = False
    costs: tuple[CostAxis, ...] = ()  # a reader chooses one of them
    final: int = 0  # the column of the comparison that the figure shows against a cost
    critical: float | None = None  # the critical difference of ranks
    curves: str = ""  # JSON: accuracy over steps, which has too many values for a table
    first: int = 1  # for kind lines, the number of tasks at the start of the lines
    zooms: tuple[str, ...] = ()  # a reader chooses one of them: all steps, or the steps around a boundary


@dataclass(frozen=True)
class RankingView:
    """The figure of average ranks. The `row` of an entry in its legend is a column of the table of ranks."""

    legend: list[LegendEntry]
    figure: FigureView


@dataclass(frozen=True)
class SectionView:
    """The data of a section for the template."""

    id: str
    section: Section
    comparison: str  # id of the table
    legend: list[LegendEntry]
    figure_tables: list[tuple[str, Table, tuple[str, ...]]]  # id, table, hints shown for its columns
    matrices: list[MatrixView]
    figures: list[FigureView]
    lean: bool = False  # many methods: numbers that follow from a cell's text are not repeated
    packed: str = ""  # JSON: the matrices of many methods, which a script turns into tables
    kinds: tuple[str, ...] = ()  # kinds of methods that a reader can filter by; empty if there are few methods


def section_view(id_: str, slug: str, section: Section, styles: Mapping[str, StrategyStyle]) -> SectionView:
    """Return a section as the page shows it.

    Args:
        id_: id of the section on the page. The ids of its elements begin with it.
        slug: prefix of the names of saved figures.
        section: a section of the report.
        styles: the style of each strategy.
    """
    results = section.results
    finals = section.comparison.cells(final_of(section.metric).column.title)
    tables_of_tasks = {
        f"{id_}-accuracy": with_finals(values_over_tasks(results, section.metric), finals),
        f"{id_}-forgetting": forgetting_per_task(results, section.metric),
        f"{id_}-parameters": parameters_over_tasks(results)}
    tables = {**tables_of_tasks, f"{id_}-seeds": with_finals(values_by_seed(results, section.seeds, section.metric),
                                                             finals),
              **{f"{id_}-general-{i}": general.table for i, general in enumerate(section.general)},
              **({f"{id_}-arrival": section.arrivals} if section.arrivals else {})}
    matrix_results = [r for r in results if _has_matrix(r)]
    matrices = [MatrixView(f"{id_}-R-{i}", table, result.seeds, _format_seeds(result, section.metric))
                for i, (table, result) in enumerate(zip(section.matrices, matrix_results, strict=True))]
    by_task = [(name, table, section.task_classes if name in tables_of_tasks else ())
               for name, table in tables.items() if table.columns]
    legend = choose_legend(section, _legend(results, styles))
    kinds = dict.fromkeys((ALL, *chain.from_iterable(entry.kinds for entry in legend)))
    return SectionView(id_, section, f"{id_}-comparison", legend, by_task, matrices,
                       _figures(id_, slug, section, tables, matrices) if any(r.seeds for r in results) else [],
                       len(results) > MANY, pack_matrices(matrices) if len(results) > MANY else "",
                       tuple(kinds) if len(results) > FEW else ())


def ranking_view(report: Report, styles: Mapping[str, StrategyStyle]) -> RankingView | None:
    """Return the figure of average ranks across the report's sections; None if the report has none."""
    data = next((figure for figure in report.figures if figure.kind == "critical-difference"), None)
    if data is None:
        return None
    legend: list[LegendEntry] = []
    for point in data.points:
        legend.append(_entry(point, report.rankings[0].index(point.label), legend, styles))
    label = join_names(list(dict.fromkeys(section.metric.label for section in report.sections)))
    caption = (f"Average rank by {label} over the settings; 1 is the best. Bars reach half the critical difference "
               f"(Nemenyi, {100 * ALPHA:g}%) to each side. Methods whose bars overlap are not significantly different.")
    return RankingView(legend, FigureView("ranks", data.title, caption, data.alt, ("ranks-1",), data.name, wide=True,
                                          critical=data.critical))


def _legend(results: Sequence[Result], styles: Mapping[str, StrategyStyle]) -> list[LegendEntry]:
    """Return an entry for each method with a result."""
    legend: list[LegendEntry] = []
    matrices = 0
    for row, result in enumerate(results):
        if result.seeds:
            legend.append(_entry(result, row, legend, styles, matrices if _has_matrix(result) else None))
            matrices += _has_matrix(result)
    return legend


def _entry(method: Result | FigurePoint, row: int, before: Sequence[LegendEntry], styles: Mapping[str, StrategyStyle],
           matrix: int | None = None) -> LegendEntry:
    strategy_style = styles[method.strategy]
    variant = sum(entry.method.strategy == method.strategy for entry in before) % _DASHES
    return LegendEntry(method, row, color_class(strategy_style.color), strategy_style.marker, variant, matrix)


def _has_matrix(result: Result) -> bool:
    """Return whether a method has a mean R, which requires that its seeds had streams of the same length."""
    return len({len(R) for R in result.R}) == 1


def pack_matrices(matrices: Sequence[MatrixView]) -> str:
    """Return R of many methods as JSON for a script: id, title, unit, labels of rows, titles of columns, numbers.

    Percentages are in units of 1/10,000, and other values are the texts of the cells. The values of each seed are left
    out, because the tables of R of 60 methods would be a third of the page.
    """
    return json.dumps([[m.id, m.table.title, m.table.columns[0].unit, [row.label for row in m.table.rows],
                        [column.title for column in m.table.columns],
                        [[round(10_000 * (cell.mean or 0)) if column.unit == "percent" else cell.text
                          for column, cell in zip(m.table.columns, row.cells, strict=True)] for row in m.table.rows]]
                       for m in matrices], separators=(",", ":"))


def _format_seeds(result: Result, metric: Metric) -> list[list[str]]:
    """Return the values of the seeds behind each cell of the mean of R: `98.50 97.00`."""
    unit = unit_of(metric)
    return [[" ".join(number(a, unit) for a in values) for values in zip(*rows, strict=True)]
            for rows in zip(*result.R, strict=True)]


def _figures(id_: str, slug: str, section: Section, tables: Mapping[str, Table],
             matrices: Sequence[MatrixView]) -> list[FigureView]:
    accuracy, forgetting, parameters, seeds = (f"{id_}-{kind}" for kind in ("accuracy", "forgetting", "parameters",
                                                                            "seeds"))
    comparison, metric = section.comparison, section.metric
    label, heading, final = metric.label, metric.heading, final_of(metric).column.title
    figures = [*_errors(id_, slug, section),
        FigureView("lines", f"{heading} after each task",
                   f"Mean {label} over the tasks seen so far; bands are 95% confidence intervals.",
                   f"Mean {label} over all tasks after the last one: {_describe_last_task(tables[accuracy])}.",
                   (accuracy,), f"{slug}-{metric.name}", axis=axis_title(metric), metric=metric),
        FigureView("pareto", f"{heading} against cost",
                   f"The stepped line is the Pareto front: the best {label} at each cost. References are hollow and "
                   "not part of it.",
                   f"{heading} against a cost. {heading}: {_describe_cells(comparison, comparison.cells(final))}.",
                   (f"{id_}-comparison",), f"{slug}-pareto", axis=axis_title(metric), costs=_costs(section),
                   final=comparison.index(final), metric=metric),
        FigureView("seeds", f"{heading} of each seed",
                   "A marker for each seed; bar and band are the mean and its 95% confidence interval.",
                   f"{heading} of each seed. Means: {_describe_cells(tables[seeds], tables[seeds].cells(SEEDS_MEAN))}.",
                   (seeds,), f"{slug}-seeds", axis=axis_title(metric), metric=metric),
        FigureView("lines", "Total parameters after each task",
                   "All parameters that a method holds after each task. Methods with the same number share a line of "
                   "alternating dashes.",
                   f"Total parameters after the last task: {_describe_last_task(tables[parameters])}.",
                   (parameters,), f"{slug}-growth", axis="parameters"),
    ]
    if tables[forgetting].columns:  # no columns if there is a single task, or one test set for all tasks
        unit = tables[forgetting].columns[0].unit
        amount = unit_suffix(unit).strip().capitalize() or "Amount"
        figures.append(FigureView(
            "bars", "Forgetting of each task",
            (f"{amount} that a task has lost since its best {label}" if metric.direction == "up" else
             f"{amount} by which a task's final {label} is above its best one")
            + "; whiskers are 95% confidence intervals over seeds.",
            f"Forgetting{UNIT_SUFFIX.get(unit, '')}: "
            f"{_describe_cells(comparison, comparison.cells(FORGETTING.column.title))}.",
            (forgetting,), f"{slug}-forgetting", wide=True))
    if data := steps_figure(section.title, f"{slug}-steps", section.results, metric):  # a file may lack methods
        figures.append(_view_steps(slug, data, section))
    if matrices and not all(result.common_test for result in section.results):
        figures.append(FigureView(
            "heat", section.matrix_title,
            "Columns: the task tested. Rows: the number of tasks learned; 0 is before training. Below the line are the "
            "tasks that have been learned." + (" Darker is better (lower)." if metric.direction == "down" else ""),
            f"{heading} matrices of {len(matrices)} methods, mean over seeds.",
            tuple(m.id for m in matrices), f"{slug}-R", wide=True, better=metric.direction))
    data = next((figure for figure in section.figures if figure.kind == "arrival"), None)
    if data and section.arrivals:
        figures.append(FigureView("arrival", data.title, data.caption, data.alt, (f"{id_}-arrival",), data.name,
                                  wide=True))
    names = {general.title: f"{id_}-general-{i}" for i, general in enumerate(section.general)}
    figures += [FigureView("lines", data.title, data.caption, data.alt, (names[data.title],), data.name,
                           axis=axis_title(data.metric), metric=data.metric, first=0)
                for data in general_figures(section.title, slug, section.general, section.results)]
    return [f for f in figures if f.kind not in ("lines", "bars") or _has_full_row(tables[f.tables[0]])]


def _has_full_row(table: Table) -> bool:
    """Return whether a method has a value for each task. It has none if its seeds differ in their number of tasks."""
    return any(all(cell.mean is not None for cell in row.cells) for row in table.rows)


def _view_steps(slug: str, data: FigureData, section: Section) -> FigureView:
    method_curves = mean_curves(section.results)
    lines = [{"row": curve.row, "ends": curve.ends, "tasks": [_round_points(points) for points in curve.tasks],
              "old": [_round_points(points) for points in curve.old]} for curve in method_curves]
    curves_json = json.dumps({"curves": lines, "colors": list(map(color_class, PALETTE)),
                              "unit": unit_of(data.metric)}, separators=(",", ":"))
    boundaries = (f"boundary {t} to {t + 1}" for t in range(1, max(len(curve.ends) for curve in method_curves)))
    return FigureView("steps", data.title, data.caption, data.alt, (), f"{slug}-steps", wide=True, curves=curves_json,
                      metric=data.metric, zooms=("all steps", *boundaries))


def _round_points(points: Sequence[Point]) -> list[tuple[int, float]]:
    return [(step, round(value, 4)) for step, value in points]


def _errors(id_: str, slug: str, section: Section) -> Iterator[FigureView]:
    """Yield the figure of the error decomposition if the section has one. A table of details has its numbers."""
    for data in (figure for figure in section.figures if figure.kind == "errors"):
        position = [table.title for table in section.details].index(errors.TITLE) + 1
        yield FigureView("parts", data.title, data.caption, data.alt, (f"{id_}-more-{position}",), f"{slug}-errors",
                         wide=True)


def _describe_last_task(table: Table) -> str:
    """Return the cells of a table's last task in words."""
    return _describe_cells(table, table.cells(table.columns[-1].title))


def _describe_cells(table: Table, cells: Sequence[Cell]) -> str:
    return "; ".join(f"{row.label} {cell.text}" for row, cell in zip(table.rows, cells, strict=True))


def _costs(section: Section) -> tuple[CostAxis, ...]:
    """Return the costs on the axes of the Pareto figure, each with the rows of the methods on its Pareto front."""
    comparison = section.comparison
    finals = [cell.mean for cell in comparison.cells(final_of(section.metric).column.title)]
    ranked = [i for i, r in enumerate(section.results) if r.complete and not r.reference]
    axes = []
    titles = [column.title for column in comparison.columns]
    for title in (m.column.title for m in measures_of(section.metric) if m.cost and m.column.title in titles):
        costs = [cell.mean for cell in comparison.cells(title)]
        points = {i: (cost, -section.metric.rank(final)) for i in ranked
                  if (cost := costs[i]) and (final := finals[i]) is not None}  # a log axis has no 0
        rows, column = list(points), titles.index(title)
        axes.append(CostAxis(comparison.columns[column].name, column, [rows[k] for k in front(list(points.values()))]))
    return tuple(axes)
