"""`Results`, which `clbench.run` and `clbench.load` return: records with tables and figures for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from clbench.core.errors import list_names
from clbench.report.analysis.headline import LEADS
from clbench.report.formatting import clean, plural
from clbench.report.model import Cell, Column, Row, Section, Table
from clbench.report.tables import build
from clbench.results.records import Record, select_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


_NAMES = 4  # methods that the one-line description names
_STYLE = ("<style>.clbench table {border-collapse: collapse; margin: .4em 0; font-variant-numeric: tabular-nums}"
          ".clbench th, .clbench td {text-align: right; padding: .2em .7em; white-space: nowrap}"
          ".clbench th:first-child, .clbench td.text {text-align: left}"
          ".clbench tr.reference {opacity: .65} .clbench .rule > * {border-top: 1px solid currentColor}"
          ".clbench p {margin: .2em 0; max-width: 60em} .clbench .problem {color: #c0392b}</style>")


def describe_records(records: Sequence[Record]) -> str:
    """Describe the records in one line: their number, methods and number of seeds."""
    methods = list(dict.fromkeys(clean(r.label) for r in records))
    if not methods:
        return "Results(no records)"
    scenarios = list(dict.fromkeys(r.trial.scenario for r in records))
    seeds, unfinished = len({r.trial.seed for r in records}), sum(r.status != "done" for r in records)
    return (f"Results({plural(len(records), 'record')}: {list_names(methods, _NAMES)}; "
            f"{', '.join(dict.fromkeys(r.trial.benchmark.name for r in records))}, scenario {', '.join(scenarios)}, "
            f"{plural(seeds, 'seed')}{f'; {unfinished} without a result' if unfinished else ''})")


def html(records: Sequence[Record]) -> str:
    """Return the first lines and the table of each setting as HTML. Text from records is escaped."""
    if not records:
        return f"<p>{escape(describe_records(records))}</p>"
    report = build(records)
    sections = [_section(section) for section in report.sections]
    return f'<div class="clbench">{_STYLE}{"".join(sections)}</div>'


def _section(section: Section) -> str:
    problems = [f'<p class="problem">no result: {escape(problem)}</p>' for problem in section.problems]
    headline = "".join(f"<li>{f'<strong>{escape(LEADS[topic])}</strong> ' if LEADS[topic] else ''}{escape(text)}</li>"
                       for topic, text in section.headline)
    return (f"<p><strong>{escape(section.title)}</strong></p><ul>{headline}</ul>{_table(section.comparison)}"
            + "".join(problems)
            + f"<p><small>{escape(' '.join(section.footnote))}</small></p>{_notes(section.notes)}")


def _notes(notes: Sequence[str]) -> str:
    """Return the notes as a collapsed HTML element."""
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>{plural(len(notes), 'note')}</summary><ul>{lines}</ul></details>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{'<br>'.join(map(escape, column.lines))}</th>" for column in table.columns)
    rows = [_row(row, table.columns, i > 0 and row.reference and not table.rows[i - 1].reference)
            for i, row in enumerate(table.rows)]
    return f"<table><thead><tr><th>{escape(table.corner)}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(row: Row, columns: Sequence[Column], rule: bool) -> str:
    names = " ".join(name for name, is_set in (("reference", row.reference), ("rule", rule)) if is_set)
    label = escape(f"{row.label} {row.marks}".strip())
    cells = "".join(_cell(cell, column) for cell, column in zip(row.cells, columns, strict=True))
    return f'<tr class="{names}"><th>{label}</th>{cells}</tr>'


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell.text)
    kind = ' class="text"' if column.unit == "text" else ""
    return f"<td{kind}>{f'<strong>{text}</strong>' if cell.bold else text}</td>"


class Results(list[Record]):
    """Records of trials: a list of `Record` that gives its tables as data frames and its figures.

    Slices and sums of results are results, and `Results(r for r in results if ...)` selects records. Accuracies are
    fractions, as in `Record.R`. Data frames need pandas (`pip install 'clbench[notebook]'`); figures do not.

    >>> results = clbench.load("runs/split-mnist-5k")  # doctest: +SKIP
    >>> results.compare(baseline="naive")  # doctest: +SKIP
    """

    def by_metric(self, name: str) -> Results:
        """Return the results with another metric of the objective in `Record.R`, as `clbench report --metric` does.

        Args:
            name: name of the metric, such as "exact". The previous metric moves to `Record.scores`.

        Raises:
            SpecError: a record lacks the metric.
        """
        return Results(select_metric(self, name))

    def frame(self) -> DataFrame:
        """Return a tidy pandas `DataFrame` with one row for each accuracy.

        The columns are `trial` (its key), `setting` (benchmark, scenario, model), `scenario`, `method` (its ID with
        options, as `--methods` takes it), `strategy`, `reference`, `status`, a column for each option, `seed`,
        `learned` (number of tasks learned so far), `task` (from 1) and `accuracy` in [0, 1].

        The column of an option is called `option.NAME` if another column is called NAME. Its values are missing for
        methods without the option. Failed trials have rows for the tasks that they finished. For tasks without
        classes, there is a column for each metric instead of `accuracy`, such as `nll` and `exact`, or `rmse`.

        Raises:
            ClbenchError: pandas is not installed.
            StoreError: there are no records, or one trial has two that disagree.
        """
        from clbench.report.frames import tidy

        return tidy(self)

    def general_frame(self) -> DataFrame:
        """Return a tidy pandas `DataFrame` with one row for each score of general texts (`--general`).

        The columns are those of `frame`, with `text` (the name of the file) instead of `task`. `learned` is 0 before
        training. There is a column for each metric, such as `nll` and `exact`.

        Raises:
            ClbenchError: pandas is not installed.
            StoreError: there are no records, or one trial has two that disagree.
        """
        from clbench.report.frames import general

        return general(self)

    def summary(self) -> DataFrame:
        """Return the report's comparison table: a row for each method of each setting, a pandas `DataFrame`.

        Each number is the mean over seeds. The columns `NAME low` and `NAME high` have the ends of its 95% interval.
        Accuracies and points are fractions; costs are parameters, bytes, FLOPs and seconds. `seeds` is the number of
        seeds with a result, and `complete` is whether all seeds have one.

        Raises:
            ClbenchError: pandas is not installed.
            StoreError: there are no records, or one trial has two that disagree.
        """
        from clbench.report.frames import summary

        return summary(self)

    def compare(self, baseline: str | None = None, metrics: str | Iterable[str] = ()) -> DataFrame:
        """Return the paired differences of methods, tested as `clbench compare` does: a pandas `DataFrame`.

        There is a row for each metric and method, or each pair of methods if there is no baseline. It has the mean
        difference over shared seeds (fractions), the ends of its 95% interval, p-values and a verdict.
        `.attrs["verdicts"]` names the test of each metric, or says why nothing could be tested.

        Args:
            baseline: the method that all others are compared with, by its name in reports, its id or its label; None
                compares all pairs.
            metrics: names of columns that can be tested, such as "ACC", "forgetting", "BWT", "training time". The
                default is the columns that reports test: ACC and forgetting, or NLL, forgetting and exact match.

        Raises:
            ClbenchError: pandas is not installed.
            SpecError: no such method or metric.
            StoreError: there are no records, or one trial has two that disagree.
        """
        from clbench.report.frames import comparison

        return comparison(self, baseline, metrics)

    def plot(self, kind: str = "curves", *, setting: str | None = None, x: str | None = None, y: str | None = None,
             metric: str | None = None) -> Figure:
        """Return a figure of one setting: a matplotlib `Figure`, which notebooks show and `.savefig` writes.

        Args:
            kind: "curves", accuracy over tasks; "cost", accuracy against trainable parameters and compute with
                Pareto fronts; "matrix", R of each method; "grid", a heat map of two options that were swept. The
                report's other figures go by "forgetting", "growth", "steps", "errors", "arrival" and "general".
            setting: a setting's title, or a word of it such as "class"; required if the results have several settings.
            x: for "grid", the option along the horizontal axis, such as "rank" or "lora.rank"; by default the first
                swept option that is not `y`.
            y: for "grid", the option along the vertical axis; by default the remaining swept option.
            metric: for "grid", the title of the report's column that the cells show; by default ACC (or the final
                mean of another metric).

        Raises:
            SpecError: no such kind, setting, option or metric, or nothing to draw; the message says why.
            StoreError: there are no records, or one trial has two that disagree.
        """
        from clbench.report.figures.draw import plot

        return plot(self, kind, setting=setting, x=x, y=y, metric=metric)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Record | Results:
        """Return a record, or a slice as results."""
        record_or_slice = super().__getitem__(index)
        return Results(record_or_slice) if isinstance(record_or_slice, list) else record_or_slice

    def __add__(self, other: Any) -> Results:  # type: ignore[override]  # a list of records or of anything else
        """Return the records of both, in this order."""
        return Results([*self, *other]) if isinstance(other, list) else NotImplemented

    def copy(self) -> Results:
        """Return a shallow copy."""
        return Results(self)

    def __repr__(self) -> str:
        """Return a one-line description."""
        return describe_records(self)

    def _repr_html_(self) -> str:
        """Return the first lines and comparison tables as HTML, which notebooks show."""
        return html(self)
