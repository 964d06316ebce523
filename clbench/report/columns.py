"""The columns of the tables: which figure of a record each shows, and how figures over seeds become a cell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from clbench.report.formatting import NONE, clean, interval, number
from clbench.report.model import Cell, Column, Unit
from clbench.results import metrics
from clbench.results.records import Record
from clbench.results.stats import ALPHA, BOOTSTRAP_FROM, mean_interval

COUNTED: tuple[Unit, ...] = ("count", "bytes")


@dataclass(frozen=True)
class Measure:
    """A column and its figure: `value(record, joint)` of a whole record and joint training's record of its seed."""

    column: Column
    value: Callable[[Record, Record | None], float | None]


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _kept(values: Sequence[dict[str, int]]) -> float | None:
    return sum(values[-1].values()) if values else None


def _total(values: Sequence[float]) -> float | None:
    return sum(values) if values else None


def _training_time(record: Record) -> float | None:
    times = record.timings
    return sum(times.train) + sum(times.consolidate) if times.train else None


def _inferred(record: Record) -> float | None:
    return fmean(record.task_inference[-1]) if record.task_inference else None


def _intransigence(record: Record, joint: Record | None) -> float | None:
    if joint is None or len(joint.R) != len(record.R):
        return None
    return metrics.intransigence(record.R, joint.R)


ACC = Measure(Column("ACC", "percent", "up"), lambda r, _: metrics.acc(r.R))
FORGETTING = Measure(Column("forgetting", "points", "down"), lambda r, _: metrics.forgetting(r.R))
TRAINABLE = Measure(Column("trainable params per task", "count", "down"), lambda r, _: _last(r.costs.trainable))
BYTES = Measure(Column("bytes kept", "bytes", "down"), lambda r, _: _kept(r.costs.bytes))
TIME = Measure(Column("training time", "seconds", "down"), lambda r, _: _training_time(r))
COSTS = (TRAINABLE, BYTES, TIME)  # against which accuracy is weighed
COMPARISON = (
    ACC,
    FORGETTING,
    Measure(Column("BWT", "points", "up"), lambda r, _: metrics.bwt(r.R)),
    TRAINABLE,
    Measure(Column("total params", "count", "down"), lambda r, _: _kept(r.costs.parameters)),
    BYTES,
    TIME,
)
INFERENCE = Measure(Column("task inference", "percent", "up"), lambda r, _: _inferred(r))
MORE_METRICS = (
    Measure(Column("AIA", "percent", "up"), lambda r, _: metrics.aia(r.R)),
    Measure(Column("learning accuracy", "percent", "up"), lambda r, _: metrics.learning_accuracy(r.R)),
    Measure(Column("FWT", "points", "up"), lambda r, _: metrics.fwt(r.R)),
)
INTRANSIGENCE = Measure(Column("intransigence", "points", "down"), _intransigence)
MORE_COSTS = (
    Measure(Column("optimiser steps", "count"), lambda r, _: _total(r.costs.steps)),
    Measure(Column("replay samples", "count"), lambda r, _: _last(r.costs.replay_samples)),
    Measure(Column("training", "seconds"), lambda r, _: _total(r.timings.train)),
    Measure(Column("consolidation", "seconds"), lambda r, _: _total(r.timings.consolidate)),
    Measure(Column("evaluation", "seconds"), lambda r, _: _total(r.timings.evaluate)),
    Measure(Column("peak memory", "bytes"), lambda r, _: r.costs.peak_host_bytes),
)
DEVICE_MEMORY = Measure(Column("peak device memory", "bytes"), lambda r, _: r.costs.peak_device_bytes)
DEFINITIONS = (
    "ACC: mean accuracy over all tasks after the last. Forgetting: mean over tasks of the best accuracy after training "
    "on the task and before the last task, minus the final one (Chaudhry 2018). BWT: mean of final accuracy minus that "
    "just after training (Lopez-Paz & Ranzato 2017). Points are percentage points. docs/metrics.md gives formulas.",
    f"± is half the width of the 95% confidence interval of the mean over seeds: Student t with fewer than "
    f"{BOOTSTRAP_FROM} seeds, from {BOOTSTRAP_FROM} on BCa bootstrap at a level expanded for few seeds (Hesterberg "
    "2015). ↑ higher is better, ↓ lower is better.",
    "Bold: shown to be better than every other method that has all its seeds, references left out. Parameters and "
    "bytes that are the same for every seed are facts; for all that is measured a test must show it (see differences), "
    "and with few seeds none can.",
    "Differences: paired by seed (same batches, same initial weights); p of the exact sign-flip permutation test, "
    f"corrected by Holm's rule over all pairs of methods; shown where that is at most {ALPHA:g}. Effect size: Hedges' "
    "g of the paired differences. An interval is for its pair alone, not corrected, and Student t supposes normal "
    "differences, which the test does not: it may exclude 0 where the test decides nothing.",
    "Trainable params per task: those of the last task. Total params and bytes kept: everything the method holds after "
    "the last task, replay memory and buffers included. Training time: with consolidation, without evaluation.",
)


def kept_in(role: str) -> Measure:
    """Return the column of the bytes kept at the end in one role."""
    return Measure(Column(clean(role), "bytes"),
                   lambda r, _: r.costs.bytes[-1].get(role, 0) if r.costs.bytes else None)


def cells(series: Sequence[Sequence[float | None]], unit: Unit) -> list[Cell]:
    """Return a column's cells, each for the values of a method's seeds; without a number if a seed has none.

    Counts that agree over all seeds are facts, not estimates, and stand alone.
    """
    known = [[v for v in values if v is not None] for values in series]
    whole = [i for i, values in enumerate(known) if values and len(values) == len(series[i])]
    found = [Cell(NONE, values=tuple(values)) for values in series]
    for i in whole:
        over = mean_interval(known[i])
        exact = unit in COUNTED and len(set(known[i])) == 1
        text = number(over.mean, unit) if exact else interval(over.mean, over.half_width, unit)
        found[i] = Cell(text, over.mean, over.half_width, over.n, low=over.low, high=over.high, values=tuple(series[i]))
    return found


def mark(column: Column, found: Sequence[Cell], best: Collection[int], eligible: Collection[int]) -> list[Cell]:
    """Return a column's cells with the best in bold; where there are such, the next best mean is marked as second."""
    rest = {i: mean for i in eligible if i not in best and (mean := found[i].mean) is not None}
    second: set[int] = set()
    if best and rest:
        shown = number((max if column.direction == "up" else min)(rest.values()), column.unit)
        second = {i for i, mean in rest.items() if number(mean, column.unit) == shown}
    return [replace(c, bold=i in best, second=i in second) for i, c in enumerate(found)]


def fewest(found: Sequence[Cell], unit: Unit, eligible: Collection[int]) -> set[int]:
    """Return the cells with the smallest count, and those that print the same; none if that are all of them."""
    means = {i: mean for i in eligible if (mean := found[i].mean) is not None}
    shown = number(min(means.values()), unit) if means else ""
    smallest = {i for i, mean in means.items() if number(mean, unit) == shown}
    return smallest if len(smallest) < len(means) else set()
