"""The headline, table and remarks that explain the difference between two experiments, the same in every format."""

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
    attribution: Attribution
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
        order = sorted(range(len(self.factors)), key=lambda i: -abs(self.attribution.parts[i].mean))
        return [(self.factors[i], i) for i in order]


def check_units(measures: tuple[Measure, Measure]) -> None:
    """Raise a `SpecError` if the measures of A and B have different units."""
    units = ["points" if m.column.unit in POINTS else m.column.unit for m in measures]
    if units[0] != units[1]:
        raise SpecError(f"--metric: {measures[0].column.title} is in {measures[0].column.unit} and "
                        f"{measures[1].column.title} in {measures[1].column.unit}; their difference means nothing")


def signed(one: Estimate, unit: Unit, spread: bool = True) -> str:
    """Return a change with its sign and half the width of its interval, or 0 if nothing changed."""
    if one.mean == 0 and not one.half_width:
        return "0"
    text = interval(one.mean, one.half_width, unit) if spread and one.half_width is not None else number(one.mean, unit)
    return f"+{text}" if one.mean > 0 else text


def headline(explanation: Explanation) -> str:
    """Return the result as one line: `ACC 77.30 -> 69.40 (-7.90 ± 1.20 points): learning rate -5.10 ± 0.60, ...`."""
    attribution, unit = explanation.attribution, explanation.unit
    first, second = (measure.column for measure in explanation.measures)
    a, b = number(attribution.a.mean, first.unit), number(attribution.b.mean, second.unit)
    other = f"{second.title} " if second.title != first.title else ""
    parts = ", ".join(f"{clean(factor.name)} {signed(attribution.parts[i], unit)}" for factor, i in explanation.ranked)
    shown_unit = f" {unit}" if unit in ("points", "seconds") else ""
    return f"{first.title} {a} -> {other}{b} ({signed(attribution.difference, unit)}{shown_unit}): {parts}"


def table(explanation: Explanation) -> Table:
    """Return the table of factors with their contributions, the largest first, and the sums."""
    attribution, unit = explanation.attribution, explanation.unit
    columns = (Column("A -> B", "text"), Column("alone in A", unit), Column("alone in B", unit),
               Column("contribution", unit))
    contributions = (attribution.from_a, attribution.from_b, attribution.parts)
    rows = [Row(clean(factor.name), (Cell(clean(factor.change)), *(_cell(series[i], unit) for series in contributions)))
            for factor, i in explanation.ranked]
    total = [Cell("")] + [_cell(summed(series), unit) for series in (attribution.from_a, attribution.from_b)]
    return Table("What the difference is made of", columns,
                 (*rows, Row("sum", (*total, _cell(attribution.difference, unit)))), corner="factor")


def by_seed(explanation: Explanation) -> Table:
    """Return the table of each seed's outcomes and contributions."""
    attribution = explanation.attribution
    a, b = (measure.column for measure in explanation.measures)
    shown = [(f"A: {a.title}", attribution.a, a.unit),
             *((factor.name, attribution.parts[i], explanation.unit) for factor, i in explanation.ranked),
             (f"B: {b.title}", attribution.b, b.unit)]
    return Table("Each seed's outcomes and parts", tuple(Column(clean(name), unit) for name, _, unit in shown), tuple(
        Row(str(seed), tuple(Cell(number(one.values[k], unit), one.values[k]) for _, one, unit in shown))
        for k, seed in enumerate(explanation.seeds)), corner="seed")


def between(explanation: Explanation) -> str:
    """Return the line that names the two experiments."""
    return clean(f"From {explanation.names[0]} (A) to {explanation.names[1]} (B)")


def settings(explanation: Explanation) -> list[tuple[str, str]]:
    """Describe the settings of A and B."""
    return [(name, clean(f"{trial.benchmark}; scenario {trial.scenario}; {trial.model}; "
                         f"{notes.recipe(trial.trained_by)}; method {trial.method}"
                         + (f"; weights {notes.weights(trial.weights)}" if trial.weights else "")
                         + (f"; accuracies on {notes.held_out(trial)}" if trial.validation else "")))
            for name, trial in zip(("A", "B"), explanation.ends, strict=True)]


def summed(series: Sequence[Estimate]) -> Estimate:
    """Return the sum of changes of the same seeds, seed by seed."""
    return over_seeds(np.array([fsum(values) for values in zip(*(one.values for one in series), strict=True)]))


def _cell(one: Estimate, unit: Unit) -> Cell:
    half = one.half_width
    return Cell(signed(one, unit), one.mean, half, len(one.values), low=None if half is None else one.mean - half,
                high=None if half is None else one.mean + half, values=one.values)


def remarks(explanation: Explanation) -> list[str]:
    """Return a sentence for everything that a reader needs to know besides the table."""
    attribution, count, unit = explanation.attribution, len(explanation.factors), explanation.unit
    how = (f"all {2**count} combinations" if not attribution.orders else
           f"a sample of {attribution.orders} orders (each with its reverse) of the factors; the intervals include "
           "that")
    seeds = f"each of {len(explanation.seeds)} seeds" if len(explanation.seeds) > 1 else "one seed"
    lines = [f"Parts: Shapley values over {how}, {explanation.combinations} trained with {seeds}. They sum to the "
             "difference before rounding. Alone in A: A with that one factor of B, less A. Alone in B: B less B with "
             "that one factor of A.",
             "±: half the 95% interval (Student t) over seeds, each part by itself; all is paired by seed."
             if len(explanation.seeds) > 1 else "A single seed gives no intervals; give more --seeds."]
    lines += [f"{factor.name} are one factor, as not all of their combinations go together: {factor.why}"
              for factor in explanation.factors if factor.why]
    open_ = [factor.name for factor, i in explanation.ranked if (half := attribution.parts[i].half_width) and
             abs(attribution.parts[i].mean) <= half]
    nothing = [factor.name for factor, i in explanation.ranked if not any(attribution.parts[i].values)]
    if nothing:
        lines.append(f"Changes nothing, in no seed: {', '.join(nothing)}.")
    if open_:
        lines.append(f"The interval holds 0, so these seeds do not show a contribution: {', '.join(open_)}.")
    if count > 1:
        alone = [summed(series) for series in (attribution.from_a, attribution.from_b)]
        total = signed(attribution.difference, unit, False)
        lines.append(f"Alone, the factors add up to {signed(alone[0], unit, False)} from A and "
                     f"{signed(alone[1], unit, False)} from B, together to {total}: "
                     "what is between is what they do to each other, which Shapley values share out evenly.")
    stale = sum(bool(record.stale) for record in explanation.records)
    if stale:
        lines.append(f"{stale} results came from other code or data than there are now, and were kept.")
    return [clean(line) for line in (*lines, *explanation.left_out)]
