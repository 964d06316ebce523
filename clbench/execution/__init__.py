"""Execution: where trials run. Workers are processes of their own; the process that leads them never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clbench.plan import Planned
from clbench.records import Record


@dataclass(frozen=True)
class How:
    """How trials are run: nothing here is part of a trial's key."""

    data_dir: Path
    device: str  # auto | cpu | cuda[:i] | mps
    command: str  # kept in the records
    workers: int  # processes; 0 runs in this one
    threads: int | None  # of torch, in each worker; None leaves torch's own choice (in this process only)
    shrink: bool = True  # whether one worker is enough where `auto` turns out to be an accelerator


class Listener:
    """Hears how an experiment goes on; this one does nothing."""

    def ready(self, device: str, workers: int, threads: int | None) -> None:
        """Hear that workers are there, and the device they use."""

    def note(self, text: str) -> None:
        """Hear of something the user should know."""

    def started(self, planned: Planned) -> None:
        """Hear that a trial has begun."""

    def progress(self, key: str, task: int, tasks: int, accuracy: float | None) -> None:
        """Hear that a trial has learned `task` of `tasks` tasks, with that mean accuracy over them."""

    def finished(self, record: Record) -> None:
        """Hear that a trial is over, well or not."""


def representatives(todo: list[Planned]) -> list[Planned]:
    """Return the first trial of every setting and method: what is prepared before any trial starts."""
    first: dict[tuple[object, ...], Planned] = {}
    for planned in todo:
        first.setdefault((planned.trial.setting, str(planned.trial.method)), planned)
    return list(first.values())
