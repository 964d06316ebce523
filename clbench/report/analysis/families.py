"""Families of paired tests: methods compared seed by seed, with p-values corrected together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.experiment.until import UntilDecided
from clbench.report.model import Column
from clbench.results import sequential
from clbench.results.items import Crossed, cross
from clbench.results.paired import Test, deciding_test, near_limit, p_values, seeds_to_show
from clbench.results.records import Record, item_ids
from clbench.results.stats import ALPHA, ROUNDING, Interval, holm

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


Values = Mapping[str, Mapping[int, float]]  # values of a measure by method and seed
Answers = Mapping[str, Mapping[int, "npt.NDArray[np.float32]"]]  # by method and seed: [N], score of each test sample
UNLIMITED = 10**9  # a number of seeds that leaves only the variance due to the test samples
# Reasons why a pair is not tested
SAME, NEAR, OTHER_DATA = "every seed gave the same result", "near 100%", "they did not see the same data"


def mixes_data(records: Iterable[Record]) -> bool:
    """Return whether the data of a benchmark changed between seeds.

    A benchmark gives either all seeds the same data or each seed its own. With options such as `class_order=seed`, two
    of its own may be equal, so nothing can be said.
    """
    by_seed = {r.trial.seed: r.stream.data for r in records
               if r.stream and r.stream.data and "seed" not in r.trial.benchmark.options.values()}
    return 1 < len(set(by_seed.values())) < len(by_seed)


def have_same_items(records: Sequence[Record]) -> bool:
    """Return whether records have the results of single test items, the same items of the same data for each seed."""
    ids = {item_ids(record) for record in records}
    return (bool(records) and None not in ids and len(ids) == 1 and not mixes_data(records)
            and all(r.stream is None or r.stream.tested > 1 for r in records))


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the seeds that both have."""

    first: str
    second: str
    differences: tuple[float, ...]  # first minus second, by seed; at least one
    p: float
    corrected: float  # p, Holm-corrected over the family
    test: Test | None  # the test that gave p; None if the pair is not tested
    family: int  # number of tests in the family
    until: UntilDecided | None = None  # the rule that added seeds, if any; p and the interval account for it
    strongest: int | None = None  # if a rule added seeds: number of seeds at the most significant interim analysis
    untested: str = ""  # why there is no test although there are several seeds: `SAME`, `NEAR` or `OTHER_DATA`
    crossed: Crossed | None = None  # over seeds and test samples, if all seeds share the samples and answers are known

    @property
    def equal(self) -> bool:
        """Return whether the two methods are equal on every seed, up to rounding."""
        return all(abs(d) <= ROUNDING for d in self.differences)

    @property
    def significant(self) -> bool:
        """Return whether the difference is significant."""
        return self.corrected <= ALPHA

    @property
    def decidable(self) -> bool:
        """Return whether any difference could be significant with this number of seeds."""
        return self.test is not None

    @property
    def needed(self) -> int | None:
        """Estimate how many seeds would make the difference significant if it does not change; None if not known."""
        if self.untested:
            return None
        if self.until:
            return sequential.seeds_to_decide(self.differences, self.until, self.family, self.crossed)
        return seeds_to_show(self.differences, self.family, self.crossed)

    @property
    def limited(self) -> int | None:
        """Return the number of test samples if no number of seeds makes the difference significant, else None."""
        if self.crossed is None or self.family * self.crossed.with_seeds(UNLIMITED).p <= ALPHA:
            return None
        return self.crossed.samples

    @property
    def interval(self) -> Interval:
        """Return the mean difference with its uncorrected 95% interval, a repeated one if a rule added seeds."""
        return sequential.interval_of(self.differences, self.until, self.crossed)

    @property
    def swapped(self) -> PairedTest:
        """Return the pair as second minus first."""
        crossed = self.crossed and replace(self.crossed, mean=-self.crossed.mean)
        return replace(self, first=self.second, second=self.first, differences=tuple(-d for d in self.differences),
                       crossed=crossed)

    def better(self, direction: str | None) -> str:
        """Return the method with the better mean. If a rule added seeds, only the first `strongest` seeds count."""
        return self.first if (sum(self.differences[:self.strongest]) > 0) == (direction == "up") else self.second


@dataclass(frozen=True)
class Family:
    """Pairs whose p-values are corrected together, because each significant pair is reported as a result."""

    column: Column
    pairs: tuple[PairedTest, ...]

    @property
    def until(self) -> UntilDecided | None:
        """Return the rule that added seeds, or None if there was none."""
        return self.pairs[0].until if self.pairs else None

    @property
    def dropped(self) -> set[str]:
        """Return the methods of `beaten` if a rule added seeds: even with the best mean, they cannot be the best."""
        return self.beaten if self.until else set()

    @property
    def beaten(self) -> set[str]:
        """Return the methods that are significantly worse than some other method."""
        direction = self.column.direction
        return {p.first if p.better(direction) == p.second else p.second for p in self.pairs if p.significant}

    def beaten_by(self, method: str) -> set[str]:
        """Return the methods that are significantly worse than a method.

        A rule that adds seeds may give no more seeds to a method that some other one significantly exceeds. Then the
        methods that are significantly worse than one of the returned methods are also returned: the family's
        significant differences hold together, and two of them imply a third.
        """
        direction = self.column.direction
        worse_than: dict[str, set[str]] = {}
        for pair in self.pairs:
            if pair.significant:
                better = pair.better(direction)
                worse_than.setdefault(better, set()).add(pair.second if better == pair.first else pair.first)
        beaten = set(worse_than.get(method, ()))
        while self.until and (implied := {worse for b in beaten for worse in worse_than.get(b, ())} - beaten):
            beaten |= implied
        return beaten

    def against(self, method: str) -> list[PairedTest]:
        """Return the pairs with this method, each as the other method minus this one."""
        return [p.swapped if p.first == method else p for p in self.pairs if method in (p.first, p.second)]


