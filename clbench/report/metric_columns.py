"""The columns of a metric. For a metric other than accuracy, these are final values, learned values and forgetting.

The columns of costs are the same for all metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from clbench.core.objective import ACCURACY, METRICS, Metric, objective_of
from clbench.report.columns import (
    ACC,
    BYTES,
    COMPARISON,
    COMPUTE,
    MEASURES,
    MORE_COSTS,
    MORE_METRICS,
    TASK_INFERENCE,
    TIME,
    TOTAL,
    TRAINABLE,
    Measure,
    Value,
    curve_measures,
    intransigence,
)
from clbench.report.formatting import difference_unit, task_label, unit_of
from clbench.report.model import Column
from clbench.results import metrics
from clbench.results.records import Record, general_item_scores, matrices

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GENERAL = "General ability"  # title of the tables
SHOWN_DIGITS = 8  # of the hash of a general text


def measures_of(metric: Metric) -> tuple[Measure, ...]:
    """Return the columns of records whose R is of a metric, in the order of the tables' columns."""
    return MEASURES if metric == ACCURACY else _measures_of(metric)


@dataclass(frozen=True)
class GeneralScore:
    """A metric of a file of general texts. Files of the same name with other contents are other texts."""

    name: str  # of the file
    digest: str  # hash of its content
    title: str  # the name, with the start of the hash if files of other contents have it too
    metric: Metric

    def values(self, record: Record) -> list[float]:
        """Return the values before training and after each task; empty if the record has none."""
        if record.general_files.get(self.name, "") != self.digest:
            return []
        return record.general.get(self.name, {}).get(self.metric.name, [])

    def items(self, record: Record) -> npt.NDArray[np.float32] | None:
        """Return the values of single texts [T + 1, N], or None if they are not known."""
        return general_item_scores(record, self.name, self.metric.name) if self.values(record) else None

    @property
    def change(self) -> Measure:
        """Return the column of the change of the metric through training."""
        def items_of(record: Record) -> npt.NDArray[np.float32] | None:
            return None if (items := self.items(record)) is None else items[-1] - items[0]

        column = Column(f"change of {self.metric.label} on {self.title}", difference_unit(unit_of(self.metric)),
                        self.metric.direction)
        return Measure(column, lambda record, _: values[-1] - values[0] if (values := self.values(record)) else None,
                       COMPARISON, tested=True, optional=True, items=items_of)

    def at(self, row: int) -> Measure:
        """Return the column of the metric after the first `row` tasks."""
        def items_of(record: Record) -> npt.NDArray[np.float32] | None:
            return None if (items := self.items(record)) is None else items[row]

        column = Column(f"after {task_label(row - 1)}" if row else "before training", unit_of(self.metric),
                        self.metric.direction)
        return Measure(column, lambda record, _: values[row] if row < len(values := self.values(record)) else None,
                       GENERAL, items=items_of)


def general_scores(records: Iterable[Record]) -> list[GeneralScore]:
    """Return each metric of each file of general texts in the records."""
    by_text = {(name, record.general_files.get(name, "")): record.general[name] for record in records
             for name in record.general}
    names = [name for name, _ in by_text]
    return [GeneralScore(name, digest, f"{name} ({digest[:SHOWN_DIGITS] or 'unknown content'})"
                         if names.count(name) > 1 else name, METRICS[metric])
            for (name, digest), by_metric in by_text.items() for metric in by_metric]


def with_general(measures: Sequence[Measure], records: Iterable[Record]) -> tuple[Measure, ...]:
    """Add a column to `measures` for each metric of each general text in the records: its change through training."""
    changes = [score.change for score in general_scores(records)]
    index = measures.index(TASK_INFERENCE) if changes else 0
    return (*measures[:index], *changes, *measures[index:])


def final_of(metric: Metric) -> Measure:
    """Return the column of the mean over tasks after the last task, by which methods are ranked."""
    return ACC if metric == ACCURACY else _measures_of(metric)[0]


@cache
def _measures_of(metric: Metric) -> tuple[Measure, ...]:
    other_metrics = [other for other in objective_of(metric).metrics if other != metric]
    return (*_final_and_learned(metric), _forgetting(metric, "forgetting", COMPARISON),
            *chain.from_iterable(map(_final_and_learned, other_metrics)), TASK_INFERENCE, TRAINABLE, BYTES, COMPUTE,
            TIME, *_more_measures(metric),
            *(_forgetting(other, f"forgetting of {other.label}", MORE_METRICS) for other in other_metrics),
            *curve_measures(metric), replace(TOTAL, table=MORE_COSTS), *(m for m in MEASURES if m.table == MORE_COSTS))


def _final_and_learned(metric: Metric) -> Sequence[Measure]:
    unit = unit_of(metric)
    return (Measure(Column(metric.short, unit, metric.direction, f"final {metric.label}"), _reader(metric, metrics.acc),
                    COMPARISON, tested=True, in_report=True, metric=metric),
            Measure(Column(f"learned {metric.short}", unit, metric.direction, f"learned {metric.label}"),
                    _reader(metric, metrics.learning_accuracy), COMPARISON, tested=True))


def _forgetting(metric: Metric, title: str, table: str) -> Measure:
    return Measure(Column(title, difference_unit(unit_of(metric)), "down"),
                   _reader(metric, lambda R: metrics.forgetting(R, metric)), table, tested=True,
                   in_report=table == COMPARISON)


def _more_measures(metric: Metric) -> Sequence[Measure]:
    difference = difference_unit(unit_of(metric))
    return (Measure(Column("BWT", difference, "up", "backward transfer"),
                    _reader(metric, lambda R: metrics.bwt(R, metric)), MORE_METRICS, tested=True),
            Measure(Column(f"average incremental {metric.label}", unit_of(metric), metric.direction),
                    _reader(metric, metrics.aia), MORE_METRICS, tested=True),
            Measure(Column("FWT", difference, "up", "forward transfer"),
                    _reader(metric, lambda R: metrics.fwt(R, metric)), MORE_METRICS, tested=True),
            Measure(Column("intransigence", difference, "down"), intransigence(metric), MORE_METRICS, tested=True,
                    optional=True, needs_joint=True))


def _reader(metric: Metric, value: Callable[[metrics.Matrix], float | None]) -> Value:
    """Return a function that computes a value from a record's matrix of a metric, with the value None without it."""
    return lambda record, _: value(R) if (R := matrices(record).get(metric.name)) else None
