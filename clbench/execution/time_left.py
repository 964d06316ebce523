"""How long a run still takes: from the seconds that it has measured so far, from earlier records, and from the work.

The kind of a trial is all but its seed. A trial takes as long as those of its kind that have ended, evaluation and all.
Before one has ended, the tasks that running ones have learned tell it, each with its share of the work. Before that,
records of the folder tell it; then the same method in another scenario, times the ratio of their work; then the work
itself, at the speed of the trials that were measured, or of a few steps of the model if there are none.
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

Kind = tuple[tuple[str, ...], str]  # setting and method: trials that differ in their seed only
USUAL = 5e7  # FLOPs that take as long as a step does without any, before anything says how many


def kind_of(trial: Trial) -> Kind:
    """Return what trials share that differ in their seed only."""
    return trial.environment, trial.method_config


def method_of(trial: Trial) -> tuple[str, str]:
    """Return what two trials must share for the one's speed to tell the other's, and the method."""
    return f"{trial.benchmark} {trial.model} {trial.validation:g}", trial.method_config


def is_comparable(record: Record, device: str, threads: int | None) -> bool:
    """Tell whether a record was made on this machine and as a run with such workers makes its own."""
    origin = record.provenance
    return (origin.machine == machine() and (origin.device == "cpu") == (device == "cpu")
            and threads in (None, origin.threads))


def recorded(record: Record) -> tuple[Workload | None, float] | None:
    """Return the work of a finished trial, where its record counts it, and its seconds; None where it did not end."""
    costs, timings, stream = record.costs, record.timings, record.stream
    if record.status != "done" or stream is None or not timings.evaluate:
        return None
    seconds = sum(map(sum, (timings.train, timings.consolidate, timings.evaluate, timings.curve)))
    tasks = len(stream.train_samples)
    if not len(costs.steps) == len(costs.train_flops) == len(costs.inference_flops) == tasks:
        return None, seconds
    return workload(costs.steps, costs.train_flops, costs.inference_flops, stream.tested), seconds


@dataclass
class Course:
    """A running trial: when it began, and its share of the work and the time at the first and at the last event."""

    began: float
    first: tuple[float, float] | None = None
    last: tuple[float, float] = 0.0, 0.0

    @property
    def resumed(self) -> float:
        """Return the share that was done before: the trial continued from a checkpoint."""
        return self.first[0] if self.first else 0.0

    @property
    def pace(self) -> float | None:
        """Return the seconds that all of the work takes as the tasks learned here did; None before the first."""
        if self.first is None or self.last[0] <= self.first[0]:
            return None
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])

    @property
    def whole(self) -> float | None:
        """Return that with the seconds before its first task."""
        if self.first is None or self.pace is None:
            return None
        return self.first[1] - self.began + self.pace

    def left(self, expected: float, now: float) -> float:
        """Return its remaining seconds where it is expected to take so many in all.

        Where they are over, it goes on at its own pace; before its first task is learned, as long again as so far.
        """
        elapsed = now - self.began
        left = expected * (1 - self.resumed) - elapsed
        if left > 0:
            return left
        if self.pace is None:
            return elapsed
        share, since = self.last
        return max((1 - share) * self.pace - (now - since), 0.0)


class TimeLeft:
    """Estimates the seconds until the last trial has ended.

    Waiting trials go to as many places as trials have run at once, the longest first. The first trial of a kind is
    mostly the slowest (data are read, caches filled), so the ratio of later ones to it holds for the other kinds, too.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Take the trials of the run."""
        self.kinds: dict[str, Kind] = {planned.trial.key: kind_of(planned.trial) for planned in todo}
        self.methods = {kind_of(planned.trial): method_of(planned.trial) for planned in todo}
        self.work: dict[Kind, Workload] = {}  # either as plain fine-tuning would have it, or counted for each method
        self.speed: Speed | None = None
        self.earlier: dict[Kind, list[float]] = {}  # seconds of trials with a record
        self.waiting = dict.fromkeys(self.kinds)
        self.running: dict[str, Course] = {}
        self.took: dict[Kind, list[float]] = {}  # seconds of whole trials
        self.places = 1  # trials that run at once
        self.others = 0.0  # seconds of the trials that another process has run meanwhile
        self.began: float | None = None

    def ready(self, workers: int) -> None:
        """Take the number of workers."""
        self.places = max(self.places, min(workers, len(self.kinds)))

    def known(self, records: Iterable[Record]) -> None:
        """Take the seconds of records that were made as this run makes its own."""
        models = {model for model, _ in self.methods.values()}
        for record in records:
            result = recorded(record)
            kind, method = kind_of(record.trial), method_of(record.trial)
            if result is not None and method[0] in models:
                self.earlier.setdefault(kind, []).append(result[1])
                self.methods[kind] = method

    def take_estimate(self, kind: Kind, estimate: WorkEstimate) -> None:
        """Take what is known beforehand of the trials of a kind."""
        if estimate.workload is not None:
            self.work[kind] = estimate.workload
        self.speed = estimate.speed or self.speed

    def started(self, key: str, now: float) -> None:
        """Take a trial that starts, perhaps once more."""
        self.began = now if self.began is None else self.began
        self.waiting.pop(key, None)
        self.running[key] = Course(now)
        self.places = max(self.places, len(self.running))

    def progress(self, event: Progress, now: float) -> None:
        """Take an event of a running trial."""
        if course := self.running.get(event.key):
            work = self.work.get(self.kinds[event.key])
            share = event.task / event.tasks
            if work is not None and len(work.steps) == event.tasks:
                share = work.share(event.task, self.flops_of_a_step)
            course.last = share, now
            course.first = course.first or course.last

    def finished(self, key: str, now: float) -> None:
        """Take a trial that has ended here, or in another process that shares the run folder."""
        self.waiting.pop(key, None)
        if course := self.running.pop(key, None):
            whole = course.whole if course.resumed else now - course.began
            if whole is not None:
                self.took.setdefault(self.kinds[key], []).append(whole)
        elif key in self.kinds and (expected := self.expected()):
            self.others += expected[self.kinds[key]]

    @property
    def measured(self) -> bool:
        """Tell whether this run has learned a task yet."""
        return bool(self.took) or any(course.whole is not None for course in list(self.running.values()))

    @property
    def flops_of_a_step(self) -> float:
        """Return how many FLOPs take as long as a step does without any."""
        return USUAL if self.speed is None else max(self.speed.step * self.speed.flops, 1.0)

    def seconds(self, now: float) -> float | None:
        """Return the estimate; None as long as there is nothing to tell it from."""
        expected = self.expected()
        if not expected:
            return None
        left = [course.left(expected[self.kinds[key]], now) for key, course in list(self.running.items())]
        waiting = sorted((expected[self.kinds[key]] for key in list(self.waiting)), reverse=True)
        places = self.places
        if self.others and self.began is not None:
            places += round(self.others / max(now - self.began, 1e-9))
        ends = sorted([*left, *[0.0] * (places - len(left))])  # when each place is free
        for seconds in waiting:
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends, default=0.0)

    def expected(self) -> dict[Kind, float]:
        """Return the seconds of a whole trial of each kind; of all kinds, or of none if nothing is known."""
        known = self._known_seconds()
        amounts = {kind: work.amount(self.flops_of_a_step) for kind, work in self.work.items()}
        compared = [kind for kind in known if amounts.get(kind)]
        rate = None if known or self.speed is None else self.speed.step  # seconds that a unit of work takes
        if compared:
            rate = sum(known[kind] for kind in compared) / sum(amounts[kind] for kind in compared)
        kind_of_method = {self.methods[kind]: kind for kind in known}
        expected: dict[Kind, float] = {}
        for kind, method in self.methods.items():
            similar = kind_of_method.get(method)
            if kind in known:
                expected[kind] = known[kind]
            elif similar is not None:
                comparable = amounts.get(kind) and amounts.get(similar)
                expected[kind] = known[similar] * (amounts[kind] / amounts[similar] if comparable else 1.0)
            elif rate is not None and amounts.get(kind):
                expected[kind] = rate * amounts[kind]
        if expected:  # a method that cannot be counted takes as long as the others do
            mean = fmean(expected.values())
            expected |= {kind: mean for kind in self.methods if kind not in expected}
        return expected

    def _known_seconds(self) -> dict[Kind, float]:
        """Return the seconds of a whole trial of each kind that this run or a record has timed."""
        took = list(self.took.items())
        repeated = {kind: fmean(seconds[1:]) for kind, seconds in took if len(seconds) > 1}
        firsts = sum(seconds[0] for kind, seconds in took if kind in repeated)
        change = sum(repeated.values()) / firsts if firsts else 1.0
        measured = {kind: seconds[0] * change for kind, seconds in took} | repeated
        paces: dict[Kind, list[float]] = {}
        for key, course in list(self.running.items()):
            if course.whole is not None and self.kinds[key] not in measured:
                paces.setdefault(self.kinds[key], []).append(course.whole)
        measured |= {kind: fmean(seconds) for kind, seconds in paces.items()}
        earlier = {kind: fmean(seconds) for kind, seconds in self.earlier.items()}
        both = [kind for kind in measured if kind in earlier]  # they tell how fast the machine is now
        drift = sum(measured[kind] for kind in both) / sum(earlier[kind] for kind in both) if both else 1.0
        return {kind: seconds * drift for kind, seconds in earlier.items()} | measured
