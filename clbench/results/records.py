"""Record: the raw facts of a finished trial. Every figure of a report is derived from records later.

Indices: T tasks; row 0 of R is measured before any training, row i after training on task i - 1 (0-based tasks).

R holds values of the objective's primary metric, and further metrics have matrices of the same shape. `select_metric`
puts another metric in the place of R, so that everything computed from R, such as forgetting, refers to that metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from clbench.core.errors import SpecError, guess
from clbench.core.objective import ACCURACY, CAUSAL_LM, METRICS, Metric, find_metric
from clbench.core.scenario import Outputs
from clbench.experiment.search import Searched
from clbench.experiment.trial import Trial
from clbench.experiment.until import UntilDecided
from clbench.results.curve import Curve
from clbench.results.item_scores import ItemScores
from clbench.results.items import ItemResults, task_numbers, weight_by_task
from clbench.results.metrics import acc
from clbench.results.record_parts import (
    Answer,
    Code,
    Costs,
    Earlier,
    ErrorCounts,
    Failure,
    Probe,
    Provenance,
    RecordPart,
    StreamFacts,
    Timings,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "DIGITS",
    "SCHEMA",
    "Answer",
    "Code",
    "Costs",
    "Earlier",
    "ErrorCounts",
    "Failure",
    "Probe",
    "Provenance",
    "Record",
    "RecordPart",
    "StreamFacts",
    "Timings",
    "general_item_scores",
    "item_ids",
    "item_scores",
    "matrices",
    "metric_of",
    "metrics_of",
    "predicts_tokens",
    "select_metric",
]

SCHEMA = 1
DIGITS = 16  # hexadecimal digits of the hash of a stream


class Record(RecordPart):
    """One finished trial."""

    LATER: ClassVar[tuple[str, ...]] = ("last_losses", "curve", "errors", "probe", "earlier", "until", "seen", "items",
                                        "item_scores", "metric", "scores", "general", "general_files", "answers")

    schema_version: int = Field(SCHEMA, alias="schema", description="Version of this schema.")
    key: str = Field(description="Hash of `trial`, and the record's file name.")
    label: str = Field(description="Name of the method in tables; not part of the key.")
    reference: bool = Field(
        False, description="Whether the method is a reference, such as `joint`, which tests and ranks leave out.")
    searched: Searched | None = Field(None, description="Search that chose the method's options; not part of the key.")
    status: Literal["done", "diverged", "failed"] = Field(description="How the trial ended.")
    trial: Trial = Field(description="Everything that defines the result.")
    stream: StreamFacts | None = Field(
        None, description="Stream that the trial ran on; null if the trial failed before.")
    R: list[list[float]] = Field(
        [], description="R[i][j]: accuracy in [0, 1] on task j in row i, or the value of `metric`. Row 0 is measured "
        "before training, row i after the first i tasks.")
    metric: str = Field("", description="Metric of R; empty for accuracy.")
    scores: dict[str, list[list[float]]] = Field(
        {}, description="Values of further metrics by name, in the shape of R.")
    general: dict[str, dict[str, list[float]]] = Field(
        {}, description="Scores of general texts by file and metric, before training and after each task.")
    general_files: dict[str, str] = Field({}, description="Hashes of the files of general texts, by file.")
    answers: list[Answer] = Field([], description="Answers of a language model to some test prompts of each task.")
    outputs: Outputs | None = Field(
        None, description="Which outputs competed with the label of a new sample in training: of all classes so far "
        "(seen), of the current task (own) or of the whole stream (all). Null except in scenario class.")
    task_inference: list[list[float]] | None = Field(None, description="Task-ID accuracy: share of test samples whose "
                                                     "task was inferred correctly, in the shape of R.")
    last_losses: list[list[float]] = Field(
        [], description="Mean training loss of each task in the second-to-last and in the last tenth of the steps of "
        "its last phase; empty if there are fewer than two steps or a loss is not finite.")
    curve: Curve | None = Field(None, description="Metrics during training, if requested.")
    errors: list[ErrorCounts] = Field(
        [], description="Error decomposition of the last row of R, or of each row after a task.")
    probe: Probe | None = Field(None, description="Results of a linear probe on the features, if requested.")
    items: ItemResults | None = Field(
        None, description="Which test samples are predicted correctly after the last task; null if unknown.")
    item_scores: ItemScores | None = Field(
        None, description="Scores of single test items after the last task, if there are no classes; else null.")
    earlier: Earlier | None = Field(None, description="Accuracy on the tasks of the trial that this one continues.")
    costs: Costs = Field(Costs(), description="Costs of the method, per task.")
    timings: Timings = Field(Timings(), description="Times, per task.")
    failure: Failure | None = Field(None, description="Reason for a missing or incomplete R.")
    notes: list[str] = Field([], description="Remarks that reports repeat.")
    stale: list[str] = Field([], description="Code and data that had changed when a later run kept this record.")
    until: UntilDecided | None = Field(None, description="Rule by which the seed was added (`--until decided`).")
    seen: list[int] = Field([], description="Seeds that a report had shown before this seed was requested.")
    provenance: Provenance = Field(
        description="Code, versions, machine, time and command with which the record was made.")

    # An infinite option is written as Infinity and not as null: JSON has no such number, but Python's json reads it.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, ser_json_inf_nan="constants")

    @model_validator(mode="after")
    def _check(self) -> Record:
        """Check that the matrix has the stream's shape and holds accuracies."""
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version}, this clbench reads {SCHEMA}")
        if self.key != self.trial.key:
            raise ValueError(f"key {self.key} is not that of its trial, {self.trial.key}")
        by_metric = [(self.metric or ACCURACY.name, self.R), *self.scores.items()]
        for name, metric, matrix in (*((name, METRICS.get(name), matrix) for name, matrix in by_metric),
                                     ("task_inference", ACCURACY, self.task_inference or [])):
            if metric is None:
                raise ValueError(f"{name!r} is no metric; known are {', '.join(METRICS)}")
            if any(len(row) != len(self.stream.classes if self.stream else ()) for row in matrix):
                raise ValueError(f"a row of {name} does not have one value per task")
            if not all(math.isfinite(value) and metric.contains(value) for value in chain.from_iterable(matrix)):
                raise ValueError(f"{name} is not within its bounds")
        if self.status == "done" and (self.stream is None or len(self.R) != len(self.stream.classes) + 1):
            raise ValueError("status is done but R is not whole")
        return self

    @property
    def name(self) -> str:
        """Return how users name the trial: `label/seed`."""
        return f"{self.label}/{self.trial.seed}"

    @property
    def name_with_scenario(self) -> str:
        """Return how users name the trial if the run has several scenarios: `label/scenario/seed`."""
        return f"{self.label}/{self.trial.scenario}/{self.trial.seed}"

    @property
    def learned(self) -> int:
        """Return how many tasks a finished trial has learned, including the tasks of the trials that it continues."""
        return len(self.R) - 1 + (self.trial.continues.tasks if self.trial.continues else 0)

    @property
    def common_test(self) -> bool:
        """Return whether all tasks share one test set, so that R has no accuracy of a single task."""
        return self.stream is not None and self.stream.common_test

    @property
    def result(self) -> str:
        """Return the mean over tasks in the last row of R in words: `ACC 91.2`."""
        metric = metric_of(self)
        return f"{metric.short} {metric.text(acc(self.R))}"

    def __repr__(self) -> str:
        """Return the trial and its result or status as one line; `model_dump` gives everything."""
        ended = self.result if self.status == "done" else self.status
        return f"Record({self.name}, {self.trial.benchmark.name}, scenario {self.trial.scenario}: {ended})"

    __str__ = __repr__

    def facts(self) -> dict[str, Any]:
        """Return the reproducible fields: no timings, memory, FLOPs, last losses, curve, provenance and so on.

        FLOPs depend slightly on the kernels of a machine, and the last digits of losses depend on whether seeds were
        vectorized. Older records have neither. Not every record has a curve, which `clbench.results.diff` compares, or
        an error decomposition. Names of classes are not results, nor are paths and lines of code in tracebacks.
        """
        return self.model_dump(mode="json", by_alias=True, exclude={
            "timings": True, "provenance": True, "stale": True, "last_losses": True, "curve": True, "errors": True,
            "probe": True, "items": True, "item_scores": True, "general": True, "general_files": True,
            "answers": True, "until": True, "seen": True,
            "stream": {"class_names", "data"}, "failure": {"traceback", "place"},
            "costs": {"peak_host_bytes", "peak_device_bytes", "train_flops", "inference_flops"}})

    def outcome(self) -> dict[str, Any]:
        """Return the facts that must be equal in records of a trial.

        Its identity, the user's choices, and remarks on how it ran (resumed, alone) are not included.
        """
        excluded = ("trial", "label", "reference", "searched", "outputs", "notes")
        return {name: fact for name, fact in self.facts().items() if name not in excluded}


