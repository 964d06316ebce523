"""The report as tidy CSV: one row for each number of each trial, raw and with all its digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain

from clbench.core.objective import METRICS
from clbench.report.formatting import Value, column_names, unit_of
from clbench.report.model import Report, Result, Section, Unit

HEADER = ("setting", "scenario", "method", "strategy", "reference", "seed", "status", "metric", "unit", "after_task",
          "task", "value")
_UNITS: dict[Unit, str] = {"percent": "fraction", "points": "fraction", "text": ""}
_FORMULA = ("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
            "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # spreadsheets run cells that begin with these
Line = tuple[str, str, int | str, int | str, float | int]  # metric, unit, after_task, task, value


def render(report: Report) -> str:
    """Return report.csv with the columns `HEADER` and one for each option. docs/reports.md describes the columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    results = chain.from_iterable(section.results for section in report.sections)
    named_options = column_names((dict(result.options) for result in results), HEADER)
    writer.writerow([*HEADER, *map(inert, named_options.values())])
    for section in report.sections:
        section_cells = section.title, dict(section.settings)["scenario"]
        for i, result in enumerate(section.results):
            method_cells = [*map(inert, [*section_cells, result.label, result.strategy]), str(result.reference).lower()]
            result_options = dict(result.options)
            options = [_format_value(result_options.get(name)) for name in named_options]
            for seed in result.planned:
                if seed not in result.seeds:
                    writer.writerow([*method_cells, seed, "no result", *[""] * 5, *options])
                    continue
                for metric, *rest in _numbers(section, i, result, result.seeds.index(seed)):
                    writer.writerow([*method_cells, seed, "done", inert(metric), *rest, *options])
    return buffer.getvalue()


def inert(text: str) -> str:
    """Return text that no spreadsheet interprets as a formula. An apostrophe precedes text that begins like one."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _format_value(value: Value) -> int | float | str:
    """Return an option's value as text for the file: lowercase true and false, and an empty text for None."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else inert(value) if isinstance(value, str) else value


def _numbers(section: Section, i: int, result: Result, k: int) -> Iterator[Line]:
    """Yield the numbers of a method's k-th seed: the tables' columns, then R, other metrics and costs by task.

    A column with the name of a metric or cost by task is called `final NAME`, so that no name has two meanings.
    """
    costs_by_task = {"trainable params": ("count", result.trainable), "params kept": ("count", result.parameters),
                     "bytes kept": ("bytes", result.bytes)}
    labels = [method.label for method in section.results]
    tables = [table for table in (section.comparison, *section.details) if [row.label for row in table.rows] == labels]
    for table in tables:  # not those with a row per class or task
        for column, cell in zip(table.columns, table.rows[i].cells, strict=True):
            value = cell.values[k] if cell.values else None
            if value is not None:
                name = f"final {column.title}" if column.title in {*METRICS, *costs_by_task} else column.title
                yield name, _UNITS.get(column.unit, column.unit), "", "", value
    matrices = {section.metric.name: result.R[k], **{name: by_seed[k] for name, by_seed in result.scores.items()}}
    for name, matrix in matrices.items():
        unit = unit_of(METRICS[name])
        for row, values in enumerate(matrix):
            for task, value in enumerate(values, start=1):
                yield name, _UNITS.get(unit, unit), row, task, value
    for general in section.general:
        unit = unit_of(general.metric)
        for row, cell in enumerate(general.table.rows[i].cells):
            value = cell.values[k] if cell.values else None
            if value is not None:
                yield f"{general.metric.name} on {general.text}", _UNITS.get(unit, unit), row, "", value
    for name, (unit_of_cost, costs) in costs_by_task.items():
        for task, cost in enumerate(costs[k], start=1):
            yield name, unit_of_cost, task, "", cost