def family(column: Column, values: Values, baseline: str | None = None, of: int | None = None,
           until: UntilDecided | None = None, answers: Answers | None = None,
           streams: Mapping[str, Mapping[int, str]] | None = None) -> Family:
    """Return the tests of all pairs of methods, or of each method with a baseline, on the seeds they share.

    Args:
        column: the column whose values are compared.
        values: the values by method and seed.
        baseline: the method that all others are compared with; by default all pairs are compared.
        of: size of a larger family that these tests belong to. The size determines the test.
        until: the rule that added seeds, if any. Tests are then sequential, in the order of the seeds.
        answers: scores of the test samples that all seeds share, if known. Tests are then over seeds and samples.
        streams: the hash of the data that a method saw, by method and seed; empty if it is not known.

    Three kinds of pairs are not tested, but they count in the size of the family: methods that saw different data with
    the same seed, methods that each gave the same value on every seed (without answers, these seeds only repeat one
    result), and accuracies near 100%.
    """
    label_pairs = combinations(values, 2) if baseline is None else ((m, baseline) for m in values if m != baseline)
    shared = [(a, b, sorted(values[a].keys() & values[b].keys())) for a, b in label_pairs]
    if until is not None:
        shared = [(a, b, seeds[:until.most]) for a, b, seeds in shared]
    shared = [pair for pair in shared if pair[2]]
    size = of or len(shared)
    differences = [tuple(values[a][s] - values[b][s] for s in seeds) for a, b, seeds in shared]
    over_seeds = {} if until or answers else _p_values(differences, size)
    pairs = []
    for (first, second, seeds), by_seed in zip(shared, differences, strict=True):
        estimates = _estimates(values, answers, first, second, seeds, until)
        is_other_data = streams and any(len({streams[first][s], streams[second][s]} - {""}) > 1 for s in seeds)
        untested = OTHER_DATA if is_other_data else _reason(column, values, first, second, seeds, bool(estimates))
        test, p, strongest = (None, 1.0, None) if untested else _test(by_seed, size, until, estimates, over_seeds)
        pairs.append(PairedTest(first, second, by_seed, p, p, test, size, until, strongest, untested,
                                estimates[-1] if estimates else None))
    corrected = holm([pair.p for pair in pairs])
    return Family(column, tuple(replace(pair, corrected=p) for pair, p in zip(pairs, corrected, strict=True)))


def _test(differences: tuple[float, ...], size: int, until: UntilDecided | None, estimates: Sequence[Crossed],
          over_seeds: Mapping[tuple[float, ...], float]) -> tuple[Test | None, float, int | None]:
    """Return the test of a pair, its p-value, and `PairedTest.strongest`."""
    if until is not None:
        ps = [estimate.p for estimate in estimates] or None
        analysis = sequential.find_strongest_analysis(differences, until, ps)
        return ("sequential", analysis.p, analysis.seeds) if analysis else (None, 1.0, None)
    if estimates:
        return "crossed", estimates[-1].p, None
    test = deciding_test(len(differences), size)
    return test, over_seeds[differences] if test else 1.0, None


def _p_values(differences: Sequence[tuple[float, ...]], size: int) -> dict[tuple[float, ...], float]:
    """Return the p-value of each series of differences over seeds. Series of one length are tested in one call."""
    by_series: dict[tuple[float, ...], float] = {}
    for n in {len(d) for d in differences}:
        series = list(dict.fromkeys(d for d in differences if len(d) == n))
        by_series |= zip(series, p_values(series, size), strict=True)
    return by_series


def _estimates(values: Values, answers: Answers | None, first: str, second: str, seeds: Sequence[int],
               until: UntilDecided | None) -> list[Crossed]:
    """Return the estimate over seeds and samples of a pair, or nothing without answers.

    If a rule added seeds, there is an estimate for each interim analysis.
    """
    if not answers or len(seeds) < 2:
        return []
    scores = [answers[first][s] - answers[second][s] for s in seeds]
    means = [values[first][s] - values[second][s] for s in seeds]
    numbers = range(until.first, len(seeds) + 1) if until else [len(seeds)]
    return [cross(means[:n], scores[:n]) for n in numbers]


def _reason(column: Column, values: Values, first: str, second: str, seeds: Sequence[int], answers: bool) -> str:
    """Return why a pair with several seeds is not tested. The text is empty if it is tested or if the two are equal."""
    sides = [[values[label][s] for s in seeds] for label in (first, second)]
    if len(seeds) < 2 or all(abs(a - b) <= ROUNDING for a, b in zip(*sides, strict=True)):
        return ""
    if not answers and all(max(side) - min(side) <= ROUNDING for side in sides):
        return SAME
    return NEAR if (column.unit, column.direction) == ("percent", "up") and any(map(near_limit, sides)) else ""


def leader(column: Column, values: Values, tests: Family | None = None) -> str:
    """Return the method with the best mean, or the first of those that share it.

    If a rule added seeds, the means of methods may be over different seeds. So a method that is significantly worse
    than another one is not returned, unless all methods are.
    """
    running = {name for name in values if not tests or name not in tests.dropped} or set(values)
    means = {name: fmean(by_seed.values()) for name, by_seed in values.items() if name in running}
    return (max if column.direction == "up" else min)(means, key=lambda name: means[name])
