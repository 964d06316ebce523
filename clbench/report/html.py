"""The report as one HTML file that needs no network: tables, and figures that a script draws from the tables."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from clbench.report import drawing, series
from clbench.report.columns import ACC, COSTS
from clbench.report.model import Report, Result, Section, Table
from clbench.report.pictures import file_names, front
from clbench.report.scheme import colour_class, css
from clbench.report.text import number

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_SCRIPTS = ("dom.js", "axes.js", "lines.js", "panels.js", "seeds.js", "pareto.js", "tables.js", "page.js")
_DASHES = 5  # in report.css, for the methods of one strategy


@dataclass(frozen=True)
class _Method:
    """A method in the legend: its row in every table and its looks; `variant` tells those of one strategy apart."""

    row: int
    label: str
    strategy: str
    colour: str
    marker: str
    variant: int
    reference: bool
    matrix: int | None  # which of the section's matrices is its own


@dataclass(frozen=True)
class _Matrix:
    """R of one method with what each seed gave, in the table's shape."""

    name: str
    table: Table
    seeds: list[list[str]]


@dataclass(frozen=True)
class _Choice:
    """A cost against which the Pareto picture shows accuracy: a column of the comparison, and the rows on the front."""

    name: str
    column: int
    front: list[int]


@dataclass(frozen=True)
class _Figure:
    """A figure, drawn from tables of the page; `alt` is what it shows in words."""

    kind: str
    title: str
    caption: str
    alt: str
    tables: tuple[str, ...]
    file: str
    axis: str = ""
    wide: bool = False
    choices: tuple[_Choice, ...] = ()


@dataclass(frozen=True)
class _View:
    """A section as the template wants it."""

    id: str
    section: Section
    comparison: str
    methods: list[_Method]
    series: list[tuple[str, Table]]
    matrices: list[_Matrix]
    figures: list[_Figure]


def render(report: Report) -> str:
    """Return report.html: tables that can be sorted, interactive figures, settings, provenance, commands, by section."""
    looks = drawing.looks([(r.strategy, r.reference) for section in report.sections for r in section.results])
    names = file_names([section.title for section in report.sections])
    views = [_view(f"s{i}", name, section, looks)
             for i, (name, section) in enumerate(zip(names, report.sections, strict=True), start=1)]
    script = "(() => {\n\"use strict\";\n" + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"
    return _environment().get_template("report.html").render(
        report=report, sections=views, script=script, style=_asset("report.css") + css()) + "\n"


def _view(name: str, file: str, section: Section, looks: dict[str, drawing.Look]) -> _View:
    results = section.results
    tables = {
        f"{name}-accuracy": series.accuracy_over_tasks(results), f"{name}-forgetting": series.forgetting_per_task(results),
        f"{name}-parameters": series.parameters_over_tasks(results),
        f"{name}-seeds": series.accuracy_by_seed(results, section.seeds)}
    shown = [r for r in results if _alike(r)]
    matrices = [_Matrix(f"{name}-R-{i}", table, _by_seed(result))
                for i, (table, result) in enumerate(zip(section.matrices, shown, strict=True))]
    return _View(name, section, f"{name}-comparison", _methods(results, looks), list(tables.items()), matrices,
                 _figures(name, file, section, tables, matrices) if shown else [])

def _methods(results: Sequence[Result], looks: dict[str, drawing.Look]) -> list[_Method]:
    """Return the methods that have a result; `matrix` counts those with an R."""
    found: list[_Method] = []
    matrices = 0
    for row, r in enumerate(results):
        if not r.seeds:
            continue
        variant = sum(m.strategy == r.strategy for m in found) % _DASHES
        look = looks[r.strategy]
        found.append(_Method(row, r.label, r.strategy, colour_class(look.colour), look.marker, variant, r.reference,
                             matrices if _alike(r) else None))
        matrices += _alike(r)
    return found


def _alike(result: Result) -> bool:
    """Return whether a method has a mean R: its seeds had streams of one length."""
    return len({len(R) for R in result.R}) == 1


