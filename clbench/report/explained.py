"""A difference between two experiments explained: its headline, its table and its remarks, the same in every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from clbench.core.errors import SpecError
from clbench.experiment.factors import Factor
from clbench.experiment.trial import Trial
from clbench.report.analysis import notes
from clbench.report.columns import Measure
from clbench.report.formatting import clean, interval, number
from clbench.report.model import Cell, Column, Row, Table, Unit
from clbench.results.attribution import Attribution, Estimate, over_seeds
from clbench.results.records import Record

POINTS: tuple[Unit, ...] = ("percent", "points")  # fractions, whose differences are points


@dataclass(frozen=True)
class Explanation:
    """The result of `clbench explain`."""

    names: tuple[str, str]  # of A and B
    factors: tuple[Factor, ...]
    measures: tuple[Measure, Measure]
    seeds: tuple[int, ...]
    found: Attribution
    combinations: int  # that were run
    left_out: tuple[str, ...]  # a line each
    records: tuple[Record, ...]
    ends: tuple[Trial, Trial]  # a trial of A and one of B

    @property
    def unit(self) -> Unit:
        """Return the unit of differences."""
        return "points" if self.measures[0].column.unit in POINTS else self.measures[0].column.unit

    @property
    def ranked(self) -> list[tuple[Factor, int]]:
        """Return the factors with their positions, the largest part first."""
        order = sorted(range(len(self.factors)), key=lambda i: -abs(self.found.parts[i].mean))
        return [(self.factors[i], i) for i in order]


def check_units(measures: tuple[Measure, Measure]) -> None:
    """Raise a `SpecError` if what is measured in A and in B has not one unit."""
    units = ["points" if m.column.unit in POINTS else m.column.unit for m in measures]
    if units[0] != units[1]:
        raise SpecError(f"--metric: {measures[0].column.title} is in {measures[0].column.unit} and "
                        f"{measures[1].column.title} in {measures[1].column.unit}; their difference means nothing")


def signed(one: Estimate, unit: Unit, spread: bool = True) -> str:
    """Return a change with its sign and half the width of its interval; what is exactly nothing is 0."""
    if one.mean == 0 and not one.half_width:
        return "0"
    text = interval(one.mean, one.half_width, unit) if spread and one.half_width is not None else number(one.mean, unit)
    return f"+{text}" if one.mean > 0 else text


def headline(told: Explanation) -> str:
    """Return the result in a line: `ACC 77.30 -> 69.40 (-7.90 ± 1.20 points): learning rate -5.10 ± 0.60, ...`."""
    first, second = (measure.column for measure in told.measures)
    a, b = number(told.found.a.mean, first.unit), number(told.found.b.mean, second.unit)
    other = f"{second.title} " if second.title != first.title else ""
    parts = ", ".join(f"{clean(factor.name)} {signed(told.found.parts[i], told.unit)}" for factor, i in told.ranked)
    unit = f" {told.unit}" if told.unit in ("points", "seconds") else ""
    return f"{first.title} {a} -> {other}{b} ({signed(told.found.difference, told.unit)}{unit}): {parts}"


def table(told: Explanation) -> Table:
    """Return the table of factors, the largest part first, and their sums."""
    found, unit = told.found, told.unit
    columns = (Column("A -> B", "text"), Column("alone in A", unit), Column("alone in B", unit),
               Column("contribution", unit))
    rows = [Row(clean(factor.name), (Cell(clean(factor.change)), *(
        _cell(series[i], unit) for series in (found.from_a, found.from_b, found.parts)))) for factor, i in told.ranked]
    total = [Cell("")] + [_cell(summed(series), unit) for series in (found.from_a, found.from_b)]
    return Table("What the difference is made of", columns,
                 (*rows, Row("sum", (*total, _cell(found.difference, unit)))), corner="factor")


def by_seed(told: Explanation) -> Table:
    """Return the table of each seed's outcomes and parts."""
    found = told.found
    a, b = (measure.column for measure in told.measures)
    shown = [(f"A: {a.title}", found.a, a.unit),
             *((factor.name, found.parts[i], told.unit) for factor, i in told.ranked),
             (f"B: {b.title}", found.b, b.unit)]
    return Table("Each seed's outcomes and parts", tuple(Column(clean(name), unit) for name, _, unit in shown), tuple(
        Row(str(seed), tuple(Cell(number(one.values[k], unit), one.values[k]) for _, one, unit in shown))
        for k, seed in enumerate(told.seeds)), corner="seed")


def between(told: Explanation) -> str:
    """Return which experiments are compared."""
    return clean(f"From {told.names[0]} (A) to {told.names[1]} (B)")


def settings(told: Explanation) -> list[tuple[str, str]]:
    """Return A and B in words."""
    return [(name, clean(f"{trial.benchmark}; scenario {trial.scenario}; {trial.model}; "
                         f"{notes.recipe(trial.trained_by)}; method {trial.method}"
                         + (f"; weights {notes.weights(trial.weights)}" if trial.weights else "")
                         + (f"; accuracies on {notes.held_out(trial)}" if trial.validation else "")))
            for name, trial in zip(("A", "B"), told.ends, strict=True)]


def summed(series: Sequence[Estimate]) -> Estimate:
    """Return the sum of changes of the same seeds, seed by seed."""
    return over_seeds(np.array([fsum(values) for values in zip(*(one.values for one in series), strict=True)]))


def _cell(one: Estimate, unit: Unit) -> Cell:
    half = one.half_width
    return Cell(signed(one, unit), one.mean, half, len(one.values), low=None if half is None else one.mean - half,
                high=None if half is None else one.mean + half, values=one.values)


def remarks(told: Explanation) -> list[str]:
    """Return what the table alone does not say, a sentence each."""
    found, count, unit = told.found, len(told.factors), told.unit
    how = (f"all {2**count} combinations" if not found.orders else
           f"a sample of {found.orders} orders (each with its reverse) of the factors; the intervals include that")
    seeds = f"each of {len(told.seeds)} seeds" if len(told.seeds) > 1 else "one seed"
    lines = [f"Parts: Shapley values over {how}, {told.combinations} trained with {seeds}. They sum to the "
             "difference before rounding. Alone in A: A with that one factor of B, less A. Alone in B: B less B with "
             "that one factor of A.",
             "±: half the 95% interval (Student t) over seeds, each part by itself; all is paired by seed."
             if len(told.seeds) > 1 else "A single seed gives no intervals; give more --seeds."]
    lines += [f"{factor.name} are one factor, as not all of their combinations go together: {factor.why}"
              for factor in told.factors if factor.why]
    open_ = [factor.name for factor, i in told.ranked if (half := found.parts[i].half_width) and
             abs(found.parts[i].mean) <= half]
    nothing = [factor.name for factor, i in told.ranked if not any(found.parts[i].values)]
    if nothing:
        lines.append(f"Changes nothing, in no seed: {', '.join(nothing)}.")
    if open_:
        lines.append(f"The interval holds 0, so these seeds do not show a contribution: {', '.join(open_)}.")
    if count > 1:
        alone = [summed(series) for series in (found.from_a, found.from_b)]
        lines.append(f"Alone, the factors add up to {signed(alone[0], unit, False)} from A and "
                     f"{signed(alone[1], unit, False)} from B, together to {signed(found.difference, unit, False)}: "
                     "what is between is what they do to each other, which Shapley values share out evenly.")
    stale = sum(bool(record.stale) for record in told.records)
    if stale:
        lines.append(f"{stale} results came from other code or data than there are now, and were kept.")
    return [clean(line) for line in (*lines, *told.left_out)]
