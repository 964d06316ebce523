"""How long a run still takes, from what this run has measured: the seconds of its trials and of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.experiment.trial import PlannedTrial, Progress

Kind = tuple[tuple[str, ...], str]  # setting and method: trials that differ in their seed only


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
    def whole(self) -> float | None:
        """Return the seconds that all of its tasks take at the pace of those it has learned; None before the first."""
        if self.first is None or self.last is None or self.last[0] <= self.first[0]:
            return None
        (a, since), (b, until) = self.first, self.last
        return (since - self.began) + (until - since) / (b - a)

    def left(self, expected: float, now: float) -> float:
        """Return its remaining seconds where it is expected to take so many in all.

        Where they are over, it goes on at its own pace; before its first task is learned, as long again as so far.
        """
        elapsed = now - self.began
        left = expected * (1 - self.resumed) - elapsed
        if left > 0:
            return left
        if self.first is None or self.last is None or self.last[0] <= self.first[0]:
            return elapsed
        (a, since), (b, until) = self.first, self.last
        return max((1 - b) * (until - since) / (b - a) - (now - until), 0.0)


class TimeLeft:
    """Estimates the seconds until the last trial has ended.

    A trial takes as long as those of its kind that have ended, evaluation and all; before one has, as the tasks learned
    so far say; before that, as the mean of the other kinds. The first of a kind is mostly the slowest (data are read,
    caches filled): how later ones differ from it, where there are some, is taken to hold for the other kinds, too. Each
    trial that waits takes one of as many places as trials have run at once, and the run is not over before its longest
    trial. What a trial had done before it went on from a checkpoint is no work of this run.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Take the trials of the run."""
        self.kinds: dict[str, Kind] = {p.trial.key: (p.trial.setting, p.trial.row) for p in todo}
        self.waiting = set(self.kinds)
        self.running: dict[str, Course] = {}
        self.took: dict[Kind, list[float]] = {}  # seconds of whole trials
        self.places = 1  # trials that have run at once
        self.others = 0.0  # seconds of the trials that another process has run meanwhile
        self.began: float | None = None

    def started(self, key: str, now: float) -> None:
        """Take a trial that starts, perhaps once more."""
        self.began = now if self.began is None else self.began
        self.waiting.discard(key)
        self.running[key] = Course(now)
        self.places = max(self.places, len(self.running))

    def progress(self, event: Progress, now: float) -> None:
        """Take a word from a running trial."""
        if course := self.running.get(event.key):
            course.last = event.task / event.tasks, now
            course.first = course.first or course.last

    def finished(self, key: str, now: float) -> None:
        """Take a trial that has ended here, or in another process that shares the run folder."""
        self.waiting.discard(key)
        if course := self.running.pop(key, None):
            whole = course.whole if course.resumed else now - course.began
            if whole is not None:
                self.took.setdefault(self.kinds[key], []).append(whole)
        elif key in self.kinds and (known := self._expected()):
            self.others += known.get(self.kinds[key], fmean(known.values()))

    def seconds(self, now: float) -> float | None:
        """Return the estimate; None as long as no task has been learned."""
        known = self._expected()
        if not known or self.began is None:
            return None
        unknown = fmean(known.values())
        left = [course.left(known.get(self.kinds[key], unknown), now) for key, course in list(self.running.items())]
        work = sum(left) + sum(known.get(self.kinds[key], unknown) for key in list(self.waiting))
        places = self.places + self.others / max(now - self.began, 1e-9)
        return max([work / places, *left])

    def _expected(self) -> dict[Kind, float]:
        """Return the seconds of a whole trial of each kind of which something is known."""
        took = list(self.took.items())
        again = [(own[0], fmean(own[1:])) for _, own in took if len(own) > 1]
        before = sum(first for first, _ in again)
        change = sum(later for _, later in again) / before if before else 1.0
        found = {kind: fmean(own[1:]) if len(own) > 1 else own[0] * change for kind, own in took}
        paces: dict[Kind, list[float]] = {}
        for key, course in list(self.running.items()):
            if self.kinds[key] not in found and (whole := course.whole) is not None:
                paces.setdefault(self.kinds[key], []).append(whole)
        return {**{kind: fmean(seconds) for kind, seconds in paces.items()}, **found}
