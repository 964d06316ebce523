"""The columns of the tables: which figure of a record each shows, and how figures over seeds become a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from clbench import metrics
from clbench.records import Record
from clbench.report.model import Cell, Column, Row, Unit
from clbench.report.text import NONE, clean, interval, number
from clbench.stats import mean_interval


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
TRAINABLE = Measure(Column("trainable params per task", "count", "down"), lambda r, _: _last(r.costs.trainable))
BYTES = Measure(Column("bytes kept", "bytes", "down"), lambda r, _: _kept(r.costs.bytes))
TIME = Measure(Column("training time", "seconds", "down"), lambda r, _: _training_time(r))
COSTS = (TRAINABLE, BYTES, TIME)  # against which accuracy is weighed
COMPARISON = (
    ACC,
    Measure(Column("forgetting", "points", "down"), lambda r, _: metrics.forgetting(r.R)),
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
    "± is half the width of the 95% confidence interval of the mean over seeds (Student t). ↑ higher is better, "
    "↓ lower is better; bold: the best mean among methods with all their seeds, references left out.",
    "Trainable params per task: those of the last task. Total params and bytes kept: everything the method holds after "
    "the last task, replay memory and buffers included. Training time: with consolidation, without evaluation.",
)


def kept_in(role: str) -> Measure:
    """Return the column of the bytes kept at the end in one role."""
    return Measure(Column(clean(role), "bytes"),
                   lambda r, _: r.costs.bytes[-1].get(role, 0) if r.costs.bytes else None)


def cell(values: Sequence[float | None], unit: Unit) -> Cell:
    """Return the cell for the values of all seeds; without a number if one of them has none.

    Counts that agree over all seeds are facts, not estimates, and stand alone.
    """
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return Cell(NONE, values=tuple(values))
    over = mean_interval(known)
    exact = unit in ("count", "bytes") and len(set(known)) == 1
    text = number(over.mean, unit) if exact else interval(over.mean, over.half_width, unit)
    return Cell(text, over.mean, over.half_width, over.n, values=tuple(values))


def embolden(columns: Sequence[Column], rows: Sequence[Row], eligible: Sequence[bool]) -> tuple[Row, ...]:
    """Return the rows with the best mean of each directed column in bold, and every other that prints the same.

    Only eligible rows take part; where fewer than two have a number nothing is best.
    """
    bold: set[tuple[int, int]] = set()
    for j, column in enumerate(columns):
        means = {i: mean for i, row in enumerate(rows) if eligible[i] and (mean := row.cells[j].mean) is not None}
        if column.direction is None or len(means) < 2:
            continue
        best = (max if column.direction == "up" else min)(means.values())
        shown = number(best, column.unit)
        bold |= {(i, j) for i, mean in means.items() if number(mean, column.unit) == shown}
    return tuple(replace(row, cells=tuple(replace(c, bold=(i, j) in bold) for j, c in enumerate(row.cells)))
                 for i, row in enumerate(rows))
