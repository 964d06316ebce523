"""Record: what a trial left behind. Raw facts only; every figure of a report is derived from it later.

Indices: T tasks; row 0 of R stands before any training, row i after training on task i - 1 (0-based tasks).
"""

from __future__ import annotations

import datetime
import math
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from clbench.core.scenario import Outputs
from clbench.experiment.search import Searched
from clbench.experiment.trial import Trial
from clbench.experiment.until import UntilDecided
from clbench.results.curve import Curve
from clbench.results.items import ItemResults
from clbench.results.metrics import acc

SCHEMA = 1
DIGITS = 16  # of the hash of a stream


class RecordPart(BaseModel):
    """Base of the parts of a record. What is in `LATER` came after the first records and is not written while empty."""

    LATER: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came later and is not there, so that an older record is written as it was."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if value or name not in self.LATER}


class StreamFacts(RecordPart):
    """The stream a trial ran on."""

    LATER = ("data", "class_names", "mean", "std", "arrivals")

    classes: list[list[int]]  # of each task, as outputs of the model
    train_samples: list[int]  # of each task
    test_samples: list[int]
    input_shape: list[int]  # of one prepared sample
    fingerprint: str  # hash of all its tensors
    data: str = ""  # hash of the benchmark before scenario and validation split; empty in older records
    notes: list[str] = []
    class_names: list[list[str]] = []  # of `classes`, in their order; empty where they have none
    mean: list[float] = []  # of each column of rows that are standardised, else empty: subtracted from the inputs
    std: list[float] = []  # likewise: by which they are then divided
    # [arriving task][class, as output; in scenario domain original task]: training samples, where they arrive otherwise
    # than the benchmark has them, else empty.
    arrivals: list[list[int]] = []

    @model_validator(mode="after")
    def _named(self) -> StreamFacts:
        """Check that every class of every task has a name, or none has."""
        if self.class_names and [*map(len, self.class_names)] != [*map(len, self.classes)]:
            raise ValueError("class_names has not one name for each class of each task")
        return self


class Costs(RecordPart):
    """What a method cost, per task: a list has one entry for each task that was trained."""

    trainable: list[int] = []  # parameters with requires_grad while the task was trained (the largest phase)
    steps: list[int] = []  # optimiser steps
    parameters: list[dict[str, int]] = []  # kept after the task, by role: numbers
    bytes: list[dict[str, int]] = []  # kept after the task, by role: parameters and buffers
    replay_samples: list[int] = []  # stored inputs kept after the task
    train_flops: list[int] = []  # of training on the task, what comes before and after its steps included
    inference_flops: list[int] = []  # of predicting one test sample after the task, mean over the tasks learned so far
    peak_host_bytes: int | None = None  # of the process while the trial ran
    peak_device_bytes: int | None = None  # allocated by torch on the accelerator


class Timings(RecordPart):
    """Wall time in seconds and the processor's time beside it, an entry for each task that was trained.

    The processor's time is that of all threads of the trial's process, so it is what is comparable where several
    processes share a machine; a stack's is shared out equally, like its wall time.
    """

    LATER: ClassVar[tuple[str, ...]] = ("curve", "curve_cpu")

    train: list[float] = []
    consolidate: list[float] = []  # before_task and after_task
    evaluate: list[float] = []  # one more: the row before training
    train_cpu: list[float] = []
    consolidate_cpu: list[float] = []
    evaluate_cpu: list[float] = []
    curve: list[float] = []  # evaluations while the task was learned (`Curve`), which no other time includes
    curve_cpu: list[float] = []


class ErrorCounts(RecordPart):
    """Where the errors of one row of R come from, in test samples: lists have an entry for each of its learned tasks.

    `clbench.training.anatomy` counts them, docs/metrics.md defines the parts that reports make of them. `corrected` is
    empty for a method that infers the task; `misguided`, `outdone` and `only_unguided` are empty for the others.
    """

    LATER: ClassVar[tuple[str, ...]] = ("corrected", "misguided", "outdone", "only_unguided")

    learned: int  # tasks: the row of R
    samples: list[int]
    right: list[int]  # as R has it
    given: list[int]  # right when the task is given
    tasks: list[list[int]]  # [i][j]: samples of task i whose winning output, or whose guessed task, is of task j
    corrected: list[int] = []  # right with the best constant for each task's outputs, found on the other half
    misguided: list[int] = []  # right when the task is given, else wrong, and the task was guessed wrong
    outdone: list[int] = []  # likewise, but the task was guessed right: an output of another task won
    only_unguided: list[int] = []  # wrong when the task is given, else right


class Probe(RecordPart):
    """What a linear (ridge) classifier reads from the features, in right test samples of each task.

    `clbench.training.probe` counts them, docs/metrics.md says how.
    """

    LATER: ClassVar[tuple[str, ...]] = ("missing",)

    own: bool = False  # features are of the true task's part (adapter, column), so there is none for all tasks together
    learned: list[int] = []  # within the task, just after it was learned
    end: list[int] = []  # within the task, after the last one
    together: list[int] = []  # among the classes of all tasks, after the last one
    missing: str = ""  # why there is none


class Earlier(RecordPart):
    """Accuracy in [0, 1] on the tasks that a continued trial had learned as another, its parent."""

    before: list[float]  # on each of them, before it went on
    after: list[list[float]]  # after each new task


