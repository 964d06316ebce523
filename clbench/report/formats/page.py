"""What the HTML page shows of a section, beside the tables of the model: its figures, and how methods look in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clbench.report.columns import ACC, COSTS
from clbench.report.figures import data, style
from clbench.report.figures.data import front
from clbench.report.figures.style import PALE, PALETTE
from clbench.report.formatting import number
from clbench.report.model import Report, Result, Section, Table
from clbench.results.stats import ALPHA

_DASHES = 5  # in report.css, for the methods of one strategy


@dataclass(frozen=True)
class Method:
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
class Matrix:
    """R of one method, and what each seed gave in the table's shape."""

    name: str
    table: Table
    seeds: tuple[int, ...]
    values: list[list[str]]  # of each cell, a number per seed


@dataclass(frozen=True)
class Choice:
    """A cost against which the Pareto picture shows accuracy: a column of the comparison, and the rows on the front."""

    name: str
    column: int
    front: list[int]


@dataclass(frozen=True)
class Figure:
    """A figure, drawn from tables of the page; `alt` is what it shows in words."""

    kind: str
    title: str
    caption: str
    alt: str
    tables: tuple[str, ...]
    file: str
    axis: str = ""
    wide: bool = False
    choices: tuple[Choice, ...] = ()
    critical: float | None = None  # of ranks


@dataclass(frozen=True)
class Ranked:
    """The methods of the table of ranks, a column each, and their figure."""

    methods: list[Method]
    figure: Figure


@dataclass(frozen=True)
class View:
    """A section as the template wants it."""

    id: str
    section: Section
    comparison: str
    methods: list[Method]
    series: list[tuple[str, Table]]
    matrices: list[Matrix]
    figures: list[Figure]


def view(name: str, file: str, section: Section, looks: Mapping[str, style.Look]) -> View:
    """Return a section as the page shows it.

    Args:
        name: of the section on the page, with which the names of its elements begin.
        file: how the names of its figures begin when they are saved.
        section: of the report.
        looks: of each strategy.
    """
    results = section.results
    tables = {
        f"{name}-accuracy": data.accuracy_over_tasks(results),
        f"{name}-forgetting": data.forgetting_per_task(results),
        f"{name}-parameters": data.parameters_over_tasks(results),
        f"{name}-seeds": data.accuracy_by_seed(results, section.seeds)}
    shown = [r for r in results if _alike(r)]
    matrices = [Matrix(f"{name}-R-{i}", table, result.seeds, _by_seed(result))
                for i, (table, result) in enumerate(zip(section.matrices, shown, strict=True))]
    return View(name, section, f"{name}-comparison", _methods(results, looks), list(tables.items()), matrices,
                 _figures(name, file, section, tables, matrices) if shown else [])


def ranked(report: Report, looks: Mapping[str, style.Look]) -> Ranked | None:
    """Return how the page shows the methods that are ranked across the report's sections, the best first."""
    picture = next((p for p in report.pictures if p.kind == "critical-difference"), None)
    if picture is None:
        return None
    labels = [column.title for column in report.rankings[0].columns]
    methods: list[Method] = []
    for p in picture.points:
        look, variant = looks[p.strategy], sum(m.strategy == p.strategy for m in methods) % _DASHES
        methods.append(Method(labels.index(p.label), p.label, p.strategy, colour_class(look.colour), look.marker,
                              variant, p.reference, None))
    caption = ("Average rank by ACC over the settings, 1 is the best. Bars reach half the critical difference "
               f"(Nemenyi, {100 * ALPHA:g}%) to each side: methods whose bars overlap cannot be told apart.")
    return Ranked(methods, Figure("ranks", picture.title, caption, picture.alt, ("ranks-1",), picture.name, wide=True,
                                  critical=picture.critical))


def _methods(results: Sequence[Result], looks: Mapping[str, style.Look]) -> list[Method]:
    """Return the methods that have a result; `matrix` counts those with an R."""
    found: list[Method] = []
    matrices = 0
    for row, r in enumerate(results):
        if not r.seeds:
            continue
        variant = sum(m.strategy == r.strategy for m in found) % _DASHES
        look = looks[r.strategy]
        found.append(Method(row, r.label, r.strategy, colour_class(look.colour), look.marker, variant, r.reference,
                             matrices if _alike(r) else None))
        matrices += _alike(r)
    return found


def _alike(result: Result) -> bool:
    """Return whether a method has a mean R: its seeds had streams of one length."""
    return len({len(R) for R in result.R}) == 1


def _by_seed(result: Result) -> list[list[str]]:
    """Return what stands behind each cell of the mean of R: `98.50 97.00`."""
    return [[" ".join(number(a, "percent") for a in values) for values in zip(*rows, strict=True)]
            for rows in zip(*result.R, strict=True)]


