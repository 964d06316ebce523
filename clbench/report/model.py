"""The table model that every report format renders. A cell has a text and the numbers that the text shows.

Texts are single lines of printable characters. They are not escaped, because each format escapes them in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from clbench.core.objective import ACCURACY, Metric
from clbench.core.renamed import Renamed
from clbench.results.curve import Curve

if TYPE_CHECKING:
    from clbench.report.decided import Choosable, Facts

Unit = Literal["percent", "points", "nats", "value", "count", "bytes", "flops", "seconds", "number", "text"]
FileFormat = Literal["svg", "pdf", "png"]  # of figures
Matrices = tuple[tuple[tuple[float, ...], ...], ...]  # [seed][row][task]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
UNIT_SUFFIX = {"percent": " (%)", "points": " (points)", "nats": " (nats)", "seconds": " (s)"}


@dataclass(frozen=True)
class Column:
    """A column with its unit, and whether higher ("up") or lower ("down") values are better.

    Programs find a column by its short `title` (`ACC`). Readers see its `heading` (`accuracy`).
    """

    title: str
    unit: Unit
    direction: Literal["up", "down"] | None = None
    heading: str = ""  # if empty, readers see the title

    @property
    def name(self) -> str:
        """Return the name for readers: the heading, or the title if there is none."""
        return self.heading or self.title

    @property
    def header(self) -> str:
        """Return the name with its unit and an arrow for the better direction."""
        arrow = {"up": " ↑", "down": " ↓", None: ""}[self.direction]
        return self.name + UNIT_SUFFIX.get(self.unit, "") + arrow

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the header in lines that keep the column narrow: one or two for the name, then unit and arrow."""
        words, suffix = self.name.split(), self.header.removeprefix(self.name).strip()
        lines = (" ".join(words[:2]), " ".join(words[2:])) if len(words) > 2 else (self.name,)
        return (*lines, suffix) if suffix else lines


@dataclass(frozen=True)
class Cell:
    """A cell: its text and, if it shows a number, the mean over `n` seeds with the half width of its interval.

    Numbers are raw: fractions, parameters, bytes, FLOPs, seconds. `bold` marks the significantly best values of a
    column, or its smallest count. In a column with a bold value, `second` marks the next best mean.
    """

    text: str
    mean: float | None = None
    half_width: float | None = None
    n: int = 0
    bold: bool = False
    second: bool = False
    low: float | None = None  # the ends of the interval, which need not be symmetric about the mean
    high: float | None = None
    values: tuple[float | None, ...] = ()  # one for each seed with a result


@dataclass(frozen=True)
class Row:
    """A row: label, cells, and marks such as † that a note explains. References are below the other rows."""

    label: str
    cells: tuple[Cell, ...]
    marks: str = ""
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `corner` is the header of the row labels."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    corner: str = "method"

    def index(self, title: str) -> int:
        """Return the position of the column with this title, from 0.

        Raises:
            ValueError: there is none.
        """
        return [column.title for column in self.columns].index(title)

    def cells(self, title: str) -> tuple[Cell, ...]:
        """Return the cells of the column with this title, one for each row.

        Raises:
            ValueError: there is no such column.
        """
        position = self.index(title)
        return tuple(row.cells[position] for row in self.rows)


@dataclass(frozen=True)
class GeneralTable:
    """A metric on general texts: a row per method, a column before training and after each task."""

    text: str  # name of the texts
    metric: Metric
    table: Table
    over: str  # what the intervals are over: seeds, items, or both

    @property
    def title(self) -> str:
        """Return the title of its figure."""
        return f"{self.metric.heading} on {self.text}"


@dataclass(frozen=True)
class Result:
    """A method's raw numbers for each seed: values of the section's metric, parameters, bytes, seconds.

    Accuracies are fractions. Only trials with status `done` are included. An axis marked [seed] has one entry for each
    of `seeds`.
    """

    label: str
    strategy: str  # methods of one strategy share a color
    reference: bool
    complete: bool  # every planned seed gave a result
    planned: tuple[int, ...]  # seeds of the section; if a rule added seeds, of this method
    seeds: tuple[int, ...]  # seeds with a result
    R: Matrices  # [seed][row][task]; row 0 is before any training
    trainable: tuple[tuple[int, ...], ...]  # [seed][task]: parameters trained
    parameters: tuple[tuple[int, ...], ...]  # [seed][task]: parameters stored after the task
    bytes: tuple[tuple[int, ...], ...]  # [seed][task]: bytes stored after the task
    seconds: tuple[float, ...]  # [seed]: training and consolidation
    curves: tuple[Curve, ...] = ()  # accuracy during training, for each seed that recorded it
    options: tuple[tuple[str, bool | int | float | str | None], ...] = ()  # (name, value) of the method's options
    task_names: tuple[str, ...] = ()  # empty if tasks have no names, or if seeds differ in them
    scores: Mapping[str, Matrices] = field(default_factory=dict)  # matrices of further metrics, like R
    common_test: bool = False  # all tasks share one test set, so a row of R has the same value for every task


