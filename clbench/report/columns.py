"""The columns of the tables: how each computes its value from a record, and how the values of seeds become a cell.

`MEASURES` lists every column of classification once; `clbench.report.metric_columns` has those of other metrics. The
fields of a `Measure` say how reports use its column, for instance whether they test its differences. To add a column,
add one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.core.errors import SpecError, guess
from clbench.core.objective import ACCURACY, Metric
from clbench.report.formatting import NONE, clean, difference_unit, interval, number, unit_of
from clbench.report.model import Cell, Column, Unit
from clbench.results import curve, metrics
from clbench.results.curve import Curve
from clbench.results.records import ErrorCounts, Record, matrices
from clbench.results.sequential import interval_of
from clbench.results.stats import Interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COUNTED: tuple[Unit, ...] = ("count", "bytes", "flops")
COMPARISON, MORE_METRICS, MORE_COSTS = "Comparison", "More metrics", "More costs"  # titles of the tables
WHILE_LEARNED = "Accuracy while tasks are learned"
BYTES_BY_ROLE = "Bytes kept at the end, by role"
Value = Callable[[Record, Record | None], float | None]


@dataclass(frozen=True)
class Measure:
    """A column, the function that computes its value, and how reports use it.

    `value(record, joint)` takes the record of a trial and joint training's record of the same seed.
    """

    column: Column
    value: Value
    table: str  # title of the table that has this column
    tested: bool = False  # `clbench compare` can test differences: values are measured, and a direction is better
    in_report: bool = False  # every report tests its differences
    cost: bool = False  # figures show accuracy against it
    optional: bool = False  # left out of a table if no record has a value
    zero_competes: bool = True  # a method with 0 can be the best
    metric: Metric | None = None  # the metric whose mean over tasks after the last task this is, if it is one
    needs_joint: bool = False  # there is no value without joint training's record
    items: Callable[[Record], npt.NDArray[np.float32] | None] | None = None  # numbers of single items, whose mean it is


def _last_value(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _last_sum(values: Sequence[dict[str, int]]) -> float | None:
    return sum(values[-1].values()) if values else None


def _total(values: Sequence[float]) -> float | None:
    return sum(values) if values else None


def training_time(record: Record) -> float | None:
    """Return the seconds of training and consolidation, None if they were not measured."""
    times = record.timings
    return sum(times.train) + sum(times.consolidate) if times.train else None


def training_cpu(record: Record) -> float | None:
    """Return the processor seconds of training and consolidation, None if they were not measured."""
    times = record.timings
    return sum(times.train_cpu) + sum(times.consolidate_cpu) if times.train_cpu else None


def share(counts: Sequence[int], samples: Sequence[int]) -> float:
    """Return the counts as shares of the samples of their tasks, averaged over tasks."""
    return fmean(n / total for n, total in zip(counts, samples, strict=True))


def read_last_counts(record: Record) -> ErrorCounts | None:
    """Return the counts of errors in the last row of R, or None if the record has none."""
    return record.errors[-1] if record.errors and record.errors[-1].learned == len(record.R) - 1 else None


def with_task_ids(record: Record) -> float | None:
    """Return the mean over tasks of the final accuracy with given task IDs, or None if it is not known."""
    return share(counts.given, counts.samples) if (counts := read_last_counts(record)) else None


def _pooled_reader(metric: Callable[[metrics.Matrix, Sequence[int]], float], scenario: str = "") -> Value:
    """Return a function that computes a pooled accuracy of a record.

    The function returns None if all tasks have the same number of test samples.

    Args:
        metric: the function of R and the numbers of test samples.
        scenario: the only scenario in which the column is shown; empty for all.
    """
    def value(record: Record, _: Record | None) -> float | None:
        samples = record.stream.test_samples if record.stream else []
        if len(set(samples)) < 2 or scenario not in ("", record.trial.scenario):
            return None
        return metric(record.R, samples)

    return value


def _per_task(value: Value) -> Value:
    """Return a function whose value is None for records whose tasks share one test set."""
    return lambda record, joint: None if record.common_test else value(record, joint)


def _task_inference(record: Record) -> float | None:
    return fmean(record.task_inference[-1]) if record.task_inference else None


def intransigence(metric: Metric) -> Value:
    """Return a function that compares a record with joint training's by a metric; its value is None if it cannot."""
    def value(record: Record, joint: Record | None) -> float | None:
        R, joint_R = (matrices(source).get(metric.name) if source else None for source in (record, joint))
        return metrics.intransigence(R, joint_R, metric) if R and joint_R and len(R) == len(joint_R) else None

    return value


