"""ExecutionSettings trials are run, and who hears how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Record


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster to run on, and what a worker takes of it beside a CPU for each of its threads."""

    address: str | None = None  # HOST:PORT; None for RAY_ADDRESS, or Ray's own port on this machine
    gpus: float | None = None  # a fraction of one, or whole ones; None: one, if a node has any and the device may be it


@dataclass(frozen=True)
class ExecutionSettings:
    """ExecutionSettings trials are run: nothing here is part of a trial's key."""

    data_dir: Path
    device: str  # auto | cpu | cuda[:i] | mps
    command: str  # kept in the records
    workers: int  # processes; 0 runs in this one
    threads: int | None  # of torch, in each worker; None leaves torch's own choice (in this process only)
    stack: int | None  # trials of a strategy that train as one; None: one by one on a CPU, together on an accelerator
    shrink: bool  # whether fewer will do: one, where `auto` is an accelerator; as many as a cluster has room for
    plugin: Callable[[str], str]  # strategy -> the distribution that brought it, with its version
    alone: int | None = None  # threads of the only worker that `shrink` leaves on an accelerator; None: as many
    plugins: Sequence[Path] = ()  # those that are files
    compiled: bool = False  # whether losses are compiled
    artifacts: Path | None = None  # where strategies export what is to outlive the run; None: nowhere
    checkpoints: Path | None = None  # where long trials keep what they go on from; None: nowhere
    retries: int = 1  # how often a trial is tried again whose worker died
    claim: Callable[[PlannedTrial], bool] = lambda _: True  # asked before a trial: False if another process has it
    ray: RayCluster | None = None  # the cluster to run on; None: this machine


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

    def progress(self, key: str, task: int, tasks: int, accuracy: float | None) -> None:
        """Hear that a trial has learned `task` of `tasks` tasks, with that mean accuracy over them."""

    def finished(self, record: Record) -> None:
        """Hear that a trial is over, well or not."""
