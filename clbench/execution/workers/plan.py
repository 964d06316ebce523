"""The inputs of an executor: the worker plan, the queue of trials, the preflight checks, and the listener."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clbench.core.errors import ClbenchError, DataError
from clbench.core.registry import Registry
from clbench.core.scenario import shared_outputs
from clbench.data.own_options import OwnOptions
from clbench.execution.time_left import Kind, kind_of
from clbench.execution.workers.protocol import Start
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import WorkEstimate
from clbench.results.records import Record

if TYPE_CHECKING:
    from clbench.data.stream import Stream

ACCELERATOR_STACK = 32  # initial stack size; a stack that does not fit in memory is halved


class TrialQueue:
    """Queue of trials: one setting after another, because streams are large, and the longest first within a setting.

    Kinds of trials without a measured time count as longest. So each method starts early, and no long trial is left to
    run alone at the end.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Queue the trials in the order of the plan."""
        # Positions in the plan and trials, by setting and kind. These keys are slow to compute, so it is done once.
        self.left: dict[tuple[str, ...], dict[Kind, list[tuple[int, PlannedTrial]]]] = {}
        for position, planned in enumerate(todo):
            kinds = self.left.setdefault(planned.trial.environment, {})
            kinds.setdefault(kind_of(planned.trial), []).append((position, planned))
        self.seconds: dict[Kind, float] = {}

    def take(self, stack: int | None, device: str) -> list[PlannedTrial]:
        """Remove and return the next trial, together with trials of its setting that can train in the same stack.

        These are further seeds of its method, then trials of methods that differ in `Scalar` options only. With
        `stack=None`, trials run one by one on a CPU and in stacks of `ACCELERATOR_STACK` on an accelerator.
        """
        setting, queues = next(iter(self.left.items()))
        kind = max(queues, key=lambda k: (self.seconds.get(k, math.inf), -queues[k][0][0]))  # ties: first in the plan
        size = stack or (1 if device == "cpu" else ACCELERATOR_STACK)
        family = queues[kind][0][1].family
        kin = [k for k in queues if k != kind and family and queues[k][0][1].family == family]
        group: list[PlannedTrial] = []
        for k in (kind, *kin):
            count = size - len(group)
            group += [planned for _, planned in queues[k][:count]]
            del queues[k][:count]
            if not queues[k]:
                del queues[k]
        if not queues:
            del self.left[setting]
        return group

    def took(self, group: Sequence[PlannedTrial], seconds: float) -> None:
        """Store the seconds that a group of trials took."""
        for planned in group:
            self.seconds[kind_of(planned.trial)] = seconds / len(group)


class PreflightChecks:
    """Checks before any trial starts that each method can be built on each setting's stream."""

    def __init__(self, todo: Sequence[PlannedTrial], listener: Listener) -> None:
        """Select the first trial of every setting and method."""
        first_trials: dict[Kind, PlannedTrial] = {}
        for planned in todo:
            first_trials.setdefault(kind_of(planned.trial), planned)
        self.left = list(first_trials.values())
        self.listener = listener
        self.problems: dict[str, ClbenchError] = {}
        self.notes: set[str] = set()

    def next(self) -> PlannedTrial | None:
        """Return the next trial to prepare; None when all have been checked.

        Raises:
            ClbenchError: all have been checked, and some cannot run; the message has a line for each problem.
        """
        if self.left:
            return self.left.pop(0)
        if self.problems:
            raise type(next(iter(self.problems.values())))("\n".join(self.problems))
        return None

    def passed(self, notes: Sequence[str]) -> None:
        """Record that a trial can run, and report each distinct note once."""
        for note in notes:
            if note not in self.notes:
                self.notes.add(note)
                self.listener.note(note)

    def refused(self, planned: PlannedTrial, error: ClbenchError) -> None:
        """Record that a trial cannot run; after a `DataError` no other trial of its setting is checked."""
        self.problems[str(error)] = error
        if isinstance(error, DataError):
            self.skip_setting(planned)

    def skip_setting(self, planned: PlannedTrial) -> None:
        """Skip the other trials of a trial's setting."""
        self.left = [p for p in self.left if p.trial.environment != planned.trial.environment]


def refuse_default_domain(planned: PlannedTrial, stream: Stream, registry: Registry) -> None:
    """Check that the default scenario of the user's data does not give different classes one output.

    Raises:
        DataError: it does, and the experiment names no scenario.
    """
    benchmark = planned.trial.benchmark.name
    if not planned.default_scenario or not issubclass(registry.benchmark(benchmark).options, OwnOptions):
        return
    if shared := shared_outputs((task.classes, task.class_names) for task in stream.tasks):
        first = " and ".join(map(repr, next(iter(shared.values()))[:2]))
        raise DataError(f"benchmark {benchmark!r}: tasks have different classes, and the default scenario "
                        f"{planned.trial.scenario!r} would give {first} one output; choose --scenario class (or task, "
                        "if the task is known at test time)")


@dataclass(frozen=True)
class WorkerPlan:
    """The decisions of a run: the number of workers, their settings, and the callbacks for each trial.

    The user's own choices are in `settings`, which every worker gets.
    """

    start: Start
    workers: int  # number of processes; 0 means this process
    shrink: bool  # whether to reduce the number: to one on an accelerator, or to what fits on a cluster
    registry: Registry  # of this process; it may have objects without a plugin
    claim: Callable[[PlannedTrial], bool] = lambda _: True  # called before a trial; False: do not run it

    @property
    def settings(self) -> ExecutionSettings:
        """Return the user's execution settings."""
        return self.start.settings


class Listener:
    """Receives the events of a run; the base class ignores them."""

    def run_started(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Receive all trials of the experiment, and the trials that will run now."""

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0, again: bool = False) -> None:
        """Receive the device, the numbers of workers and threads, and the number of cluster nodes (0: this machine).

        `again` is whether the listener of an earlier round has received them.
        """

    def note(self, text: str) -> None:
        """Receive a message for the user."""

    def known(self, records: Sequence[Record]) -> None:
        """Receive the records that are in the folder at the start; their times help to estimate the remaining time."""

    def take_estimate(self, planned: PlannedTrial, estimate: WorkEstimate) -> None:
        """Receive the estimated work of a trial, and of all trials that differ from it in their seed only."""

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

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0, again: bool = False) -> None:
        """Forward the event."""
        self.listener.ready(device, workers, threads, nodes, again)

    def note(self, text: str) -> None:
        """Forward the event."""
        self.listener.note(text)

    def known(self, records: Sequence[Record]) -> None:
        """Forward the event."""
        self.listener.known(records)

    def take_estimate(self, planned: PlannedTrial, estimate: WorkEstimate) -> None:
        """Forward the event."""
        self.listener.take_estimate(planned, estimate)

    def started(self, planned: PlannedTrial) -> None:
        """Forward the event."""
        self.listener.started(planned)

    def progress(self, event: Progress) -> None:
        """Forward the event."""
        self.listener.progress(event)

    def finished(self, record: Record) -> None:
        """Forward the event."""
        self.listener.finished(record)
