"""The matrices of a record by metric: R, which is of the objective's primary metric, and those of further metrics.

Everything that is computed from R, such as forgetting, follows a chosen metric if records enter it by `by_metric`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from clbench.core.errors import SpecError, guess
from clbench.core.objective import ACCURACY, METRICS, Metric
from clbench.results.records import Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def metric_of(record: Record) -> Metric:
    """Return the metric of a record's R."""
    return METRICS[record.metric or ACCURACY.name]


def matrices(record: Record) -> dict[str, list[list[float]]]:
    """Return R and the matrices of further metrics, by the metrics' names."""
    return {metric_of(record).name: record.R, **record.scores}


def by_metric(records: Sequence[Record], name: str | None) -> list[Record]:
    """Return copies of records whose R is the matrix of a metric; records without an R stay as they are.

    Args:
        records: the records.
        name: name of the metric; None keeps the R that each record has.

    Raises:
        SpecError: a record lacks the metric.
    """
    return list(records) if name is None else [_by_metric(record, name) for record in records]


def _by_metric(record: Record, name: str) -> Record:
    known = matrices(record)
    if not record.R or name == metric_of(record).name:
        return record
    if name not in known:
        raise SpecError(f"no metric {name!r}{guess(name, known)} (results of {record.trial.benchmark.name} have "
                        f"{' and '.join(known)})")
    return record.model_copy(update={"R": known.pop(name), "metric": name, "scores": known})


def metrics_of(records: Iterable[Record]) -> list[Metric]:
    """Return the metrics of the R of records, each once; accuracy if no record has an R."""
    return list(dict.fromkeys(metric_of(record) for record in records if record.R)) or [ACCURACY]


def item_ids(record: Record) -> str | None:
    """Return the hash of the test items of which a record has single results, or None if it has none."""
    if record.items is not None:
        return record.items.ids
    return record.item_scores.ids if record.item_scores is not None and record.item_scores.content else None


def item_scores(record: Record) -> npt.NDArray[np.float32] | None:
    """Return the score of each test item in the last row by the metric of R, or None if they are not known.

    The score of an image that belongs to several tasks is the mean over these.
    """
    if record.items is not None:
        shares: npt.NDArray[np.float32] = record.items.matrix().mean(axis=0, dtype="float32")
        return shares
    return record.item_scores.scores(metric_of(record).name) if record.item_scores is not None else None
