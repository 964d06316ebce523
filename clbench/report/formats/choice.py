"""Which methods the figures of a page show at first, and the kinds by which a reader chooses others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clbench.report.columns import MORE_COSTS
from clbench.report.model import FigurePoint, Result, Section

FEW = 6  # methods: with more a reader can choose which are shown
CLEAR = 16  # lines that a figure can hold apart; of more methods the leading ones are shown first
BEST = 6  # methods that are leading by their accuracy alone
ALL, LEADING = "all methods", "the best, the Pareto fronts, references"
FEWER, GROWN = 0.1, 1.1  # share of the parameters that is trained; growth of the parameters kept


@dataclass(frozen=True)
class LegendEntry:
    """A method in a legend with its style. `variant` distinguishes the methods of one strategy."""

    method: Result | FigurePoint
    row: int  # of the method in every table
    colour: str  # a CSS class
    marker: str
    variant: int
    matrix: int | None = None  # position of its R among the section's matrices
    shown: bool = True  # in the figures, until a reader chooses otherwise
    kinds: tuple[str, ...] = ()  # by which a reader can choose it


def chosen(section: Section, legend: Sequence[LegendEntry]) -> list[LegendEntry]:
    """Return a legend with the kinds of its methods. If there are many methods, only the leading ones are shown."""
    entries = [replace(entry, kinds=tuple(_kinds(section, entry))) for entry in legend]
    if len(legend) <= CLEAR:
        return entries
    return [replace(entry, shown=LEADING in entry.kinds) for entry in entries]


def _kinds(section: Section, entry: LegendEntry) -> Iterator[str]:
    """Yield the kinds of a method. They follow from its counted costs, so no plugin has to be installed."""
    result = section.results[entry.row]
    facts = section.facts
    named = {c.other for c in (facts.baseline, facts.joint) if c} if facts else set()
    fronts = {label for labels in facts.fronts.values() for label in labels} if facts else set()
    if entry.row < BEST or result.label in named | fronts:
        yield LEADING
    if result.reference:
        yield "references"
        return
    costs = next((table for table in section.details if table.title == MORE_COSTS), None)
    samples = costs.cells("replay samples")[entry.row].mean if costs else None
    yield "storing samples" if samples else "storing no samples"
    if result.trainable[0] and result.trainable[0][-1] < FEWER * result.parameters[0][-1]:
        yield f"training under {100 * FEWER:g}% of the parameters"
    if result.parameters[0] and result.parameters[0][-1] > GROWN * result.parameters[0][0]:
        yield "growing"
    if result.label.startswith("avalanche:"):
        yield "from Avalanche"
