"""The one table model that every report format renders: cells carry their text and the numbers behind it.

Text is one line of printable characters, not escaped: each format escapes for itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from clbench.core import moved

Unit = Literal["percent", "points", "count", "bytes", "seconds", "number", "text"]
FileFormat = Literal["svg", "pdf", "png"]  # of figures
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_UNIT_SUFFIX = {"percent": " (%)", "points": " (points)", "seconds": " (s)"}


@dataclass(frozen=True)
class Column:
    """A column: what it shows, in which unit, and whether higher ("up") or lower ("down") is better."""

    title: str
    unit: Unit
    direction: Literal["up", "down"] | None = None

    @property
    def header(self) -> str:
        """Return the title with its unit and an arrow for the better direction."""
        arrow = {"up": " ↑", "down": " ↓", None: ""}[self.direction]
        return self.title + _UNIT_SUFFIX.get(self.unit, "") + arrow

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the header on lines that keep a column narrow: the title in one or two, then unit and arrow."""
        words, rest = self.title.split(), self.header.removeprefix(self.title).strip()
        lines = (" ".join(words[:2]), " ".join(words[2:])) if len(words) > 2 else (self.title,)
        return (*lines, rest) if rest else lines


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and where it is a number the mean over n seeds with the interval's half width.

    Numbers are raw: fractions, parameters, bytes, seconds. `bold` marks what is shown to be the best of a column, and
    `second` the second best mean of a column that has such a one.
    """

    text: str
    mean: float | None = None
    half_width: float | None = None
    n: int = 0
    bold: bool = False
    second: bool = False
    low: float | None = None  # the interval itself, which need not have the mean in its middle
    high: float | None = None
    values: tuple[float | None, ...] = ()  # of each seed that is done


@dataclass(frozen=True)
class Row:
    """A row: label, cells, marks such as † that a note explains; references are set apart behind the others."""

    label: str
    cells: tuple[Cell, ...]
    marks: str = ""
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `corner` is the header of the labels."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    corner: str = "method"


@dataclass(frozen=True)
class Result:
    """What a method gave, seed by seed: raw numbers (fractions, parameters, bytes, seconds) behind tables and figures.

    Only trials that are done; each tuple behind `seeds` has one entry for each of them.
    """

    label: str
    strategy: str  # methods of one strategy share a colour
    reference: bool
    complete: bool  # all seeds of the section are done
    seeds: tuple[int, ...]
    R: tuple[tuple[tuple[float, ...], ...], ...]  # [seed][row][task]; row 0 is before any training
    trainable: tuple[tuple[int, ...], ...]  # [seed][task]: parameters trained
    parameters: tuple[tuple[int, ...], ...]  # [seed][task]: kept after it
    bytes: tuple[tuple[int, ...], ...]  # [seed][task]: kept after it
    seconds: tuple[float, ...]  # [seed]: training with consolidation


@dataclass(frozen=True)
class FigurePoint:
    """What the pictures show of a method. Numbers are raw: fractions and parameters; None where there is none."""

    label: str
    strategy: str  # methods of one strategy share a colour and a line
    reference: bool
    ranked: bool  # has all its seeds and is no reference, so that it may be on the Pareto front
    accuracy: float | None  # ACC, mean over seeds
    half_width: float | None  # of its interval
    trainable: float | None  # parameters trained in the last task
    kept: tuple[float, ...]  # parameters kept after each task
    rank: float | None = None  # mean over settings, 1 is the best
    low: float | None = None  # ends of ACC's interval; None where one seed gives none
    high: float | None = None


@dataclass(frozen=True)
class FigureData:
    """A figure as data, and what stands beside it: `figures/<name>.svg` next to the report."""

    kind: Literal["pareto", "growth", "curves", "heatmaps", "forgetting", "critical-difference"]
    name: str
    title: str
    subject: str  # the section's title
    alt: str  # in words, for those who do not see it
    caption: str
    points: tuple[FigurePoint, ...] = ()  # what pareto, growth and critical-difference draw, as far as it can be drawn
    results: tuple[Result, ...] = ()  # what the others draw
    critical: float | None = None  # ranks that are less apart than this cannot be told apart

    @property
    def brief(self) -> bool:
        """Tell whether a short report shows it; the others are drawn where every figure is asked for."""
        return self.kind not in ("heatmaps", "forgetting")


@dataclass(frozen=True)
class Section:
    """All about one setting, in which every method had the same stream, model and recipe."""

    title: str
    summary: str  # the setting in a line
    comparison: Table
    details: tuple[Table, ...]
    matrices: tuple[Table, ...]  # R, mean over seeds, of each method
    seeds: tuple[int, ...]
    problems: tuple[str, ...]  # trials that failed, diverged or are missing
    notes: tuple[str, ...]  # what a reader of the comparison must know
    settings: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    pictures: tuple[FigureData, ...] = ()
    results: tuple[Result, ...] = ()  # in the order of the comparison's rows
    verdicts: tuple[str, ...] = ()  # what the tests of paired differences say, a sentence per metric
    comparisons: tuple[Table, ...] = ()  # those differences, a table per metric


@dataclass(frozen=True)
class Report:
    """A report: one section per setting, in the order of the records."""

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # definitions that hold for all sections
    rankings: tuple[Table, ...] = ()  # of methods across the sections, where several share enough of them
    ranking_verdicts: tuple[str, ...] = ()  # what the tests of those ranks say
    pictures: tuple[FigureData, ...] = ()  # of the whole report


if not TYPE_CHECKING:
    __getattr__ = functools.partial(moved.find, __name__)  # old names, until 0.3