def _by_seed(result: Result) -> list[list[str]]:
    """Return what stands behind each cell of the mean of R: `seed 0: 98.50, seed 1: 97.00`."""
    return [[", ".join(f"seed {seed}: {number(a, 'percent')}" for seed, a in zip(result.seeds, values, strict=True))
             for values in zip(*rows, strict=True)] for rows in zip(*result.R, strict=True)]


def _figures(name: str, file: str, section: Section, tables: dict[str, Table], matrices: list[_Matrix]) -> list[_Figure]:
    accuracy, forgetting, parameters, seeds = tables
    ends = {table: _ends(tables[table]) for table in tables}
    found = [
        _Figure("lines", "Accuracy over tasks", "Mean accuracy over the tasks seen so far; bands: 95% interval over "
                "seeds.", f"Accuracy over all tasks after the last: {ends[accuracy]}.", (accuracy,), f"{file}-accuracy",
                axis="accuracy (%)"),
        _Figure("pareto", "Accuracy against cost", "Broken line: the Pareto front, the best accuracy at each cost; "
                "references (hollow) take no part in it. Points that would cover one another stand side by side.",
                f"Accuracy against a cost. ACC: {_column(section.comparison, ACC.column.title)}.",
                (f"{name}-comparison",), f"{file}-pareto", choices=_choices(section)),
        _Figure("seeds", "Seed by seed", "ACC of each seed; bar and band: mean and 95% interval.",
                f"ACC of each seed. Means: {ends[seeds]}.", (seeds,), f"{file}-seeds"),
        _Figure("lines", "Parameters kept", "All parameters that a method keeps after each task. Methods that keep the "
                "same take turns along one line.", f"Parameters kept after the last task: {ends[parameters]}.",
                (parameters,), f"{file}-growth", axis="parameters"),
    ]
    if tables[forgetting].columns:
        found.append(_Figure("bars", "Forgetting per task", "Points that a task lost since its best, by task; "
                             "whiskers: 95% interval over seeds.",
                             f"Forgetting (points): {_column(section.comparison, 'forgetting')}.", (forgetting,),
                             f"{file}-forgetting", wide=True))
    found.append(_Figure("heat", "Accuracy on every task (R)", "Across: the task tested. Down: after how many tasks; 0 is "
                         "before training. Below the line: tasks that have been trained on.",
                         f"Accuracy matrices of {len(matrices)} methods, mean over seeds.",
                         tuple(m.name for m in matrices), f"{file}-R", wide=True))
    return found


def _ends(table: Table) -> str:
    return "; ".join(f"{row.label} {row.cells[-1].text}" for row in table.rows)


def _column(table: Table, title: str) -> str:
    j = [column.title for column in table.columns].index(title)
    return "; ".join(f"{row.label} {row.cells[j].text}" for row in table.rows)


def _choices(section: Section) -> tuple[_Choice, ...]:
    columns, rows = section.comparison.columns, section.comparison.rows
    gain = columns.index(ACC.column)
    ranked = [i for i, r in enumerate(section.results) if r.complete and not r.reference]
    found = []
    for measure in COSTS:
        column = columns.index(measure.column)
        points = {i: (cost, accuracy) for i in ranked
                  if (cost := rows[i].cells[column].mean) and (accuracy := rows[i].cells[gain].mean) is not None}
        best = [list(points)[k] for k in front(list(points.values()))]
        found.append(_Choice(measure.column.title, column, best))
    return tuple(found)


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_asset), autoescape=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"breakable": _breakable, "digits": _digits, "sha256": _sha256}
    return environment


def _asset(name: str) -> str:
    return (files("clbench.report") / "assets" / name).read_text(encoding="utf-8")


def _breakable(text: str) -> Markup:
    """Return text, escaped, whose lines may end within an option; an arrow stays with the word before it."""
    from markupsafe import Markup

    parts = re.split("(?<=[:=_])", re.sub(" (?=[↑↓]$)", "\N{NO-BREAK SPACE}", text))
    return Markup("<wbr>").join(parts)


def _digits(value: float) -> str:
    return f"{value:.9g}"


def _sha256(text: str) -> str:
    """Return what a content security policy calls an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
