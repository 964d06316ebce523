"""The verdicts on a setting as data: the best method, Pareto fronts, comparisons to baseline and joint training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clbench.core.objective import ACCURACY, Metric
from clbench.experiment.until import UntilDecided
from clbench.results.paired import Test

# equal: on every seed; not tested: for the reason in `Against.untested`; open: no significant difference
Verdict = Literal["better", "worse", "equal", "not tested", "open"]


@dataclass(frozen=True)
class Against:
    """A method's final mean minus that of another one, on the seeds that both have, in the metric's unit."""

    method: str
    other: str
    seeds: int
    difference: float  # mean over seeds
    half_width: float | None  # of the uncorrected 95% interval; a repeated interval if a rule added seeds
    low: float | None
    high: float | None
    p: float  # Holm-corrected over the family
    test: Test | None  # None if the pair is not tested
    verdict: Verdict
    every_seed: Literal["above", "below"] | None  # relative to `other` on all seeds; None if they disagree
    needed: int | None  # if open: about how many seeds would make it significant; None if not known
    limited: int | None = None  # if open: number of test samples, if they are too few for more seeds to help
    untested: str = ""  # why the pair is not tested


@dataclass(frozen=True)
class Compared:
    """The comparisons of all methods to one method of the setting, as a family of tests planned in advance."""

    other: str
    mean: float  # final mean of `other`
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
    """The method with the best final mean. The tested data also choose it, so the family of tests has all pairs."""

    method: str
    tests: int
    seeds: int
    test: Test | None
    beaten: tuple[str, ...]  # methods that are significantly worse (`Family.beaten_by`)
    equal: tuple[str, ...]  # methods that are equal on every seed
    open: tuple[str, ...]  # methods without a significant difference, the nearest first; all of them without a test
    needed: int | None  # about how many seeds would make the difference to `closest` significant
    untested: Mapping[str, str] = field(default_factory=dict)  # why a method is not tested against the best
    limited: int | None = None  # number of test samples, if they are too few for more seeds to make it significant
    closest: str | None = None  # the first of `open` whose mean is not better on shared seeds; None if there is none
    exceeding: tuple[str, ...] = ()  # methods without all seeds that are significantly better on shared seeds
    dropped: tuple[str, ...] = ()  # if a rule added seeds: methods that another method than the best beats
    inconclusive: tuple[str, ...] = ()  # methods with too few seeds for a test, if there are tests of other methods


@dataclass(frozen=True)
class Facts:
    """The verdicts on a setting."""

    accuracy: Mapping[str, float]  # final mean of each label, including references, the best first
    references: tuple[str, ...]
    best: Best | None  # None with fewer than two methods
    baseline: Compared | None  # None if the setting has no baseline
    joint: Compared | None
    fronts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by title of a cost: labels by rising cost
    until: UntilDecided | None = None  # the rule that added seeds, if any; all verdicts then account for it
    cautions: Mapping[str, str] = field(default_factory=dict)  # marks of methods that are underfit or at chance

    @property
    def compared(self) -> tuple[Compared, ...]:
        """Return the comparisons to the baseline and to joint training, or a single one if both are one method."""
        return tuple({compared.other: compared for compared in (self.baseline, self.joint) if compared}.values())


@dataclass(frozen=True)
class Candidate:
    """A method that can be chosen, with its final mean and its amount of each of `choosing.KINDS` (None: unknown)."""

    label: str
    accuracy: float
    half_width: float | None
    counted: Mapping[str, float | None]
    caution: str = ""  # marks of a method that is underfit or at chance


@dataclass(frozen=True)
class CandidateComparison:
    """The comparison of a method to one with a better mean. The family of tests has all pairs of methods."""

    difference: float  # how much better the better mean is; at least 0
    half_width: float | None
    shown: bool  # whether the difference is significant
    needed: int | None  # if it is not significant: about how many seeds would make it significant
    untested: str = ""  # why there is no test
    inconclusive: bool = False  # whether there are too few seeds for a test


@dataclass(frozen=True)
class Choosable:
    """The methods of a setting that a user can choose from."""

    task_given: bool  # whether methods get the task ID of a test sample
    candidates: tuple[Candidate, ...]  # best first
    comparisons: tuple[tuple[CandidateComparison, ...], ...]  # [i][k] compares candidates i and i + 1 + k
    incomplete: tuple[str, ...]  # methods without a result for every seed, which cannot be chosen
    metric: Metric = ACCURACY
