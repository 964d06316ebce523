"""Compute the verdicts on a setting (`clbench.report.decided`) by tests and counts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from statistics import fmean

from clbench.report.analysis.families import Family, PairedTest, leader
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import done_records, equal_test_samples, test_samples
from clbench.report.decided import Against, Best, Compared, Facts, Verdict
from clbench.results.items import difference_error
from clbench.results.stats import ROUNDING


def final_means(setting: Setting) -> dict[str, dict[int, float]]:
    """Return the final means of the methods that can be the best, by seed."""
    return {label: by_seed for label, by_seed in setting.compared(setting.final).items() if label in setting.eligible}


def facts(setting: Setting, everything: Family | None = None) -> Facts:
    """Return the verdicts on a setting.

    Args:
        setting: the setting whose methods are compared.
        everything: the tests of the final means of all pairs, if they are already known.
    """
    values = setting.values(setting.final)
    means = {label: fmean(known_values) for label, by_seed in values.items()
             if (known_values := [v for v in by_seed.values() if v is not None])}
    ordered = dict(sorted(means.items(), key=lambda item: setting.metric.rank(item[1])))
    return Facts(ordered, tuple(m.label for m in setting.methods if m.reference and m.label in means),
                 _best(setting, everything or setting.tests(setting.final, setting.compared(setting.final))),
                 _compare_to(setting, setting.baseline), _compare_to(setting, setting.joint_label),
                 _fronts(setting), setting.until, setting.cautions)


def _compare_to(setting: Setting, other: str | None) -> Compared | None:
    if other is None:
        return None
    values = setting.compared(setting.final, [other])
    if other not in values:
        return None
    tests = setting.tests(setting.final, values, other)
    return Compared(other, fmean(values[other].values()), len(tests.pairs),
                    tuple(_describe_pair(pair, setting) for pair in tests.pairs))


def _describe_pair(pair: PairedTest, setting: Setting) -> Against:
    interval = pair.interval
    verdict: Verdict = ("equal" if pair.equal else "not tested" if pair.untested else "open" if not pair.significant
                        else "better" if pair.better(setting.metric.direction) == pair.first else "worse")
    signs = {d > 0 for d in pair.differences} if 0 not in pair.differences else set()
    limited = limiting_test_samples(setting, pair) if verdict == "open" else None
    return Against(pair.first, pair.second, interval.n, interval.mean, interval.half_width, interval.low, interval.high,
                   pair.corrected, pair.test, verdict,
                   ("above" if signs == {True} else "below") if len(signs) == 1 else None,
                   pair.needed if verdict == "open" and not limited else None, limited, pair.untested)


def limiting_test_samples(setting: Setting, pair: PairedTest) -> int | None:
    """Return the number of test samples if more seeds cannot make a difference of shares significant, else None.

    If it is known which samples are right, see `PairedTest.limited`. Otherwise, test samples are too few if the
    standard error that they alone cause is at least as large as the difference. This standard error assumes independent
    test sets, so it is about twice that of two methods on one test set. A smaller difference is therefore within two
    standard errors of 0 with any number of seeds.
    """
    if pair.crossed or setting.own_tests or not setting.metric.is_share:
        return pair.limited
    if len(pair.differences) < 2:
        return None  # the difference of a single seed may be far from the mean
    values = setting.values(setting.final)
    a, b = (fmean(v for v in values[label].values() if v is not None) for label in (pair.first, pair.second))
    methods = [m for m in setting.methods if m.label in (pair.first, pair.second)]
    records = done_records(methods)
    samples = equal_test_samples(records)
    return test_samples(records) if samples and abs(a - b) <= difference_error(a, b, samples) else None


def _best(setting: Setting, tests: Family) -> Best | None:
    values = final_means(setting)
    if len(values) < 2:
        return None
    best = leader(setting.final.column, values, tests)
    pairs = tests.against(best)
    metric = setting.metric
    beaten = tests.beaten_by(best)
    exceeding = {p.first for p in pairs if p.significant} - beaten
    dropped = tests.dropped - beaten - exceeding
    decided = beaten | exceeding | dropped
    test = next((p.test for p in pairs if p.test), None)
    undecided = sorted((p for p in pairs if not (p.equal or p.untested) and p.first not in decided),
                       key=lambda p: metric.rank(fmean(p.differences)))
    open_pairs = [p for p in undecided if p.decidable or test is None]
    closest = next((p for p in open_pairs if metric.rank(fmean(p.differences)) >= -ROUNDING), None)
    limited = limiting_test_samples(setting, closest) if closest else None

    def chosen(methods: Collection[str]) -> tuple[str, ...]:
        return tuple(p.first for p in pairs if p.first in methods)

    equal = {p.first for p in pairs if p.equal}
    return Best(
        best, tests=len(tests.pairs), seeds=max((len(p.differences) for p in pairs), default=0),
        test=test, beaten=chosen(beaten), equal=chosen(equal),
        open=tuple(p.first for p in open_pairs), needed=closest.needed if closest and not limited else None,
        untested={p.first: p.untested for p in pairs if p.untested and p.first not in beaten | dropped},
        limited=limited, closest=closest.first if closest else None, exceeding=chosen(exceeding),
        dropped=chosen(dropped - equal), inconclusive=tuple(p.first for p in undecided if p not in open_pairs))


def _fronts(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Return the Pareto front of each counted cost and the final mean, for the methods with a result for every seed."""
    finals = final_means(setting)
    fronts = {}
    for measure in (m for m in setting.measures if m.cost and not m.tested and setting.has(m)):
        costs = {label: cost for label in setting.values(measure) if label in finals
                 and (cost := setting.mean(measure, label)) is not None and (cost or measure.zero_competes)}
        labels = list(costs)
        fronts[measure.column.title] = tuple(labels[i] for i in front(
            [(costs[label], -setting.metric.rank(fmean(finals[label].values()))) for label in labels]))
    return fronts


def choose_leading(verdicts: Facts, count: int, costs: Collection[str]) -> set[str]:
    """Return the methods that a figure of many methods shows.

    They are the `count` best methods, the Pareto fronts of some costs, the baseline and joint training.
    """
    best = [label for label in verdicts.accuracy if label not in verdicts.references][:count]
    compared = (c.other for c in verdicts.compared)
    return {*best, *compared, *chain.from_iterable(verdicts.fronts.get(cost, ()) for cost in costs)}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the (cost, gain) points on the Pareto front, by rising cost.

    A point is on the front unless another point is at least as good in both numbers and better in one. Equal points
    are on it together.

    >>> front([(2, 0.5), (1, 0.4), (3, 0.5), (4, 0.9)])
    [1, 0, 3]
    """
    indices: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not indices or points[i][1] > points[indices[-1]][1] or points[i] == points[indices[-1]]:
            indices.append(i)
    return indices
