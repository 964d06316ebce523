"""Records and the tables of a report as data frames. pandas is imported only when a data frame is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from typing import TYPE_CHECKING, Any

from clbench.core.errors import ClbenchError
from clbench.report.analysis.paired_tests import compare
from clbench.report.analysis.readable import name_settings
from clbench.report.columns import find_tested
from clbench.report.formatting import column_names, options_of, to_plain
from clbench.report.model import Table, Unit
from clbench.report.tables import build
from clbench.results.records import Record, matrices

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LEADING_COLUMNS = ("trial", "setting", "scenario", "method", "strategy", "reference", "status")  # before the options
SEED, LEARNED, TASK, TEXT = "seed", "learned", "task", "text"  # columns after the options
MEASURED: tuple[Unit, ...] = ("percent", "points", "nats", "value", "seconds")  # units of values that have an interval
SEEDS = "seeds"
LAST_COLUMNS = ("complete", "strategy", "reference", "setting", "scenario", "metric")  # after the numbers. Short
# columns come last, because a terminal shows only the first and the last columns of a wide frame.
VERDICTS = "verdicts"  # key of a comparison's `attrs`


def tidy(records: Sequence[Record]) -> DataFrame:
    """Return every value of R and of further metrics, with a row for each task and row of R; see `Results.frame`."""
    return _tidy(records, TASK, matrices, _values_of_tasks)


def general(records: Sequence[Record]) -> DataFrame:
    """Return every score of general texts; see `Results.general_frame`."""
    return _tidy(records, TEXT, lambda record: list(chain.from_iterable(record.general.values())), _values_of_texts)


Values = Iterator[tuple[int, int | str, dict[str, float]]]  # learned tasks, task or text, value by metric


def _values_of_tasks(record: Record) -> Values:
    by_metric = matrices(record)
    for learned, task in product(range(len(record.R)), range(len(record.R[0]) if record.R else 0)):
        yield learned, task + 1, {name: matrix[learned][task] for name, matrix in by_metric.items()}


def _values_of_texts(record: Record) -> Values:
    for text, by_metric in record.general.items():
        for learned in range(max(map(len, by_metric.values()), default=0)):
            yield learned, text, {name: values[learned] for name, values in by_metric.items()}


def _tidy(records: Sequence[Record], of: str, names_of: Callable[[Record], Iterable[str]],
          values_of: Callable[[Record], Values]) -> DataFrame:
    """Return a row for each value of each record.

    Args:
        records: the records.
        of: the column that names the task or text of a value.
        names_of: returns the names of a record's metrics.
        values_of: yields the values of a record.
    """
    pandas = _pandas()
    rows: list[dict[str, Any]] = []
    all_options: list[dict[str, Any]] = []
    metric_names: dict[str, None] = {}
    for setting in name_settings(records, ids=True):
        for method in setting.methods:
            for record in method.records:
                values = (record.key, setting.title, record.trial.scenario, method.label, method.strategy,
                          method.reference, record.status)
                facts = dict(zip(LEADING_COLUMNS, values, strict=True))
                options = {name: to_plain(value) for name, value in options_of(record.trial).items()}
                metric_names |= dict.fromkeys(names_of(record))
                for learned, subject, by_metric in values_of(record):
                    rows.append({**facts, SEED: record.trial.seed, LEARNED: learned, of: subject, **by_metric})
                    all_options.append(options)
    trailing = (SEED, LEARNED, of, *metric_names)
    names = column_names(all_options, (*LEADING_COLUMNS, *trailing))
    table = {name: pandas.Series([row[name] for row in rows]) for name in LEADING_COLUMNS}
    table |= {column: _set_type([options.get(name) for options in all_options]) for name, column in names.items()}
    table |= {name: pandas.Series([row.get(name) for row in rows]) for name in trailing}
    return pandas.DataFrame(table)


def summary(records: Sequence[Record]) -> DataFrame:
    """Return the comparison tables of all settings in one data frame; see `Results.summary`."""
    sections = build(records, ids=True).sections
    rows = []
    for section in sections:
        results = {result.label: result for result in section.results}
        scenario = dict(section.settings)["scenario"]
        for row, numbers in zip(section.comparison.rows, _rows(section.comparison), strict=True):
            numbers.pop(SEEDS, None)
            result = results[row.label]
            rows.append({"method": row.label, SEEDS: len(result.seeds), **numbers, "complete": result.complete,
                         "strategy": result.strategy, "reference": result.reference, "setting": section.title,
                         "scenario": scenario})
    return _frame(rows)


def comparison(records: Sequence[Record], baseline: str | None, metrics: Iterable[str]) -> DataFrame:
    """Return the paired differences of methods as `clbench compare` shows them; see `Results.compare`.

    Raises:
        SpecError: no method has the baseline's label, or no tested metric has one of the names.
    """
    titles = [metrics] if isinstance(metrics, str) else list(metrics)
    settings = name_settings(records, baseline, "results.summary()['method']", ids=True)
    rows: list[dict[str, Any]] = []
    verdicts = []
    all_measures = [m for s in settings for m in s.measures]
    for setting in settings:
        named_baseline = setting.named_baseline
        for measure in find_tested(titles, setting.measures, all_measures):
            sentences, tables = compare(setting, [measure], named_baseline)
            verdicts += [f"{setting.title}: {verdict}" if len(settings) > 1 else verdict for verdict in sentences]
            for table in tables:
                for row, numbers in zip(table.rows, _rows(table), strict=True):
                    rows.append({table.corner: row.label, **({"baseline": named_baseline} if named_baseline else {}),
                                 **dict(sorted(numbers.items(), key=lambda item: not isinstance(item[1], str))),
                                 "setting": setting.title, "metric": measure.column.title})
    frame = _frame(rows)
    frame.attrs[VERDICTS] = tuple(verdicts)
    return frame


def _rows(table: Table) -> list[dict[str, Any]]:
    """Return a table's rows as numbers and texts by column. Measured values also have the ends of their intervals.

    Column titles of p-values are returned without the number of tests, which differs between tables.
    """
    titles = [re.sub(r" for \d+$", "", column.title) for column in table.columns]
    ends = [column.unit in MEASURED or any(row.cells[j].half_width for row in table.rows)
            for j, column in enumerate(table.columns)]
    rows = []
    for row in table.rows:
        values: dict[str, Any] = {}
        for title, column, cell, has_ends in zip(titles, table.columns, row.cells, ends, strict=True):
            values[title] = cell.text if column.unit == "text" else cell.mean
            if title == SEEDS and (count := re.match(r"\d+", cell.text)):  # `5 of 6` means that 5 seeds have a value
                values[title] = int(count[0])
            if has_ends:
                values |= {f"{title} low": cell.low, f"{title} high": cell.high}
        rows.append(values)
    return rows


def _frame(rows: Sequence[dict[str, Any]]) -> DataFrame:
    pandas = _pandas()
    column_names = dict.fromkeys(chain.from_iterable(rows))
    last_names = [name for name in LAST_COLUMNS if name in column_names]
    names = [*(name for name in column_names if name not in last_names), *last_names]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pandas.DataFrame({  # a column without values is one of numbers, because texts are never missing
        name: pandas.Series(values, dtype="float64") if set(values) == {None} else _set_type(values)
        for name, values in columns.items()})


def _set_type(values: Sequence[Any]) -> Series[Any]:
    """Return a column with the type that its values share, apart from missing values."""
    pandas = _pandas()
    kinds = {type(value) for value in values if value is not None}
    missing = None in values
    if kinds == {bool}:
        return pandas.Series(values, dtype="boolean" if missing else "bool")
    if kinds == {int}:
        return pandas.Series(values, dtype="Int64" if missing else "int64")
    if kinds and kinds <= {int, float}:
        return pandas.Series(values, dtype="float64")
    return pandas.Series(values) if kinds == {str} else pandas.Series(values, dtype="object")


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ClbenchError("data frames need pandas, which is not installed: pip install 'clbench[notebook]'") from None
    return pandas
