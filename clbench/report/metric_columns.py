"""The columns of a metric. For a metric other than accuracy, these are final values, learned values and forgetting.

The columns of costs are the same for all metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain

from clbench.core.objective import ACCURACY, NLL, Metric, objective_of
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
)
from clbench.report.formatting import difference_unit, unit_of
from clbench.report.model import Column
from clbench.results import metrics
from clbench.results.records import Record, matrices

SHOWN_DIGITS = 8  # of the hash of a general text
Value = Callable[[Record, Record | None], float | None]


def measures_of(metric: Metric) -> tuple[Measure, ...]:
    """Return the columns of records whose R is of a metric, in the order of the tables' columns."""
    return MEASURES if metric == ACCURACY else _measures_of(metric)


def with_general(measures: Sequence[Measure], records: Iterable[Record]) -> tuple[Measure, ...]:
    """Add a column to `measures` for each general text in the records: the change of its NLL through training.

    Files of the same name with other contents are other texts; then titles have the start of the hash.
    """
    texts = dict.fromkeys((name, record.general_files.get(name, "")) for record in records for name in record.general)
    if not texts:
        return tuple(measures)
    names = [name for name, _ in texts]
    titles = [f"{name} ({digest[:SHOWN_DIGITS] or 'unknown content'})" if names.count(name) > 1 else name
              for name, digest in texts]
    index = measures.index(TASK_INFERENCE)
    general = (_general_measure(*text, title) for text, title in zip(texts, titles, strict=True))
    return (*measures[:index], *general, *measures[index:])


def _general_measure(name: str, digest: str, title: str) -> Measure:
    unit = difference_unit(unit_of(NLL))

    def change(record: Record, _: Record | None) -> float | None:
        values = record.general.get(name, {}).get(NLL.name)
        return values[-1] - values[0] if values and record.general_files.get(name, "") == digest else None

    return Measure(Column(f"change of NLL on {title}", unit, "down"), change, COMPARISON, tested=True, optional=True)


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
            replace(TOTAL, table=MORE_COSTS), *(m for m in MEASURES if m.table == MORE_COSTS))


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

    def intransigence(record: Record, joint: Record | None) -> float | None:
        R, joint_R = (matrices(source).get(metric.name) if source else None for source in (record, joint))
        return metrics.intransigence(R, joint_R, metric) if R and joint_R and len(R) == len(joint_R) else None

    return (Measure(Column("BWT", difference, "up", "backward transfer"),
                    _reader(metric, lambda R: metrics.bwt(R, metric)), MORE_METRICS, tested=True),
            Measure(Column(f"average incremental {metric.label}", unit_of(metric), metric.direction),
                    _reader(metric, metrics.aia), MORE_METRICS, tested=True),
            Measure(Column("FWT", difference, "up", "forward transfer"),
                    _reader(metric, lambda R: metrics.fwt(R, metric)), MORE_METRICS, tested=True),
            Measure(Column("intransigence", difference, "down"), intransigence, MORE_METRICS, tested=True,
                    optional=True, needs_joint=True))


def _reader(metric: Metric, value: Callable[[metrics.Matrix], float | None]) -> Value:
    """Return a function that computes a value from a record's matrix of a metric, with the value None without it."""
    return lambda record, _: value(R) if (R := matrices(record).get(metric.name)) else None