class Failure(RecordPart):
    """Why a trial has no full R."""

    LATER: ClassVar[tuple[str, ...]] = ("place",)

    type: str
    message: str
    traceback: str = ""
    place: str = ""  # where in the plugin's own code: "file:line in function"


class Code(RecordPart):
    """The code of a trial's method, benchmark or model, as far as it is not clbench's own."""

    packages: list[str]  # or modules, or a file
    hash: str  # of what they say: `clbench.core.identity`
    release: str = ""  # the installed distribution that brought it, with its version; a file's path and hash


class Provenance(RecordPart):
    """Where and with what a record was made."""

    versions: dict[str, str]
    plugin: str  # the distribution that brought the strategy, with its version
    git: str | None = None  # commit of clbench's own checkout, `+dirty` behind it if its code changed
    device: str
    machine: str
    threads: int
    started: datetime.datetime
    command: str
    code: dict[str, Code] = {}  # of method, benchmark and model; empty where not known, as in older records
    weights: str = ""  # SHA-256 of the content of published weights, which a trial knows by their name only


class Record(RecordPart):
    """One finished trial."""

    LATER: ClassVar[tuple[str, ...]] = ("last_losses", "curve", "errors", "probe", "earlier", "until", "seen", "items")

    schema_version: int = Field(SCHEMA, alias="schema")
    key: str
    label: str  # how the method is called in tables; not part of the key
    reference: bool = False
    searched: Searched | None = None  # the search that the method's options come from; no part of the key either
    status: Literal["done", "diverged", "failed"]
    trial: Trial
    stream: StreamFacts | None = None  # None where the trial failed before its stream was there
    R: list[list[float]] = []  # R[i][j]: accuracy in [0, 1] on task j in row i; T + 1 rows when done
    outputs: Outputs | None = None  # which competed with a new sample's label in training; None but in scenario class
    task_inference: list[list[float]] | None = None  # share of test samples whose task was inferred right, like R
    last_losses: list[list[float]] = []  # of each task: mean training loss in the last tenth but one of its steps (of
    # its last phase), and in the last; [] for a task without steps
    curve: Curve | None = None  # where it was asked for: accuracy while tasks were learned
    errors: list[ErrorCounts] = []  # of the last row, or of each row after a task, where a run asks for it
    probe: Probe | None = None  # where a run asks for it
    items: ItemResults | None = None  # which test images the last row has right; None where that is not known
    earlier: Earlier | None = None  # of a trial that continues another, where the tests of that one's tasks are there
    costs: Costs = Costs()
    timings: Timings = Timings()
    failure: Failure | None = None
    notes: list[str] = []
    stale: list[str] = []  # what of its code and data had changed when a later run kept it all the same
    until: UntilDecided | None = None  # the rule by which its seed was added, where there was one
    seen: list[int] = []  # seeds that a report had shown before this one was asked for: see `clbench.results.looks`
    provenance: Provenance

    # An infinite option is written as Infinity and not as null: JSON has no such number, but Python's json reads it.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, ser_json_inf_nan="constants")

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        """Check that the matrix has the stream's shape and holds accuracies."""
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version}, this clbench reads {SCHEMA}")
        if self.key != self.trial.key:
            raise ValueError(f"key {self.key} is not that of its trial, {self.trial.key}")
        for matrix in (self.R, self.task_inference or []):
            if any(len(row) != len(self.stream.classes if self.stream else ()) for row in matrix):
                raise ValueError("a row of R has not one accuracy per task")
            if not all(math.isfinite(a) and 0 <= a <= 1 for row in matrix for a in row):
                raise ValueError("an accuracy is not within [0, 1]")
        if self.status == "done" and (self.stream is None or len(self.R) != len(self.stream.classes) + 1):
            raise ValueError("status is done but R is not whole")
        return self

    @property
    def name(self) -> str:
        """Return how users name the trial: `label/seed`."""
        return f"{self.label}/{self.trial.seed}"

    @property
    def learned(self) -> int:
        """Return how many tasks a finished trial has learned, with those of the trials that it continues."""
        return len(self.R) - 1 + (self.trial.continues.tasks if self.trial.continues else 0)

    def __repr__(self) -> str:
        """Return the trial and how it ended in a line; `model_dump` gives everything."""
        ended = f"ACC {100 * acc(self.R):.1f}" if self.status == "done" else self.status
        return f"Record({self.name}, {self.trial.benchmark.name}, scenario {self.trial.scenario}: {ended})"

    __str__ = __repr__

    def facts(self) -> dict[str, Any]:
        """Return what the same trial gives again: all but timings, memory, FLOPs, last losses, curve and provenance.

        FLOPs depend a little on the kernels that a machine has, losses in their last digits on whether seeds were
        stacked, and older records have neither; nor has every record a curve, which `clbench.results.diff` compares, or
        the anatomy of its errors. Names of classes are no result.
        """
        return self.model_dump(mode="json", by_alias=True, exclude={
            "timings": True, "provenance": True, "stale": True, "last_losses": True, "curve": True, "errors": True,
            "probe": True, "items": True, "until": True, "seen": True, "stream": {"class_names", "data"},
            "costs": {"peak_host_bytes", "peak_device_bytes", "train_flops", "inference_flops"}})

    def outcome(self) -> dict[str, Any]:
        """Return the facts without what the key stands for or the user chose: two records of a trial agree in them."""
        known = ("trial", "label", "reference", "searched", "outputs")
        return {name: fact for name, fact in self.facts().items() if name not in known}