def metric_of(record: Record) -> Metric:
    """Return the metric of a record's R."""
    return find_metric(record.metric)


def predicts_tokens(record: Record) -> bool:
    """Return whether a record is that of a language model."""
    return metric_of(record) in CAUSAL_LM.metrics


def matrices(record: Record) -> dict[str, list[list[float]]]:
    """Return R and the matrices of further metrics, by the metrics' names."""
    return {metric_of(record).name: record.R, **record.scores}


def select_metric(records: Sequence[Record], name: str | None) -> list[Record]:
    """Return copies of records whose R is the matrix of a metric; records without an R stay as they are.

    Args:
        records: the records.
        name: name of the metric; None keeps the R that each record has.

    Raises:
        SpecError: a record lacks the metric.
    """
    return list(records) if name is None else [_select_metric(record, name) for record in records]


def _select_metric(record: Record, name: str) -> Record:
    by_name = matrices(record)
    if not record.R or name == metric_of(record).name:
        return record
    if name not in by_name:
        raise SpecError(f"no metric {name!r}{guess(name, by_name)} (results of {record.trial.benchmark.name} have "
                        f"{' and '.join(by_name)})")
    curve = record.curve and record.curve.by_metric(name)
    return record.model_copy(update={"R": by_name.pop(name), "metric": name, "scores": by_name, "curve": curve})


