"""The verdicts on a setting as data: the best method, Pareto fronts, and comparisons to the baseline and to joint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clbench.core.objective import ACCURACY, Metric
from clbench.experiment.until import UntilDecided
from clbench.results.paired import Test

# equal: on every seed; not tested: the same result on every seed, or near 100%; open: not decided
Verdict = Literal["better", "worse", "equal", "not tested", "open"]


@dataclass(frozen=True)
class Against:
    """A method's final mean minus that of another one, on the seeds that both have, in the metric's unit."""

    method: str
    other: str
    seeds: int
    difference: float  # mean
    half_width: float | None  # of its own 95 % interval, not corrected; a repeated one where seeds were added
    low: float | None
    high: float | None
    p: float  # corrected over the family
    test: Test | None  # what decides; None with a single seed
    verdict: Verdict
    every_seed: Literal["above", "below"] | None  # whether it is so on every seed, shown or not
    needed: int | None  # about how many seeds would decide, where it is open and that can be reckoned
    limited: int | None = None  # test samples, where it is open and they are too few for more seeds to help
    untested: str = ""  # why it is not tested


@dataclass(frozen=True)
class Compared:
    """The comparisons of each method to one of the setting's methods, a family of tests planned in advance."""

    other: str
    mean: float  # final mean of the other one
    tests: int
    pairs: tuple[Against, ...]  # in the order of the methods

    def labels(self, verdict: Verdict) -> list[str]:
        """Return the methods with this verdict."""
        return [pair.method for pair in self.pairs if pair.verdict == verdict]

    @property
    def test(self) -> Test | None:
        """Return the test of the pairs, or None if no pair is tested."""
        return next((pair.test for pair in self.pairs if pair.test), None)


@dataclass(frozen=True)
class Best:
    """The method with the best final mean. It is chosen by the same data, so the family of tests has all pairs."""

    method: str
    tests: int
    seeds: int
    test: Test | None
    beaten: tuple[str, ...]  # shown to be worse
    equal: tuple[str, ...]  # on every seed
    open: tuple[str, ...]  # not told apart, the nearest first
    needed: int | None  # about how many seeds would tell it from the nearest of those
    untested: Mapping[str, str] = field(default_factory=dict)  # why a method is not tested against the best
    limited: int | None = None  # test samples, where they are too few for more seeds to tell it from the nearest

    @property
    def decided(self) -> bool:
        """Return whether the method is significantly better than all others except those that are equal to it."""
        return not (self.open or self.untested) and bool(self.beaten)


@dataclass(frozen=True)
class Facts:
    """The verdicts on a setting."""

    accuracy: Mapping[str, float]  # final mean of the section's metric by label, references too, the best first
    references: tuple[str, ...]
    best: Best | None  # None with fewer than two methods
    baseline: Compared | None  # None where no record is of plain fine-tuning
    joint: Compared | None
    fronts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # labels by title of a cost, by rising cost
    until: UntilDecided | None = None  # the rule by which seeds were added, if they were: then all verdicts are by it
    cautions: Mapping[str, str] = field(default_factory=dict)  # marks of methods that are underfit or at chance

    @property
    def below(self) -> list[str]:
        """Return the methods that are significantly worse than the baseline."""
        return self.baseline.labels("worse") if self.baseline else []

    @property
    def above(self) -> list[str]:
        """Return the methods that are significantly better than joint training."""
        return self.joint.labels("better") if self.joint else []

    @property
    def undecided(self) -> dict[str, int | None]:
        """Return the methods without a significant difference to the baseline, with about how many seeds would do."""
        return {p.method: p.needed for p in self.baseline.pairs if p.verdict == "open"} if self.baseline else {}


@dataclass(frozen=True)
class Candidate:
    """A method that can be chosen, with its final mean and its amount of each kind in `choosing` (None: not known)."""

    label: str
    accuracy: float
    half_width: float | None
    counted: Mapping[str, float | None]
    caution: str = ""  # marks of a method that is underfit or at chance


@dataclass(frozen=True)
class CandidateComparison:
    """A method compared to one with a better mean, with the verdict of the family of all pairs."""

    difference: float  # by which the better one is better; at least 0
    half_width: float | None
    shown: bool
    needed: int | None  # about how many seeds would show it, where it is not shown
    untested: str = ""  # why there is no test


@dataclass(frozen=True)
class Choosable:
    """The methods of a setting among which there is a choice."""

    task_given: bool  # the test says the task
    candidates: tuple[Candidate, ...]  # best first
    comparisons: tuple[tuple[CandidateComparison, ...], ...]  # [i][k]: candidate i and candidate i + 1 + k
    incomplete: tuple[str, ...]  # which have not all seeds, so that they are no choice
    metric: Metric = ACCURACY
