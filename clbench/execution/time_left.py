"""How long a run still takes: from the work of its trials, and from the seconds that this run has measured so far."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.execution.pace import Kind, Paces, kind_of
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import Foreseen
from clbench.results.records import Record


@dataclass
class Course:
    """A running trial: when it began, and where it stood at the first and at the last word from it (share, time)."""

    began: float
    first: tuple[float, float] | None = None
    last: tuple[float, float] | None = None

    @property
    def resumed(self) -> float:
        """Return the share that was done before: it went on from a checkpoint."""
        return self.first[0] if self.first else 0.0

    @property
    def pace(self) -> float | None:
        """Return the seconds that all of the work takes as the tasks learned here did; None before the first."""
        if self.first is None or self.last is None or self.last[0] <= self.first[0]:
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
        if self.last is None or self.pace is None:
            return elapsed
        share, since = self.last
        return max((1 - share) * self.pace - (now - since), 0.0)


class TimeLeft:
    """Estimates the seconds until the last trial has ended.

    A trial takes as long as those of its kind that have ended, evaluation and all; before one has, as the tasks learned
    so far say, each with its share of the work; before that, as its work says (`Paces`). The first of a kind is mostly
    the slowest (data are read, caches filled): how later ones differ from it, where there are some, is taken to hold
    for the other kinds, too. Trials that wait go to as many places as trials have run at once, the longest first, as
    the queue deals them out. What a trial had done before it went on from a checkpoint is no work of this run.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Take the trials of the run."""
        self.kinds: dict[str, Kind] = {p.trial.key: kind_of(p.trial) for p in todo}
        self.paces = Paces()
        self.paces.add(todo)
        self.waiting = dict.fromkeys(self.kinds)  # in the order of the plan
        self.running: dict[str, Course] = {}
        self.took: dict[Kind, list[float]] = {}  # seconds of whole trials
        self.places = 1  # trials that run at once
        self.others = 0.0  # seconds of the trials that another process has run meanwhile
        self.began: float | None = None

    def ready(self, workers: int) -> None:
        """Take the number of workers."""
        self.places = max(self.places, min(workers, len(self.kinds)))

    def known(self, records: Iterable[Record]) -> None:
        """Take records that were made as this run makes its own."""
        self.paces.known(records)

    def foreseen(self, key: str, foreseen: Foreseen, counted: bool = False) -> None:
        """Take what is known beforehand of a trial and the others of its kind; `counted`: of the method itself."""
        self.paces.foreseen(self.kinds[key], foreseen, counted)

    def started(self, key: str, now: float) -> None:
        """Take a trial that starts, perhaps once more."""
        self.began = now if self.began is None else self.began
        self.waiting.pop(key, None)
        self.running[key] = Course(now)
        self.places = max(self.places, len(self.running))

    def progress(self, event: Progress, now: float) -> None:
        """Take a word from a running trial."""
        if course := self.running.get(event.key):
            course.last = self.paces.share(self.kinds[event.key], event.task, event.tasks), now
            course.first = course.first or course.last

    def finished(self, key: str, now: float, record: Record | None = None) -> None:
        """Take a trial that has ended here, or in another process that shares the run folder; its record counts."""
        if record is not None and key in self.kinds:
            self.paces.ended(self.kinds[key], record)
        self.waiting.pop(key, None)
        if course := self.running.pop(key, None):
            whole = course.whole if course.resumed else now - course.began
            if whole is not None:
                self.took.setdefault(self.kinds[key], []).append(whole)
        elif key in self.kinds and (known := self._expected()):
            self.others += known[self.kinds[key]]

    @property
    def measured(self) -> bool:
        """Tell whether this run has learned a task yet."""
        return bool(self.took) or any(course.whole is not None for course in list(self.running.values()))

    def seconds(self, now: float) -> float | None:
        """Return the estimate; None as long as there is nothing to tell it from."""
        known = self._expected()
        if not known:
            return None
        left = [course.left(known[self.kinds[key]], now) for key, course in list(self.running.items())]
        waiting = self._in_order(known)
        if self.others and self.began is not None:
            places = self.places + self.others / max(now - self.began, 1e-9)
            return max([(sum(left) + sum(waiting)) / places, *left])
        free = sorted([*left, *[0.0] * (self.places - len(left))])
        for seconds in waiting:
            heapq.heapreplace(free, free[0] + seconds)
        return max(free, default=0.0)

    def _in_order(self, known: dict[Kind, float]) -> list[float]:
        """Return the seconds of the trials that wait, as the queue has them: new kinds first, then the longest."""
        settings = list(dict.fromkeys(kind[0] for kind in self.kinds.values()))
        seen = {self.kinds[key] for key in list(self.running)} | set(self.took)
        order: list[tuple[int, float, float]] = []
        for key in list(self.waiting):
            kind = self.kinds[key]
            order.append((settings.index(kind[0]), -known[kind] if kind in seen else -float("inf"), known[kind]))
            seen.add(kind)
        return [seconds for *_, seconds in sorted(order, key=lambda one: one[:2])]

    def _expected(self) -> dict[Kind, float]:
        """Return the seconds of a whole trial of each kind, as far as something is known; of all kinds or of none."""
        took = list(self.took.items())
        again = [(own[0], fmean(own[1:])) for _, own in took if len(own) > 1]
        before = sum(first for first, _ in again)
        change = sum(later for _, later in again) / before if before else 1.0
        found = {kind: fmean(own[1:]) if len(own) > 1 else own[0] * change for kind, own in took}
        paces: dict[Kind, list[float]] = {}
        for key, course in list(self.running.items()):
            if self.kinds[key] not in found and (whole := course.whole) is not None:
                paces.setdefault(self.kinds[key], []).append(whole)
        return self.paces.seconds({**{kind: fmean(seconds) for kind, seconds in paces.items()}, **found})