@dataclass(frozen=True)
class FigurePoint:
    """A method's raw numbers in a figure: fractions, parameters, FLOPs. None means that there is no value."""

    label: str
    strategy: str  # methods of one strategy share a color
    reference: bool
    ranked: bool  # has a result for every seed and is not a reference, so it can be on the Pareto front
    accuracy: float | None  # ACC, or the final mean of the figure's metric; mean over seeds
    half_width: float | None  # of the 95% interval of `accuracy`
    trainable: float | None  # parameters trained in the last task
    sizes: tuple[float, ...]  # stored after each task: parameters, or the quantity that the figure's `axis` names
    rank: float | None = None  # mean over settings; 1 is the best
    low: float | None = None  # ends of the interval of `accuracy`; None with a single seed
    high: float | None = None
    compute: float | None = None  # FLOPs of all training
    sweep: str = ""  # a line joins the methods of one strategy that have the same `sweep`


@dataclass(frozen=True)
class FigureData:
    """A figure as data, with its title, caption and alternative text. It is drawn as `figures/<name>.svg`."""

    kind: str  # a key of `clbench.report.figures.draw.KINDS`
    name: str
    title: str
    subject: str  # the section's title
    alt: str  # alternative text
    caption: str
    points: tuple[FigurePoint, ...] = ()  # data of the kinds pareto, curves, growth and critical-difference
    results: tuple[Result, ...] = ()  # data of the kinds curves, forgetting, heatmaps, steps and general
    critical: float | None = None  # critical difference: ranks that are closer are not significantly different
    axis: str = ""  # title of the vertical axis, for growth
    table: Table | None = None  # data of the kinds arrival, errors and general
    metric: Metric = ACCURACY  # the metric of `results` and `points`
    selection: str = ""  # "14 of 36 methods" if the figure shows only some of them; the caption says so, too

    @property
    def brief(self) -> bool:
        """Return whether report.md shows the figure. Other figures are drawn only if every figure is requested."""
        return self.kind not in ("heatmaps", "forgetting")


@dataclass(frozen=True)
class Section:
    """One setting, in which every method had the same stream, model and training configuration."""

    title: str
    comparison: Table
    details: tuple[Table, ...]
    matrices: tuple[Table, ...]  # for each method, the mean of R over seeds
    seeds: tuple[int, ...]
    problems: tuple[str, ...]  # trials that failed, diverged or are missing
    notes: tuple[str, ...]  # facts that the comparison table does not show
    settings: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    figures: tuple[FigureData, ...] = ()
    results: tuple[Result, ...] = ()  # in the order of the comparison's rows
    verdicts: tuple[str, ...] = ()  # results of the tests of paired differences, a sentence per metric
    comparisons: tuple[Table, ...] = ()  # the paired differences, a table per metric
    arrivals: Table | None = None  # training samples by the task in which they arrive; None if as the benchmark says
    anatomy: tuple[str, ...] = ()  # where the errors come from, a sentence per method
    confusions: tuple[Table, ...] = ()  # confusion of tasks by each method, and its error decomposition after each task
    headline: tuple[tuple[str, str], ...] = ()  # the first lines as (topic, text)
    setting: tuple[tuple[str, str], ...] = ()  # (name, value): benchmark, model, optimizer, ...
    footnote: tuple[str, ...] = ()  # sentences under the comparison: how to read it, the tests, the meaning of names
    facts: Facts | None = None  # the verdicts behind the headline, as data
    choosable: Choosable | None = None  # data for choosing a method; None if there are fewer than two
    task_classes: tuple[str, ...] = ()  # class names of each task; empty if there are none, or if seeds differ in them
    metric: Metric = ACCURACY  # the metric of R, by which methods are ranked and tested
    general: tuple[GeneralTable, ...] = ()  # scores of general texts before training and after each task

    @property
    def summary(self) -> str:
        """Return the setting in one line."""
        return "; ".join(f"{name}: {value}" for name, value in self.setting)

    @property
    def matrix_title(self) -> str:
        """Return the title of the matrices."""
        return f"{self.metric.heading} on every task after each task ({self.metric.label} matrix R)"

    pictures = Renamed("figures")  # until 0.3


@dataclass(frozen=True)
class Report:
    """A report: one section per setting, in the order of the records."""

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # definitions that hold for all sections
    rankings: tuple[Table, ...] = ()  # ranks of methods across sections, if enough sections share enough methods
    ranking_verdicts: tuple[str, ...] = ()  # results of the tests of these ranks
    figures: tuple[FigureData, ...] = ()  # figures across all sections

    @property
    def every_figure(self) -> tuple[FigureData, ...]:
        """Return the figures of all sections, then the figures of the whole report."""
        return (*chain.from_iterable(section.figures for section in self.sections), *self.figures)

    @property
    def strategies(self) -> list[tuple[str, bool]]:
        """Return the strategies of the methods and whether each is a reference, in the order of the tables."""
        results = chain.from_iterable(section.results for section in self.sections)
        return list(dict.fromkeys((r.strategy, r.reference) for r in results))

    pictures = Renamed("figures")  # until 0.3


