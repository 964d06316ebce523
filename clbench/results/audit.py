"""The losses of a fine-tuned language model: paired differences to its base, with intervals and verdicts.

A comparison is one metric of one file under one model, compared with the base or with another model in its place. It is
*lost* if the 95% interval of the difference lies beyond the margin in the bad direction, and the test of this stays
significant after Holm's correction over all comparisons of the audit. It is *kept* if the interval ends within the
margin, or on the better side of it. Otherwise it is *inconclusive*.

The margin is the smallest change that matters, or three times the noise floor if that is larger. The noise floor is how
much the value of the base, or of that other model, changes with another batch size and precision.

The difference of two proportions of the same items has Tango's score test and interval (Tango 1998, Equivalence test
and confidence interval for the difference in proportions for the paired-sample design, Statistics in Medicine 17). The
interval is the inverted test, so both always agree. It needs no correction for few items, and has a width if no item
changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev
from typing import Literal

from clbench.core.objective import EXACT, NLL, Metric
from clbench.results.stats import ALPHA, LEVEL, holm, t_interval

Verdict = Literal["kept", "lost", "inconclusive"]
Role = Literal["new", "task", "general"]
MARGINS = {NLL.name: 0.05, EXACT.name: 0.01}  # nats per token, fraction of items
FLOORS = 3  # a margin is at least this multiple of the noise floor
_STEPS = 60  # halvings of an interval of width 2


@dataclass(frozen=True)
class FileScores:
    """The scores of a file's items: their nll, and whether they match exactly (none for plain texts)."""

    nll: tuple[float, ...]
    exact: tuple[bool, ...] = ()

    def values(self, metric: Metric) -> tuple[float, ...]:
        """Return the values of a metric, one per item; empty if the file does not have the metric."""
        return tuple(map(float, self.exact)) if metric == EXACT else self.nll


@dataclass(frozen=True)
class Comparison:
    """The values of a metric on a file under one model, and under what it is compared with."""

    model: str
    file: str
    metric: Metric
    items: int
    base: float  # the value of what the model is compared with (`Audit.compared_with`)
    value: float
    difference: float  # value minus base
    low: float | None  # ends of the 95% interval of the difference; None with a single item
    high: float | None
    floor: float
    margin: float
    p: float  # two-sided p-value of the test that the model is worse by more than the margin
    corrected_p: float = 1.0
    verdict: Verdict = "inconclusive"


def noise_floor(scores: FileScores, again: FileScores, metric: Metric) -> float:
    """Return how much a mean changes if the same model is evaluated again in another way."""
    first, second = scores.values(metric), again.values(metric)
    return abs(fmean(second) - fmean(first))


def margin(floor: float, metric: Metric, margins: Mapping[str, float] = MARGINS) -> float:
    """Return the change below which a difference does not matter."""
    return max(FLOORS * floor, margins[metric.name])


def compare(model: str, file: str, metric: Metric, base: FileScores, scores: FileScores, floor: float,
            margins: Mapping[str, float] = MARGINS) -> Comparison:
    """Return a comparison without its verdict, which depends on all comparisons (`judge`)."""
    limit = margin(floor, metric, margins)
    base_values, model_values = base.values(metric), scores.values(metric)
    differences = [b - a for a, b in zip(base_values, model_values, strict=True)]
    if metric == EXACT:
        gained, lost = differences.count(1.0), differences.count(-1.0)
        low, high = score_interval(gained, lost, len(differences))
        z = score_z(gained, lost, len(differences), -limit)  # negative if more is lost
        p = min(1.0, 2 * NormalDist().cdf(z))
        interval: tuple[float | None, float | None] = low, high
    else:
        mean_interval = t_interval(differences)
        interval = mean_interval.low, mean_interval.high
        p = worse_p([metric.worsening(d) for d in differences], limit)
    return Comparison(model, file, metric, len(differences), fmean(base_values), fmean(model_values),
                      fmean(differences), *interval, floor, limit, p)