def curve_measures(metric: Metric) -> tuple[Measure, ...]:
    """Return the columns of a metric while tasks are learned; they are empty for records whose R is of another one."""
    unit, difference = unit_of(metric), difference_unit(unit_of(metric))
    worst, title = ("minimum", "min") if metric.direction == "up" else ("maximum", "max")

    def measure(column: Column, value: Callable[[Curve], float | None], tested: bool = False) -> Measure:
        return Measure(column, lambda record, _: value(record.curve) if record.curve and record.curve.about == metric
                       else None, WHILE_LEARNED, tested=tested, optional=True)

    return (measure(Column(f"{title}-{metric.short}", unit, metric.direction, f"{worst} {metric.label}"), curve.min_acc,
                    tested=True),
            measure(Column(f"WC-{metric.short}", unit, metric.direction, f"worst-case {metric.label}"), curve.wc_acc,
                    tested=True),
            measure(Column("anytime average", unit, metric.direction), curve.anytime, tested=True),
            measure(Column("gap depth", difference, "down"), curve.mean_depth, tested=True),
            measure(Column("gap recovery", difference), curve.mean_recovery),
            measure(Column("gap length (steps)", "number"), curve.mean_length))


ACC = Measure(Column("ACC", "percent", "up", "accuracy"),
              lambda r, _: metrics.acc(r.R), COMPARISON, tested=True, in_report=True, metric=ACCURACY)
FORGETTING = Measure(Column("forgetting", "points", "down"), _per_task(lambda r, _: metrics.forgetting(r.R)),
                     COMPARISON, tested=True, in_report=True)
# An analytic classifier trains 0 parameters by gradients, but it learns in another way. So 0 is not the best value.
TRAINABLE = Measure(Column("trainable params per task", "count", "down", "trainable parameters per task"),
                    lambda r, _: _last_value(r.costs.trainable),
                    COMPARISON, cost=True, zero_competes=False)
BYTES = Measure(Column("bytes kept", "bytes", "down", "storage"),
                lambda r, _: _last_sum(r.costs.bytes), COMPARISON, cost=True)
COMPUTE = Measure(Column("training compute", "flops", "down"), lambda r, _: _total(r.costs.train_flops), COMPARISON,
                  cost=True, optional=True)
TIME = Measure(Column("training time", "seconds", "down"), lambda r, _: training_time(r), COMPARISON, tested=True,
               cost=True)
REPLAY = Measure(Column("replay samples", "count"), lambda r, _: _last_value(r.costs.replay_samples), MORE_COSTS)
INFERENCE = Measure(Column("inference compute", "flops"), lambda r, _: _last_value(r.costs.inference_flops), MORE_COSTS,
                    optional=True)
TOTAL = Measure(Column("total params", "count", "down", "total parameters"),
                lambda r, _: _last_sum(r.costs.parameters), COMPARISON)
TASK_INFERENCE = Measure(Column("task inference", "percent", "up", "task-ID accuracy"), lambda r, _: _task_inference(r),
                         COMPARISON, tested=True, optional=True)
MEASURES = (  # in the order of the tables' columns
    ACC,
    Measure(Column("ACC with task IDs", "percent", "up", "accuracy with task IDs"), lambda r, _: with_task_ids(r),
            COMPARISON, tested=True, optional=True),
    FORGETTING,
    Measure(Column("BWT", "points", "up", "backward transfer"), _per_task(lambda r, _: metrics.bwt(r.R)),
            COMPARISON, tested=True),
    TASK_INFERENCE,
    TRAINABLE,
    TOTAL,
    BYTES,
    COMPUTE,
    TIME,
    Measure(Column("AIA", "percent", "up", "average incremental accuracy"),
            lambda r, _: metrics.aia(r.R), MORE_METRICS, tested=True),
    Measure(Column("ACC-pooled", "percent", "up", "pooled accuracy"), _pooled_reader(metrics.acc_pooled),
            MORE_METRICS, tested=True, optional=True),
    Measure(Column("AIA-pooled", "percent", "up", "average incremental pooled accuracy"),
            _pooled_reader(metrics.aia_pooled), MORE_METRICS, tested=True, optional=True),
    Measure(Column("AIA-pooled-all", "percent", "up", "average pooled accuracy of all domains"),
            _pooled_reader(metrics.aia_pooled_all, "domain"), MORE_METRICS, tested=True, optional=True),
    Measure(Column("learning accuracy", "percent", "up"), _per_task(lambda r, _: metrics.learning_accuracy(r.R)),
            MORE_METRICS, tested=True),
    Measure(Column("FWT", "points", "up", "forward transfer"),
            _per_task(lambda r, _: metrics.fwt(r.R)), MORE_METRICS, tested=True),
    Measure(Column("intransigence", "points", "down"), _per_task(intransigence(ACCURACY)), MORE_METRICS, tested=True,
            optional=True, needs_joint=True),
    *curve_measures(ACCURACY),
    Measure(Column("optimizer steps", "count", heading="optimizer steps"),
            lambda r, _: _total(r.costs.steps), MORE_COSTS),
    REPLAY,
    INFERENCE,
    Measure(Column("training", "seconds"), lambda r, _: _total(r.timings.train), MORE_COSTS),
    Measure(Column("consolidation", "seconds"), lambda r, _: _total(r.timings.consolidate), MORE_COSTS),
    Measure(Column("evaluation", "seconds"), lambda r, _: _total(r.timings.evaluate), MORE_COSTS),
    Measure(Column("training CPU", "seconds"), lambda r, _: training_cpu(r), MORE_COSTS, optional=True),
    Measure(Column("evaluation CPU", "seconds"), lambda r, _: _total(r.timings.evaluate_cpu), MORE_COSTS,
            optional=True),
    Measure(Column("peak memory", "bytes"), lambda r, _: r.costs.peak_host_bytes, MORE_COSTS),
    Measure(Column("peak device memory", "bytes"), lambda r, _: r.costs.peak_device_bytes, MORE_COSTS, optional=True),
)


