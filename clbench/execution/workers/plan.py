"""The input of an executor: a plan for its workers, and a listener for the events of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clbench.core.registry import Registry
from clbench.execution.workers.protocol import Start
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import Foreseen
from clbench.results.records import Record


@dataclass(frozen=True)
class WorkerPlan:
    """The decisions of a run: the number of workers, their settings, and the callbacks for each trial.

    The user's decisions are in the settings, which every worker gets.
    """

    start: Start
    workers: int  # processes; 0 runs in this one
    shrink: bool  # whether fewer will do: one, where `auto` is an accelerator; as many as a cluster has room for
    plugin: Callable[[str], str]  # strategy -> the distribution that brought it, with its version
    claim: Callable[[PlannedTrial], bool] = lambda _: True  # called before a trial; False if another process has it
    registry: Registry | None = None  # of this process, for trials that run in it: it may have more than plugins bring

    @property
    def settings(self) -> ExecutionSettings:
        """Return the user's execution settings."""
        return self.start.settings


class Listener:
    """Receives the events of a run; the base class ignores them."""

    def run_started(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Receive all trials of the experiment, and those that will be run now."""

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Receive the device and number of workers that are ready, and of cluster nodes (0: this machine)."""

    def note(self, text: str) -> None:
        """Receive a message for the user."""

    def known(self, records: Sequence[Record]) -> None:
        """Receive the records that the folder has already; their times may help to estimate those of other trials."""

    def foreseen(self, planned: PlannedTrial, foreseen: Foreseen) -> None:
        """Receive what is known beforehand of a trial, and of others that differ in their seed only."""

    def started(self, planned: PlannedTrial) -> None:
        """Receive a trial that has started."""

    def progress(self, event: Progress) -> None:
        """Receive the progress of a running trial."""

    def finished(self, record: Record) -> None:
        """Receive the record of a trial that has ended, with any status."""


class Relay(Listener):
    """Forwards the events of trials and workers to another listener."""

    def __init__(self, listener: Listener) -> None:
        """Wrap the listener that events are forwarded to."""
        self.listener = listener

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Forward the event."""
        self.listener.ready(device, workers, threads, nodes)

    def note(self, text: str) -> None:
        """Forward the event."""
        self.listener.note(text)

    def known(self, records: Sequence[Record]) -> None:
        """Forward the event."""
        self.listener.known(records)

    def foreseen(self, planned: PlannedTrial, foreseen: Foreseen) -> None:
        """Forward the event."""
        self.listener.foreseen(planned, foreseen)

    def started(self, planned: PlannedTrial) -> None:
        """Forward the event."""
        self.listener.started(planned)

    def progress(self, event: Progress) -> None:
        """Forward the event."""
        self.listener.progress(event)

    def finished(self, record: Record) -> None:
        """Forward the event."""
        self.listener.finished(record)
