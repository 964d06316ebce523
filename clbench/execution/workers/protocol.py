"""Messages between the managing process and its workers: one JSON object per line."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from clbench.core import errors
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.files import as_utf8, readable_name
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import WorkEstimate
from clbench.results.records import Failure, Provenance, Record

Text = Annotated[str, AfterValidator(as_utf8)]  # messages are UTF-8, and names of files may not be


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def line(self) -> str:
        """Return the message as a line of JSON."""
        return self.model_dump_json(by_alias=True) + "\n"


class Start(Message):
    """To a worker, as the first message: import torch and set up the device."""

    type: Literal["start"] = "start"
    settings: ExecutionSettings  # the user's settings
    device: str  # auto | cpu | cuda[:i] | mps
    command: str  # stored in the records
    threads: int | None  # of torch; None keeps torch's default (if trials run in the managing process)
    alone: int | None = None  # threads of a worker on an accelerator, if `shrink` leaves only one; None: `threads`
    artifacts: Path | None = None  # folder for exported files; None: no exports
    checkpoints: Path | None = None  # folder for checkpoints; None: no checkpoints
    plugins: tuple[Path, ...] = ()  # files of plugins that are not installed

    def threads_on(self, device: str) -> int | None:
        """Return the torch threads of a worker on a type of device."""
        return self.threads if device == "cpu" or self.alone is None else self.alone

    @model_validator(mode="after")
    def _check_paths(self) -> Start:
        for path in map(str, filter(None, (self.settings.data, *self.plugins))):
            if (readable_path := readable_name(path)) != path:
                raise SpecError(f"the path {readable_path} is not UTF-8, as messages to workers must be: rename it")
        return self


class Prepare(Message):
    """To a worker: load the stream of a trial and check that its method can be built."""

    type: Literal["prepare"] = "prepare"
    planned: PlannedTrial


class Run(Message):
    """To a worker: run one trial, or several that train as one stack."""

    type: Literal["run"] = "run"
    group: list[PlannedTrial]


class Ready(Message):
    """From a worker: it can take requests. `provenance` is that of its records, without their plugin and time."""

    type: Literal["ready"] = "ready"
    device: str
    provenance: Provenance


class Prepared(Message):
    """From a worker: the answer to `Prepare` if the trial can run."""

    type: Literal["prepared"] = "prepared"
    notes: list[Text]
    estimate: WorkEstimate = WorkEstimate()


class Refused(Message):
    """From a worker: the answer to `Start` or `Prepare` if the user's input is wrong (a `ClbenchError`)."""

    type: Literal["refused"] = "refused"
    kind: str
    message: Text

    def error(self) -> ClbenchError:
        """Return an error of the same class and message as in the worker."""
        kind = getattr(errors, self.kind, ClbenchError)
        if issubclass(kind, errors.OptionError):  # it is made from other arguments
            kind = SpecError
        return kind(self.message) if issubclass(kind, ClbenchError) else ClbenchError(self.message)


class Note(Message):
    """From a node of a cluster: a message for the user."""

    type: Literal["note"] = "note"
    text: str


class Died(Message):
    """From a node of a cluster: its worker has died."""

    type: Literal["died"] = "died"
    cause: str  # the text of `WorkerHandle.exit_reason`
    tail: list[str]  # the last lines of its standard error


class Running(Message):
    """From a worker: the progress of a trial."""

    type: Literal["running"] = "running"
    progress: Progress


class Finished(Message):
    """From a worker: the answer to `Run`, whether the trials succeeded or failed."""

    type: Literal["finished"] = "finished"
    records: list[Record]


Request = Annotated[Start | Prepare | Run, Field(discriminator="type")]
Event = Annotated[Ready | Prepared | Refused | Running | Finished, Field(discriminator="type")]
REQUESTS: TypeAdapter[Any] = TypeAdapter(Request)
EVENTS: TypeAdapter[Any] = TypeAdapter(Event)


def record_failure(planned: PlannedTrial, provenance: Provenance, started: datetime.datetime,
                   failure: Failure) -> Record:
    """Return the record of a trial that ended before it could create one itself."""
    return Record.model_validate({
        "key": planned.trial.key, "label": planned.label, "reference": planned.reference, "status": "failed",
        "searched": planned.searched, "until": planned.until, "seen": planned.seen, "trial": planned.trial,
        "failure": failure, "provenance": provenance.model_copy(update={"started": started})})
