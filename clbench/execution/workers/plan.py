"""What an executor is given: a plan for its workers, and somebody who hears how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clbench.execution.workers.protocol import Start
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.results.records import Record


@dataclass(frozen=True)
class WorkerPlan:
    """What a run decides for itself: how many workers there are, what each is told, and what is asked for each trial.

    What the user decides is in the settings, which every worker is told.
    """

    start: Start
    workers: int  # processes; 0 runs in this one
    shrink: bool  # whether fewer will do: one, where `auto` is an accelerator; as many as a cluster has room for
    plugin: Callable[[str], str]  # strategy -> the distribution that brought it, with its version
    claim: Callable[[PlannedTrial], bool] = lambda _: True  # asked before a trial: False if another process has it

    @property
    def settings(self) -> ExecutionSettings:
        """Return what the user decided."""
        return self.start.settings


class Listener:
    """Hears how an experiment goes on; this one does nothing."""

    def begun(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Hear what the experiment consists of, and which of its trials are to be run now."""

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Hear that workers are there, the device they use, and on how many nodes of a cluster; 0: this machine."""

    def note(self, text: str) -> None:
        """Hear of something the user should know."""

    def started(self, planned: PlannedTrial) -> None:
        """Hear that a trial has begun."""

    def progress(self, event: Progress) -> None:
        """Hear how far a trial has come."""

    def finished(self, record: Record) -> None:
        """Hear that a trial is over, well or not."""
