"""Estimate the remaining time of a run from its own timings, from earlier records, and from the amount of work.

Trials of the same kind differ in their seed only. The time of a trial is estimated from the first available source:

1. Finished trials of its kind, including their evaluation.
2. The tasks that running trials of its kind have learned, each weighted by its share of the work.
3. Records in the run folder.
4. Trials of the same method in another scenario, scaled by the ratio of their work.
5. Its amount of work, at the speed of the trials that were timed, or else of a few measured steps of the model.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.experiment.trial import PlannedTrial, Progress, Trial
from clbench.experiment.workload import Speed, WorkEstimate, Workload, workload
from clbench.results.provenance import machine
from clbench.results.records import Record

Kind = tuple[tuple[str, ...], str]  # setting and method: trials of a kind differ in their seed only
DEFAULT_FLOPS_OF_A_STEP = 5e7  # FLOPs in the time of a step's fixed overhead, until the speed has been measured


def kind_of(trial: Trial) -> Kind:
    """Return the kind of a trial, which is equal for trials that differ in their seed only."""
    return trial.environment, trial.method_config


def method_of(trial: Trial) -> tuple[str, str]:
    """Return the benchmark and model, and the method; trials with the same ones take similar time per unit of work."""
    return f"{trial.benchmark} {trial.model} {trial.validation:g}", trial.method_config


def is_comparable(record: Record, device: str, threads: int | None) -> bool:
    """Return whether a record was made on this machine, on the same kind of device and with as many threads."""
    origin = record.provenance
    return (origin.machine == machine() and (origin.device == "cpu") == (device == "cpu")
            and threads in (None, origin.threads))


def read_times(record: Record) -> tuple[Workload | None, float] | None:
    """Return the work and the seconds of a finished trial, or None for an unfinished one.

    The work is None if the record does not have the steps and FLOPs of all tasks.
    """
    costs, timings, stream = record.costs, record.timings, record.stream
    if record.status != "done" or stream is None or not timings.evaluate:
        return None
    seconds = sum(map(sum, (timings.train, timings.consolidate, timings.evaluate, timings.curve)))
    tasks = len(stream.train_samples)
    if not len(costs.steps) == len(costs.train_flops) == len(costs.inference_flops) == tasks:
        return None, seconds
    return workload(costs.steps, costs.train_flops, costs.inference_flops, stream.tested), seconds


@dataclass
class RunningTrial:
    """A running trial: its start time, and its finished share of work and the time at its first and last event."""

    began: float
    first: tuple[float, float] | None = None
    last: tuple[float, float] = 0.0, 0.0

    @property
    def resumed(self) -> float:
        """Return the share of the work that was finished before this run, if the trial resumed from a checkpoint."""
        return self.first[0] if self.first else 0.0

    @property
    def pace(self) -> float | None:
        """Return the seconds for the whole work at the pace of this run's tasks; None before one is learned."""
        if self.first is None or self.last[0] <= self.first[0]:
            return None
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])

    @property
    def whole(self) -> float | None:
        """Return the seconds for the whole trial: the whole work and the time before the first task starts."""
        if self.first is None or self.pace is None:
            return None
        return self.first[1] - self.began + self.pace

    def left(self, expected: float, now: float) -> float:
        """Return the remaining seconds of a trial that is expected to take `expected` seconds as a whole.

        If that time is over, the trial's own pace gives the rest. Before its first task is learned, it is assumed to
        take as long again as so far.
        """
        elapsed = now - self.began
        remaining = expected * (1 - self.resumed) - elapsed
        if remaining > 0:
            return remaining
        if self.pace is None:
            return elapsed
        share, since = self.last
        return max((1 - share) * self.pace - (now - since), 0.0)