def _figures(name: str, file: str, section: Section, tables: Mapping[str, Table],
             matrices: Sequence[Matrix]) -> list[Figure]:
    accuracy, forgetting, parameters, seeds = tables
    found = [
        Figure("lines", "Accuracy over tasks",
               "Mean accuracy over the tasks seen so far; bands: 95% interval over seeds.",
               f"Accuracy over all tasks after the last: {_ends(tables[accuracy])}.",
               (accuracy,), f"{file}-accuracy", axis="accuracy (%)"),
        Figure("pareto", "Accuracy against cost",
               "Broken line: the Pareto front, the best accuracy at each cost; references (hollow) take no part in it. "
               "Points that would cover one another stand side by side.",
               f"Accuracy against a cost. ACC: {_column(section.comparison, ACC.column.title)}.",
               (f"{name}-comparison",), f"{file}-pareto", choices=_choices(section)),
        Figure("seeds", "Seed by seed", "ACC of each seed; bar and band: mean and 95% interval.",
               f"ACC of each seed. Means: {_ends(tables[seeds])}.", (seeds,), f"{file}-seeds"),
        Figure("lines", "Parameters kept",
               "All that a method keeps after each task. Methods that keep the same take turns along one line.",
               f"Parameters kept after the last task: {_ends(tables[parameters])}.",
               (parameters,), f"{file}-growth", axis="parameters"),
    ]
    if tables[forgetting].columns:  # there are none with a single task
        found.append(Figure("bars", "Forgetting per task",
                            "Points that a task lost since its best, by task; whiskers: 95% interval over seeds.",
                            f"Forgetting (points): {_column(section.comparison, 'forgetting')}.",
                            (forgetting,), f"{file}-forgetting", wide=True))
    found.append(Figure("heat", "Accuracy on every task (R)",
                        "Across: the task tested. Down: after how many tasks; 0 is before training. Below the line: "
                        "tasks that have been trained on.",
                        f"Accuracy matrices of {len(matrices)} methods, mean over seeds.",
                        tuple(m.name for m in matrices), f"{file}-R", wide=True))
    return found


def _ends(table: Table) -> str:
    return "; ".join(f"{row.label} {row.cells[-1].text}" for row in table.rows)


def _column(table: Table, title: str) -> str:
    j = [column.title for column in table.columns].index(title)
    return "; ".join(f"{row.label} {row.cells[j].text}" for row in table.rows)


def _choices(section: Section) -> tuple[Choice, ...]:
    columns, rows = section.comparison.columns, section.comparison.rows
    gain = columns.index(ACC.column)
    ranked = [i for i, r in enumerate(section.results) if r.complete and not r.reference]
    found = []
    for measure in COSTS:
        column = columns.index(measure.column)
        points = {i: (cost, accuracy) for i in ranked
                  if (cost := rows[i].cells[column].mean) and (accuracy := rows[i].cells[gain].mean) is not None}
        best = [list(points)[k] for k in front(list(points.values()))]
        found.append(Choice(measure.column.title, column, best))
    return tuple(found)


LEAST = 3.0  # contrast of what one must see in a figure (WCAG 2.2, 1.4.11)
LIGHT = {"paper": "#fdfdfb", "ink": "#1f2328", "soft": "#59616b", "rule": "#e2e2de", "wash": "#f3f3ef",
         "accent": "#0b5cad", "warn": "#8a3b00", "warn-paper": "#fdf1e4", "cold": "#eef1f3", "hot": "#103a5e",
         "on-cold": "#000000", "on-hot": "#ffffff"}
DARK = {"paper": "#15181c", "ink": "#e6e8eb", "soft": "#a3abb5", "rule": "#30353c", "wash": "#1e2227",
        "accent": "#85bdf2", "warn": "#ffb37a", "warn-paper": "#2b2018", "cold": "#22272d", "hot": "#75a5c5",
        "on-cold": "#ffffff", "on-hot": "#000000"}


def css() -> str:
    """Return both schemes as CSS variables, and a class for each method's colour."""
    methods = _method_colours()
    outlines = {f"{name}-edge": visible(c, LIGHT["paper"], "#000000") for name, c in methods.items()}
    bright = {name: visible(c, DARK["paper"], "#ffffff", 4.5) for name, c in methods.items()}
    light = _rules(LIGHT | methods | outlines)
    dark = _rules(DARK | bright | {f"{name}-edge": c for name, c in bright.items()})
    return (f":root, .light {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
            + "\n".join(f".{name} {{ --c: var(--{name}); --edge: var(--{name}-edge); }}" for name in methods) + "\n")


def colour_class(colour: str) -> str:
    """Return the class of what has one of the colours of `drawing.looks`."""
    return next(name for name, known in _method_colours().items() if known == colour)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours `#rrggbb`, from 1 to 21.

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mix(one: str, other: str, share: float) -> str:
    """Return a colour `#rrggbb` between two, with this share of the other."""
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_parts(one), _parts(other), strict=True))


def _method_colours() -> dict[str, str]:
    return {**{f"c{i}": colour for i, colour in enumerate(PALETTE)}, "grey": PALE}


def visible(colour: str, paper: str, towards: str, least: float = LEAST) -> str:
    """Return a colour as it is, or mixed with another until it has the least contrast with the paper."""
    steps = (mix(colour, towards, i / 20) for i in range(21))
    return next(step for step in steps if contrast(step, paper) >= least)


def _rules(scheme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in scheme.items())


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i:i + 2], 16) for i in (1, 3, 5))


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in _parts(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
