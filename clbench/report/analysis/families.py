"""Families of paired tests: methods compared seed by seed, with p-values corrected together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from clbench.experiment.until import UntilDecided
from clbench.report.model import Column
from clbench.results import sequential
from clbench.results.paired import Test, deciding_test, p_values, seeds_to_show
from clbench.results.stats import ALPHA, ROUNDING, Interval, holm

Values = Mapping[str, Mapping[int, float]]  # a measure by method and seed


@dataclass(frozen=True)
class Pair:
    """Two methods on the seeds that both have."""

    first: str
    second: str
    differences: tuple[float, ...]  # first minus second, by seed; at least one
    p: float
    corrected: float  # p, corrected over the family
    test: Test | None  # what p comes from; None: a single seed decides nothing, nor do seeds that all give the same
    family: int  # the number of tests
    until: UntilDecided | None = None  # the rule by which seeds were added, which its p and interval take into account
    look: int | None = None  # by such a rule: after how many seeds it is told best
    untested: bool = False  # both methods gave one value each on every seed: more of the same seeds are no evidence

    @property
    def equal(self) -> bool:
        """Tell whether the two are equal on every seed, up to rounding."""
        return all(abs(d) <= ROUNDING for d in self.differences)

    @property
    def significant(self) -> bool:
        """Tell whether the test shows a difference."""
        return self.corrected <= ALPHA

    @property
    def decidable(self) -> bool:
        """Tell whether this number of seeds could show a difference at all."""
        return self.test is not None

    @property
    def needed(self) -> int | None:
        """Return about how many seeds would show the difference if it stays as it is, None where that is not known."""
        if self.untested:
            return None
        if self.until:
            return sequential.seeds_to_decide(self.differences, self.until, self.family)
        return seeds_to_show(self.differences, self.family)

    @property
    def interval(self) -> Interval:
        """Return the mean difference with its 95 % interval, for this pair alone; a repeated one after looks."""
        return sequential.interval_of(self.differences, self.until)

    @property
    def swapped(self) -> Pair:
        """Return the pair as second minus first."""
        return replace(self, first=self.second, second=self.first, differences=tuple(-d for d in self.differences))

    def better(self, direction: str | None) -> str:
        """Return the method that is better by its mean, when it was told best."""
        return self.first if (sum(self.differences[:self.look]) > 0) == (direction == "up") else self.second


@dataclass(frozen=True)
class Family:
    """Pairs whose p-values are corrected together, since any of them may be taken for a finding."""

    column: Column
    pairs: tuple[Pair, ...]

    @property
    def until(self) -> UntilDecided | None:
        """Return the rule by which seeds were added, if they were."""
        return self.pairs[0].until if self.pairs else None

    @property
    def dropped(self) -> set[str]:
        """Return the methods that got no more seeds, since another one, not only the best, was shown to be better."""
        return self.beaten if self.until else set()

    @property
    def beaten(self) -> set[str]:
        """Return the methods that some pair shows to be worse."""
        up = self.column.direction
        return {p.first if p.better(up) == p.second else p.second for p in self.pairs if p.significant}

    def against(self, method: str) -> list[Pair]:
        """Return the pairs with this method, each as the other method minus this one."""
        return [p.swapped if p.first == method else p for p in self.pairs if method in (p.first, p.second)]


def family(column: Column, values: Values, baseline: str | None = None, of: int | None = None,
           until: UntilDecided | None = None) -> Family:
    """Return the tests of all pairs of methods, or of each method with a baseline, on the seeds they share.

    Args:
        column: what is compared.
        values: by method and seed.
        baseline: with which each of the others is compared; by default all pairs are.
        of: the size of a larger family that these tests are of, which decides on the test.
        until: the rule by which seeds were added, if they were; then sequential tests decide, in the seeds' order.

    Two methods that each gave the same value on every seed are not tested: such seeds are repetitions of one result,
    and not a sample of results. The pair counts in the size of the family all the same.
    """
    chosen = combinations(values, 2) if baseline is None else ((m, baseline) for m in values if m != baseline)
    found = [(a, b, tuple(values[a][s] - values[b][s] for s in sorted(values[a].keys() & values[b].keys())))
             for a, b in chosen]
    found = [pair for pair in found if pair[2]]
    size = of or len(found)
    constant = {label for label, by_seed in values.items() if _constant(by_seed)}
    untested = {(a, b) for a, b, d in found if len(d) > 1 and abs(d[0]) > ROUNDING and {a, b} <= constant}
    if until is not None:
        return Family(column, _sequential([(a, b, d[:until.most]) for a, b, d in found], until, size, untested))
    by_length: dict[int, dict[tuple[float, ...], float]] = {}
    for n in {len(d) for *_, d in found}:
        same = list(dict.fromkeys(d for *_, d in found if len(d) == n))
        by_length[n] = dict(zip(same, p_values(same, size), strict=True))
    ps = [1.0 if (a, b) in untested else by_length[len(d)][d] for a, b, d in found]
    return Family(column, tuple(
        Pair(a, b, d, p, corrected, None if (a, b) in untested else deciding_test(len(d), size), size,
             untested=(a, b) in untested)
        for (a, b, d), p, corrected in zip(found, ps, holm(ps), strict=True)))


def _constant(by_seed: Mapping[int, float]) -> bool:
    """Tell whether two or more seeds gave the same value."""
    return len(by_seed) > 1 and max(by_seed.values()) - min(by_seed.values()) <= ROUNDING


def _sequential(found: Sequence[tuple[str, str, tuple[float, ...]]], until: UntilDecided,
                size: int, untested: Collection[tuple[str, str]]) -> tuple[Pair, ...]:
    looks = [None if (a, b) in untested else sequential.look(d, until) for a, b, d in found]
    ps = [told.p if told else 1.0 for told in looks]
    return tuple(Pair(a, b, d, p, corrected, told and "sequential", size, until, told and told.seeds,
                      (a, b) in untested)
                 for (a, b, d), told, p, corrected in zip(found, looks, ps, holm(ps), strict=True))


def leader(column: Column, values: Values, tests: Family | None = None) -> str:
    """Return the method with the best mean, the first of those that have it.

    Where seeds were added (by the rule of `tests`), a method that was shown to be worse got no more of them, and its
    mean is of other seeds: it does not lead.
    """
    running = {name for name in values if not tests or name not in tests.dropped} or set(values)
    means = {name: fmean(by_seed.values()) for name, by_seed in values.items() if name in running}
    return (max if column.direction == "up" else min)(means, key=lambda name: means[name])