def metrics_of(records: Iterable[Record]) -> list[Metric]:
    """Return the metrics of the R of records, each once; accuracy if no record has an R."""
    return list(dict.fromkeys(metric_of(record) for record in records if record.R)) or [ACCURACY]


def item_ids(record: Record) -> str | None:
    """Return the hash of the test items whose single results a record has, or None if it has none."""
    if record.items is not None:
        return record.items.ids
    return record.item_scores.ids if record.item_scores is not None and record.item_scores.content else None


def item_scores(record: Record, metric: Metric | None = None) -> npt.NDArray[np.float32] | None:
    """Return a score of each test item in the last row, or None if the scores are not known.

    The mean of the scores is the mean over tasks (`weight_by_task`). The score of an image that belongs to several
    tasks is the mean over these.

    Args:
        record: the record.
        metric: the metric of the scores, by default that of R.
    """
    metric = metric or metric_of(record)
    matrix = matrices(record).get(metric.name)
    if record.stream is None or not matrix:
        return None
    sizes, mean = record.stream.test_samples, acc(matrix)
    if record.items is not None:
        return record.items.scores(sizes, mean)
    scores = record.item_scores.scores(metric.name) if record.item_scores is not None else None
    return None if scores is None else weight_by_task(scores, sizes, mean, task_numbers(sizes))


def general_item_scores(record: Record, name: str, metric: str) -> npt.NDArray[np.float32] | None:
    """Return the scores [T + 1, N] of single general texts in a file by a metric, or None if they are not known.

    Scores that do not belong to the values in the record, as of another file of this name, are not known.
    """
    import numpy as np

    values = record.general.get(name, {}).get(metric, [])
    scores = None if record.item_scores is None else record.item_scores.general(name, metric)
    if scores is None or len(scores) != len(values):
        return None
    return scores if np.allclose(scores.mean(axis=1, dtype=np.float64), values, rtol=1e-5, atol=1e-6) else None
