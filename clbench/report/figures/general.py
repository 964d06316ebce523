"""Scores of general texts before training and after each task, as tables and figures. Drawing imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clbench.core.objective import Metric
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import MethodRecords, names_of_tasks
from clbench.report.columns import Measure, cell_of
from clbench.report.figures.accuracy import draw_lines, ends_of_intervals
from clbench.report.figures.data import axis_title, slugs
from clbench.report.figures.style import StrategyStyle
from clbench.report.formatting import task_label, with_ends
from clbench.report.metric_columns import GeneralScore, general_scores
from clbench.report.model import Cell, Column, FigureData, GeneralTable, Result, Row, Table
from clbench.results.items import wilson_interval
from clbench.results.stats import Interval, t_interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure


def general_tables(setting: Setting) -> tuple[GeneralTable, ...]:
    """Return a table for each metric of each general text: a row per method, a column per number of learned tasks.

    If all seeds of a method have the same items and their scores are known, intervals are over seeds and items. With a
    single seed, they are over items.
    """
    return tuple(_table(setting, score) for score in general_scores(r for m in setting.methods for r in m.done))


def _table(setting: Setting, score: GeneralScore) -> GeneralTable:
    done = [record for method in setting.methods for record in method.done]
    names, count = names_of_tasks(done), max(len(score.values(record)) for record in done)
    measures = [score.at(row) for row in range(count)]
    columns = [[_with_item_interval(cell, method, measure, score.metric)
                for cell, method in zip(setting.cells(measure), setting.methods, strict=True)] for measure in measures]
    titles = ["before training", *(f"after {task_label(i, names)}" for i in range(count - 1))]
    single, known = all(len(m.done) < 2 for m in setting.methods), bool(setting.answers(score.change))
    over = "items" if single and known else "seeds and items" if known else "seeds"
    title = f"{score.metric.heading} on {score.title}, before training and after each task (intervals over {over})"
    table = Table(title, tuple(Column(title, measures[0].column.unit) for title in titles),
                  tuple(Row(method.label, tuple(cells), method.marks, method.reference)
                        for method, *cells in zip(setting.methods, *columns, strict=True)))
    return GeneralTable(score.title, score.metric, table, over)


def _with_item_interval(cell: Cell, method: MethodRecords, measure: Measure, metric: Metric) -> Cell:
    """Return the cell of a single seed with the interval over its items, if they are known; else the cell itself."""
    items = measure.items(method.done[0]) if cell.n == 1 and measure.items else None
    if items is None or cell.mean is None:
        return cell
    over, unit = _interval(items, cell.mean, metric), measure.column.unit
    if not metric.is_share or over.low is None or over.high is None:
        return cell_of(over, unit, cell.values)
    return replace(cell_of(over, unit, cell.values), text=with_ends(cell.mean, (over.low, over.high), unit))


def _interval(items: npt.NDArray[np.float32], mean: float, metric: Metric) -> Interval:
    low, high = (wilson_interval(mean, len(items)) if metric.is_share else
                 ((over := t_interval(items.tolist())).low, over.high))
    return Interval(mean, low, high, 1)


def general_figures(subject: str, slug: str, tables: Sequence[GeneralTable], results: Sequence[Result]
                    ) -> list[FigureData]:
    """Return the figure of each table, with the methods of `results` that have a value after each task."""
    return [figure for name, general in zip(slugs([f"{t.metric.name} {t.text}" for t in tables]), tables, strict=True)
            if (figure := _figure(subject, f"{slug}-general-{name}", general, results)) is not None]


def _figure(subject: str, name: str, general: GeneralTable, results: Sequence[Result]) -> FigureData | None:
    by_label = {result.label: result for result in results}
    rows = tuple(row for row in general.table.rows
                 if row.label in by_label and all(cell.mean is not None for cell in row.cells))
    if not rows:
        return None
    ends = "; ".join(f"{row.label} {row.cells[0].text} to {row.cells[-1].text}" for row in rows)
    return FigureData(
        "general", name, general.title, subject,
        f"{axis_title(general.metric)} on {general.text}, before training and after the last task: {ends}.",
        f"{general.title}, which no method trains on, before training (0) and after each "
        f"task. Lines are means, bands are 95% confidence intervals over {general.over}, and dashed lines are "
        "references.", results=tuple(by_label[row.label] for row in rows), table=replace(general.table, rows=rows),
        metric=general.metric)


def draw_general(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw the metric on general texts before training and after each task, with its interval as a band."""
    assert data.table is not None
    return draw_lines(data, ends_of_intervals(data.table), styles, axis_title(data.metric), first=0)
