"""Execution: where trials run. Workers are processes of their own; the process that leads them never imports torch.

`local` runs them on this machine, `cluster` on those of a Ray cluster; both by the same pool of the same workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.errors import ClbenchError, DataError
from clbench.plan import Planned
from clbench.records import Record


@dataclass(frozen=True)
class OnRay:
    """A Ray cluster to run on, and what a worker takes of it beside a CPU for each of its threads."""

    address: str | None = None  # HOST:PORT; None for RAY_ADDRESS, or Ray's own port on this machine
    gpus: float | None = None  # a fraction of one, or whole ones; None: one, if a node has any and the device may be it


@dataclass(frozen=True)
class How:
    """How trials are run: nothing here is part of a trial's key."""

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
    claim: Callable[[Planned], bool] = lambda _: True  # asked before a trial is run: False where another process has it
    ray: OnRay | None = None  # the cluster to run on; None: this machine


ACCELERATOR_STACK = 32  # trials that are tried together; a stack that does not fit in memory is halved


Kind = tuple[tuple[str, ...], str]


class Waiting:
    """The trials that wait, setting by setting (streams are large); in each the longest go first, once known.

    So methods are all met early, and no long trial is left to run alone at the end.
    """

    def __init__(self, todo: Sequence[Planned]) -> None:
        """Let them wait in the order of the plan."""
        # Positions in the plan and trials, by setting and kind: what these are takes long to write out.
        self.left: dict[tuple[str, ...], dict[Kind, list[tuple[int, Planned]]]] = {}
        for position, planned in enumerate(todo):
            kinds = self.left.setdefault(planned.trial.setting, {})
            kinds.setdefault(self._kind(planned), []).append((position, planned))
        self.seconds: dict[Kind, float] = {}

    def take(self, how: How, device: str) -> list[Planned]:
        """Remove the next trial and, up to the size of a stack, others of its setting that may train with it.

        These are the other seeds of its method, then those of methods that differ in `Scalar` options only.
        """
        setting, here = next(iter(self.left.items()))
        kind = max(here, key=lambda k: (self.seconds.get(k, math.inf), -here[k][0][0]))  # the earliest of several
        size = how.stack or (1 if device == "cpu" else ACCELERATOR_STACK)
        family = here[kind][0][1].family
        kin = [k for k in here if k != kind and family and here[k][0][1].family == family]
        group: list[Planned] = []
        for k in (kind, *kin):
            count = size - len(group)
            group += [planned for _, planned in here[k][:count]]
            del here[k][:count]
            if not here[k]:
                del here[k]
        if not here:
            del self.left[setting]
        return group

    def took(self, group: Sequence[Planned], seconds: float) -> None:
        """Hear how long trials took."""
        for planned in group:
            self.seconds[self._kind(planned)] = seconds / len(group)

    def _kind(self, planned: Planned) -> Kind:
        """Return what trials have in common that differ in their seed only."""
        return planned.trial.setting, str(planned.trial.method)


class Listener:
    """Hears how an experiment goes on; this one does nothing."""

    def begun(self, planned: Sequence[Planned], todo: Sequence[Planned]) -> None:
        """Hear what the experiment consists of, and which of its trials are to be run now."""

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Hear that workers are there, the device they use, and on how many nodes of a cluster; 0: this machine."""

    def note(self, text: str) -> None:
        """Hear of something the user should know."""

    def started(self, planned: Planned) -> None:
        """Hear that a trial has begun."""

    def progress(self, key: str, task: int, tasks: int, accuracy: float | None) -> None:
        """Hear that a trial has learned `task` of `tasks` tasks, with that mean accuracy over them."""

    def finished(self, record: Record) -> None:
        """Hear that a trial is over, well or not."""


class Checks:
    """What is to be found out before any trial starts: that each method can be built on each setting's stream."""

    def __init__(self, todo: Sequence[Planned], listener: Listener) -> None:
        """Take the first trial of every setting and method."""
        first: dict[tuple[object, ...], Planned] = {}
        for planned in todo:
            first.setdefault((planned.trial.setting, str(planned.trial.method)), planned)
        self.left = list(first.values())
        self.listener = listener
        self.problems: dict[str, ClbenchError] = {}
        self.notes: set[str] = set()

    def next(self) -> Planned | None:
        """Return the trial to prepare now; None when all are.

        Raises:
            ClbenchError: all have been looked at and some cannot run; a line for each mistake.
        """
        if self.left:
            return self.left.pop(0)
        if self.problems:
            raise type(next(iter(self.problems.values())))("\n".join(self.problems))
        return None

    def passed(self, notes: Sequence[str]) -> None:
        """Hear that a trial can run; what there is to note is passed on once."""
        for note in notes:
            if note not in self.notes:
                self.notes.add(note)
                self.listener.note(note)

    def refused(self, planned: Planned, error: ClbenchError) -> None:
        """Hear that a trial cannot run. Without its stream, neither can the others of its setting."""
        self.problems[str(error)] = error
        if isinstance(error, DataError):
            self.left = [p for p in self.left if p.trial.setting != planned.trial.setting]