class TimeLeft:
    """Estimates the seconds until the last trial has ended.

    It assumes that as many trials run at the same time as have done so far, and that the longest ones start first. The
    first trial of a kind is usually the slowest, because it reads data and fills caches. So the ratio of later trials
    to the first one is applied to the other kinds, too.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Store the trials that will run."""
        self.kinds: dict[str, Kind] = {planned.trial.key: kind_of(planned.trial) for planned in todo}
        self.methods = {kind_of(planned.trial): method_of(planned.trial) for planned in todo}
        self.work: dict[Kind, Workload] = {}  # that of sequential fine-tuning, or counted for each method
        self.speed: Speed | None = None
        self.earlier: dict[Kind, list[float]] = {}  # seconds of trials with a record
        self.waiting = dict.fromkeys(self.kinds)
        self.running: dict[str, RunningTrial] = {}
        self.took: dict[Kind, list[float]] = {}  # seconds of whole trials
        self.places = 1  # trials that run at once
        self.others = 0.0  # expected seconds of the trials that another process has finished meanwhile
        self.began: float | None = None

    def ready(self, workers: int) -> None:
        """Set the number of trials that run at the same time, from the number of workers."""
        self.places = max(self.places, min(workers, len(self.kinds)))

    def known(self, records: Iterable[Record]) -> None:
        """Store the times of earlier records, which must be comparable (`is_comparable`)."""
        models = {model for model, _ in self.methods.values()}
        for record in records:
            result = read_times(record)
            kind, method = kind_of(record.trial), method_of(record.trial)
            if result is not None and method[0] in models:
                self.earlier.setdefault(kind, []).append(result[1])
                self.methods[kind] = method

    def take_estimate(self, kind: Kind, estimate: WorkEstimate) -> None:
        """Store an estimate of the work of a kind of trials and of the speed."""
        if estimate.workload is not None:
            self.work[kind] = estimate.workload
        self.speed = estimate.speed or self.speed

    def started(self, key: str, now: float) -> None:
        """Store that a trial starts, perhaps as a retry."""
        self.began = now if self.began is None else self.began
        self.waiting.pop(key, None)
        self.running[key] = RunningTrial(now)
        self.places = max(self.places, len(self.running))

    def progress(self, event: Progress, now: float) -> None:
        """Update the finished share of a running trial."""
        if trial := self.running.get(event.key):
            work = self.work.get(self.kinds[event.key])
            share = event.task / event.tasks
            if work is not None and len(work.steps) == event.tasks:
                share = work.share(event.task, self.flops_of_a_step)
            trial.last = share, now
            trial.first = trial.first or trial.last

    def finished(self, key: str, now: float, whole: bool = True) -> None:
        """Store that a trial has ended, here or in another process that shares the run folder.

        Unless it was trained as a whole, its time says nothing about other trials.
        """
        self.waiting.pop(key, None)
        if trial := self.running.pop(key, None):
            if not whole:
                return
            seconds = trial.whole if trial.resumed else now - trial.began
            if seconds is not None:
                self.took.setdefault(self.kinds[key], []).append(seconds)
        elif key in self.kinds and (expected := self.expected()):
            self.others += expected[self.kinds[key]]

    @property
    def measured(self) -> bool:
        """Return whether any trial of this run has learned a task."""
        return bool(self.took) or any(trial.whole is not None for trial in list(self.running.values()))

    @property
    def flops_of_a_step(self) -> float:
        """Return the number of FLOPs that take as long as the fixed overhead of a step."""
        return DEFAULT_FLOPS_OF_A_STEP if self.speed is None else max(self.speed.step * self.speed.flops, 1.0)

    def seconds(self, now: float) -> float | None:
        """Return the estimated remaining seconds, or None if nothing is known about any trial."""
        expected = self.expected()
        if not expected:
            return None
        remaining = [trial.left(expected[self.kinds[key]], now) for key, trial in list(self.running.items())]
        waiting = sorted((expected[self.kinds[key]] for key in list(self.waiting)), reverse=True)
        places = self.places
        if self.others and self.began is not None:
            places += round(self.others / max(now - self.began, 1e-9))
        ends = sorted([*remaining, *[0.0] * (places - len(remaining))])  # seconds until each place is free
        for seconds in waiting:
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends, default=0.0)

    def expected(self) -> dict[Kind, float]:
        """Return the expected seconds of a trial by kind: for all kinds, or for none if nothing is known."""
        known_seconds = self._known_seconds()
        amounts = {kind: work.amount(self.flops_of_a_step) for kind, work in self.work.items()}
        compared = [kind for kind in known_seconds if amounts.get(kind)]
        rate = None if known_seconds or self.speed is None else self.speed.step  # seconds that a unit of work takes
        if compared:
            rate = sum(known_seconds[kind] for kind in compared) / sum(amounts[kind] for kind in compared)
        kind_of_method = {self.methods[kind]: kind for kind in known_seconds}
        expected: dict[Kind, float] = {}
        for kind, method in self.methods.items():
            similar = kind_of_method.get(method)
            if kind in known_seconds:
                expected[kind] = known_seconds[kind]
            elif similar is not None:
                comparable = amounts.get(kind) and amounts.get(similar)
                expected[kind] = known_seconds[similar] * (amounts[kind] / amounts[similar] if comparable else 1.0)
            elif rate is not None and amounts.get(kind):
                expected[kind] = rate * amounts[kind]
        if expected:  # methods whose work cannot be counted are assumed to take the mean time
            mean = fmean(expected.values())
            expected |= {kind: mean for kind in self.methods if kind not in expected}
        return expected

    def _known_seconds(self) -> dict[Kind, float]:
        """Return the seconds of a trial by kind, for the kinds that this run or a record has timed."""
        took = list(self.took.items())
        repeated = {kind: fmean(seconds[1:]) for kind, seconds in took if len(seconds) > 1}
        firsts = sum(seconds[0] for kind, seconds in took if kind in repeated)
        change = sum(repeated.values()) / firsts if firsts else 1.0
        measured = {kind: seconds[0] * change for kind, seconds in took} | repeated
        paces: dict[Kind, list[float]] = {}
        for key, trial in list(self.running.items()):
            if trial.whole is not None and self.kinds[key] not in measured:
                paces.setdefault(self.kinds[key], []).append(trial.whole)
        measured |= {kind: fmean(seconds) for kind, seconds in paces.items()}
        earlier = {kind: fmean(seconds) for kind, seconds in self.earlier.items()}
        common_kinds = [kind for kind in measured if kind in earlier]  # they show the present speed of the machine
        drift = (sum(measured[kind] for kind in common_kinds) / sum(earlier[kind] for kind in common_kinds)
                 if common_kinds else 1.0)
        return {kind: seconds * drift for kind, seconds in earlier.items()} | measured