def worse_p(worsenings: Sequence[float], limit: float) -> float:
    """Return the p-value, two-sided, of the t-test that a mean is above a limit; 1 for a single value."""
    from scipy.special import stdtr

    n = len(worsenings)
    if n < 2:
        return 1.0
    mean, deviation = fmean(worsenings), stdev(worsenings)
    if deviation == 0:
        return 0.0 if mean > limit else 1.0
    return min(1.0, 2 * float(stdtr(n - 1, -(mean - limit) * math.sqrt(n) / deviation)))


def judge(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with their verdicts; the p-values are corrected over all of them."""
    return [replace(comparison, corrected_p=p, verdict=_verdict(comparison, p))
            for comparison, p in zip(comparisons, holm([comparison.p for comparison in comparisons]), strict=True)]


def _verdict(one: Comparison, corrected_p: float) -> Verdict:
    if one.low is None or one.high is None:
        return "inconclusive"
    best, worst = sorted((one.metric.worsening(one.low), one.metric.worsening(one.high)))
    if best > one.margin and corrected_p <= ALPHA:
        return "lost"
    return "kept" if worst <= one.margin else "inconclusive"


def unchanged_reach(items: int) -> float:
    """Return how far the interval of exact match reaches if no item changed.

    >>> round(unchanged_reach(100), 3)
    0.037
    """
    return score_interval(0, 0, items)[1]


@dataclass(frozen=True)
class AuditedFile:
    """A file of an audit."""

    name: str
    role: Role
    items: int
    notes: tuple[str, ...] = ()  # remarks on texts that were cut


@dataclass(frozen=True)
class DialPoint:
    """An adapter at one scale: its comparisons, and whether losses on other files stay within the margins."""

    scale: float
    comparisons: tuple[Comparison, ...]
    within: bool


@dataclass(frozen=True)
class Audit:
    """The result of `clbench forget`."""

    base: str
    files: tuple[AuditedFile, ...]
    models: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    dial: tuple[DialPoint, ...] = ()  # in the order of scales
    settings: tuple[tuple[str, str], ...] = ()
    scores: tuple[tuple[str, str, str], ...] = ()  # model, file, and where the scores of its items are
    compared_with: str = "base"  # what the models are compared with: the base, or the name of an adapter or model

    @property
    def lost(self) -> list[Comparison]:
        """Return the comparisons that are lost."""
        return [comparison for comparison in self.comparisons if comparison.verdict == "lost"]

    @property
    def largest_scale(self) -> float | None:
        """Return the largest scale up to which the losses of all scales stay within the margins."""
        largest = None
        for point in self.dial:
            if not point.within:
                break
            largest = point.scale
        return largest


def stays_within(comparisons: Sequence[Comparison]) -> bool:
    """Return whether losses stay within the margins: the whole interval of nll, and the mean of exact match.

    The interval of exact match is wide if there are few items, even if none changed, so its mean is used.
    """
    for comparison in comparisons:
        if comparison.metric == EXACT:
            if comparison.metric.worsening(comparison.difference) > comparison.margin:
                return False
        elif comparison.verdict != "kept":
            return False
    return True


def score_z(gained: int, lost: int, items: int, difference: float) -> float:
    """Return the score statistic of the hypothesis that the proportions differ by `difference`.

    Args:
        gained: items that are right in the second sample only.
        lost: items that are right in the first sample only.
        items: all items.
        difference: second minus first proportion, between -1 and 1.

    >>> round(score_z(0, 10, 100, 0.0), 4)  # McNemar's statistic
    -3.1623
    """
    excess = gained - lost - items * difference
    # Maximum-likelihood estimate of the probability of losing an item, given the difference.
    b = (2 * items - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    loss_probability = (math.sqrt(max(b * b - 8 * items * c, 0.0)) - b) / (4 * items)
    variance = items * (2 * loss_probability + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def score_interval(gained: int, lost: int, items: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of the difference of the proportions, second minus first."""
    limit = NormalDist().inv_cdf((1 + LEVEL) / 2)
    mean = (gained - lost) / items

    def end(outer: float) -> float:
        inside, outside = mean, outer
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            if abs(score_z(gained, lost, items, middle)) <= limit:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)