def bytes_in_role(role: str) -> Measure:
    """Return the column of the bytes that a method stores in one role after the last task."""
    return Measure(Column(clean(role), "bytes"),
                   lambda r, _: r.costs.bytes[-1].get(role, 0) if r.costs.bytes else None, BYTES_BY_ROLE)


def find_tested(titles: Sequence[str], measures: Sequence[Measure] | None = None,
                known: Sequence[Measure] | None = None) -> list[Measure]:
    """Return the measures with these titles (in upper or lower case) whose differences can be tested.

    The name of a metric (`r2`) is another title of its final mean.

    Args:
        titles: the titles; if there are none, the measures that reports test are returned.
        measures: the measures to search; by default those of classification.
        known: the measures that may be named although `measures` do not have them; by default none.

    Raises:
        SpecError: no such measure has one of the titles.
    """
    measures = MEASURES if measures is None else measures
    if not titles:
        return [m for m in measures if m.in_report]
    by_name = _by_name(measures)
    known_names = _by_name(known or measures)
    for title in titles:
        if title.lower() not in known_names:
            known_titles = list(dict.fromkeys(m.column.title for m in known or measures if m.tested))
            raise SpecError(f"no metric {title!r}{guess(title, known_titles)} (those that can be compared here: "
                            f"{', '.join(known_titles)})")
    return [by_name[title.lower()] for title in titles if title.lower() in by_name]


def _by_name(measures: Sequence[Measure]) -> dict[str, Measure]:
    """Return the tested measures by title and, if they are final means, by the name of their metric, in lower case."""
    tested = [m for m in measures if m.tested]
    return ({m.metric.name: m for m in tested if m.metric} | {m.column.title.lower(): m for m in tested})


def cells(series: Sequence[Sequence[float | None]], unit: Unit) -> list[Cell]:
    """Return a column's cells, one for each method. If a seed has no value, the cell is a dash.

    A count that is the same for every seed is exact and has no interval.
    """
    return [_cell(values, unit) for values in series]


def _cell(values: Sequence[float | None], unit: Unit) -> Cell:
    known_values = [value for value in values if value is not None]
    if not known_values or len(known_values) < len(values):
        return Cell(NONE, values=tuple(values))
    return cell_of(interval_of(known_values, None), unit, values)


def cell_of(over: Interval, unit: Unit, values: Sequence[float | None]) -> Cell:
    """Return the cell of a mean with its interval. `values` are the values of the seeds, none of them missing."""
    exact = unit in COUNTED and len(set(values)) == 1
    text = number(over.mean, unit) if exact else interval(over.mean, over.half_width, unit)
    return Cell(text, over.mean, over.half_width, over.n, low=over.low, high=over.high, values=tuple(values))


def mark(column: Column, column_cells: Sequence[Cell], best: Collection[int], eligible: Collection[int]) -> list[Cell]:
    """Return a column's cells with the best in bold. If any is bold, the next best mean is marked as second.

    Args:
        column: the column. Its direction says which mean is better.
        column_cells: its cells.
        best: positions of the significantly best cells.
        eligible: positions of the cells that may be the best or the second.
    """
    other_means = {i: mean for i in eligible if i not in best and (mean := column_cells[i].mean) is not None}
    second: set[int] = set()
    if best and other_means:
        second_text = number((max if column.direction == "up" else min)(other_means.values()), column.unit)
        second = {i for i, mean in other_means.items() if number(mean, column.unit) == second_text}
    return [replace(c, bold=i in best, second=i in second) for i, c in enumerate(column_cells)]


def fewest(column_cells: Sequence[Cell], unit: Unit, eligible: Collection[int]) -> set[int]:
    """Return the positions of the eligible cells that show the smallest count, or none if all of them show it."""
    means = {i: mean for i in eligible if (mean := column_cells[i].mean) is not None}
    smallest_text = number(min(means.values()), unit) if means else ""
    smallest = {i for i, mean in means.items() if number(mean, unit) == smallest_text}
    return smallest if len(smallest) < len(means) else set()
