"""The choices of a reader of the page: the methods in the figures, and a method under constraints, precomputed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from clbench.core.objective import Metric, objective_of
from clbench.report.analysis.choosing import KINDS, Kind
from clbench.report.analysis.facts import choose_leading
from clbench.report.columns import MORE_COSTS
from clbench.report.decided import Candidate, CandidateComparison
from clbench.report.formatting import difference_unit, interval, number, unit_of, unit_suffix
from clbench.report.model import UNIT_SUFFIX, FigurePoint, Result, Section

SLIDERS = tuple(kind for kind in KINDS if kind.name != "samples")
# in place of a number of seeds: the difference is significant, it is not tested, or there are too few seeds for a test
SHOWN, UNTESTED, INCONCLUSIVE = -1, -2, -3


def pack_choice(sections: Sequence[tuple[str, Section]]) -> str:
    """Return the choice as JSON for a script. The text is empty if no section has a choice.

    `kinds` has the name, heading and words of each kind, then all its amounts in ascending order, as the user types
    them and as the page shows them. `settings` has id, title, whether the task is given, the number of seeds of each
    method, and the words for its metric (`_words`). Then come the methods: label, final mean, whether samples are
    stored, and the position of the amount of each kind (-1: not counted). For each method, three numbers compare it
    with each method after it (`_pack_comparison`). The last entry has the labels of methods that cannot be chosen.

    Args:
        sections: the id of each section and the section.
    """
    choices = [(id_, section, section.choosable) for id_, section in sections if section.choosable]
    if not choices:
        return ""
    candidates = list(chain.from_iterable(choice.candidates for *_, choice in choices))
    amounts: dict[str, list[float]] = {}
    for kind in SLIDERS:
        counted = [candidate.counted[kind.name] for candidate in candidates]
        amounts[kind.name] = sorted({amount for amount in counted if amount is not None})
    kinds = [[kind.name, kind.measure.column.name, kind.words, list(map(format_amount, amounts[kind.name])),
              [number(value, kind.measure.column.unit) for value in amounts[kind.name]]] for kind in SLIDERS]
    places = {name: {value: i for i, value in enumerate(values)} for name, values in amounts.items()}

    def place(kind: Kind, candidate: Candidate) -> int:
        value = candidate.counted[kind.name]
        return -1 if value is None else places[kind.name][value]

    settings: list[list[Any]] = []
    for id_, section, choice in choices:
        unit = unit_of(choice.metric)
        methods = [[f"{c.label} {c.caution}".strip(), interval(c.accuracy, c.half_width, unit), _samples(c),
                    *(place(kind, c) for kind in SLIDERS)] for c in choice.candidates]
        comparisons = [[part for pair in row for part in _pack_comparison(pair, choice.metric)]
                       for row in choice.comparisons]
        counts = {result.label: len(result.seeds) for result in section.results}
        seeds = [counts[candidate.label] for candidate in choice.candidates]
        settings.append([id_, section.title, int(choice.task_given), seeds, _words(choice.metric), methods, comparisons,
                         choice.incomplete])
    return json.dumps({"kinds": kinds, "settings": settings}, ensure_ascii=False, separators=(",", ":"))


def format_amount(value: float) -> str:
    """Return an amount with all its digits, as `clbench choose` accepts it."""
    return str(int(value)) if value == int(value) else repr(value)


def _samples(candidate: Candidate) -> int:
    """Return whether samples are stored: 0, 1, or -1 if that was not counted."""
    value = candidate.counted["samples"]
    return -1 if value is None else int(value > 0)


def _words(metric: Metric) -> list[str]:
    """Return the words for a metric on the page: label, unit of differences, title of its column, option."""
    unit = unit_of(metric)
    option = "" if objective_of(metric).primary == metric.name else f" --metric {metric.name}"
    return [metric.label, unit_suffix(difference_unit(unit)).strip(), metric.label + UNIT_SUFFIX.get(unit, ""), option]


def _pack_comparison(pair: CandidateComparison, metric: Metric) -> list[int | str | None]:
    """Return the difference, its half width, and the evidence for the difference.

    Differences are in hundredths of a point, or texts if the metric is no percentage. The half width is None if there
    is no interval. The evidence is `SHOWN`, `UNTESTED`, `INCONCLUSIVE`, or about how many seeds would make the
    difference significant (0: not known).
    """
    half = pair.half_width
    evidence = SHOWN if pair.shown else UNTESTED if pair.untested else (
        INCONCLUSIVE if pair.inconclusive else pair.needed or 0)
    if metric.is_share:
        return [_hundredths(pair.difference), None if half is None else _hundredths(half), evidence]
    mean, _, width = interval(pair.difference, half, unit_of(metric)).partition(" ± ")
    return [mean, None if half is None else width, evidence]


def _hundredths(value: float) -> int:
    """Return a difference as it is shown, without the decimal point."""
    return int(f"{100 * value:.2f}".replace(".", ""))


FEW = 6  # methods; with more, a reader can choose which ones are shown
CLEAR = 16  # lines that stay distinct in a figure; with more methods, only the leading ones are shown at first
BEST = 6  # the number of most accurate methods that count as leading
ALL, LEADING = "all methods", f"the {BEST} best, those on the Pareto fronts, the baseline and joint training"
FEWER, GROWN = 0.1, 1.1  # limits: share of the parameters that is trained; growth of the stored parameters


@dataclass(frozen=True)
class LegendEntry:
    """A method in a legend with its style. `variant` distinguishes the methods of one strategy."""

    method: Result | FigurePoint
    row: int  # position of the method in every table
    color: str  # a CSS class
    marker: str
    variant: int
    matrix: int | None = None  # position of its R among the section's matrices
    shown: bool = True  # whether figures show the method at first
    kinds: tuple[str, ...] = ()  # kinds of methods that it belongs to


def choose_legend(section: Section, legend: Sequence[LegendEntry]) -> list[LegendEntry]:
    """Return a legend with the kinds of its methods. If there are many methods, only the leading ones are shown."""
    verdicts = section.facts
    labels = choose_leading(verdicts, BEST, verdicts.fronts) if verdicts else set()
    entries = [replace(entry, kinds=tuple(_kinds(section, entry, labels))) for entry in legend]
    if len(legend) <= CLEAR:
        return entries
    return [replace(entry, shown=LEADING in entry.kinds) for entry in entries]


def _kinds(section: Section, entry: LegendEntry, leading_labels: Collection[str]) -> Iterator[str]:
    """Yield the kinds of a method. They follow from its counted costs, so no plugin has to be installed."""
    result = section.results[entry.row]
    if result.label in leading_labels:
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
    if result.strategy.startswith("avalanche:"):
        yield "from Avalanche"
