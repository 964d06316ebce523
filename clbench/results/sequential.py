"""A sequential paired t test with an interim analysis after each seed.

The test is exact for normally distributed differences, whenever one stops.

Let d(1), d(2), ... be the differences of the seeds. The t of the first n differences is analyzed for each n from
`first` to `most`. A difference is significant at level a if at some interim analysis the p of a single t test is at
most q * weight(n, most). q is chosen so that two equal methods differ significantly at any analysis with probability a.

t depends only on r(n) = S(n) / sqrt(n Q(n)), where S is the sum and Q the sum of squares. If there is no difference,
r(n + 1) = (sqrt(n) r(n) cos u + sin u) / sqrt(n + 1), where tan(u) sqrt(n) has a t distribution with n degrees of
freedom and is independent of the past. So the probability that t crosses a boundary is a series of integrals in one
dimension: Jennison & Turnbull 1991, Exact calculations for sequential t, chi-squared and F tests, Biometrika 78(1).

The smallest a at which a difference is significant so far is its sequential p (Liu & Anderson 2008). It can only fall,
so Holm's rule may correct it at every analysis (Maurer & Bretz 2013). The values that a test at level 5% does not
reject form a repeated confidence interval (Jennison & Turnbull 1989), which covers all analyses together.
`benchmarks/until_decided.py` simulates the rate of false claims and the number of seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from clbench.experiment.until import UntilDecided
from clbench.results.items import Crossed
from clbench.results.stats import ALPHA, LEVEL, ROUNDING, Interval, mean_interval, smallest_p, t_quantile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

NODES, GRID = 24, 240  # sizes of the integrals: with twice as many, probabilities change by less than 1 %
SMALLEST = 1e-8  # smallest q for which the probability is integrated; below it, it is proportional to q
PER_DECADE = 2  # values of q per decade, between which the probability is interpolated


class InterimAnalysis(NamedTuple):
    """An interim analysis of a series: its number of seeds and the sequential p."""

    seeds: int
    p: float


def weight(seeds: int, most: int) -> float:
    """Return the weight of an interim analysis: its share of the largest p.

    The weight rises up to a third of the seeds and falls from half of the seeds on. With 3 or 4 seeds even a large
    difference gives a small t, so these analyses get little weight. After half of the seeds, most differences that can
    be significant already are. `benchmarks/until_decided.py` compares these weights with equal ones.
    """
    u = seeds / most
    return min(1.0, 3 * u) ** 2 * min(1.0, 1 / (2 * u))


def p_by_look(differences: Sequence[Sequence[float]] | Floats, first: int) -> Floats:
    """Return p of the paired t test of the first n differences of each series, for n from `first` on.

    Args:
        differences: (series, seeds), with at least `first` seeds.
        first: the smallest n, at least 2.

    As in `clbench.results.paired.paired_t_p`, differences that are all equal have the p of the sign-flip test.
    """
    import numpy as np
    from scipy.special import stdtr

    series = np.asarray(differences, dtype=np.float64)
    n = np.arange(1, series.shape[1] + 1)
    offsets = series - series[:, :1]  # otherwise rounding errors of the squares would hide a small deviation
    mean_offset = offsets.cumsum(axis=1) / n
    squares = np.maximum((offsets**2).cumsum(axis=1) - n * mean_offset**2, 0.0)[:, first - 1:]
    mean, n = (series[:, :1] + mean_offset)[:, first - 1:], n[first - 1:]
    deviation = np.sqrt(squares / (n - 1))
    constant = deviation <= ROUNDING
    p = 2 * stdtr(n - 1, -np.abs(mean) * np.sqrt(n) / np.where(constant, 1.0, deviation))
    flips = np.array([smallest_p(int(k)) for k in n])
    result: Floats = np.where(constant, np.where(np.abs(mean) <= ROUNDING, 1.0, flips), p)
    return result


def smallest_weighted_p(differences: Sequence[Sequence[float]] | Floats, rule: UntilDecided) -> Floats:
    """Return p / weight of each interim analysis of each series. Smaller values are stronger evidence."""
    import numpy as np

    series = np.asarray(differences, dtype=np.float64)[:, :rule.most]
    weights = np.array([weight(n, rule.most) for n in range(rule.first, series.shape[1] + 1)])
    result: Floats = p_by_look(series, rule.first) / weights
    return result


def find_strongest_analysis(differences: Sequence[float], rule: UntilDecided,
                            ps: Sequence[float] | None = None) -> InterimAnalysis | None:
    """Return the interim analysis with the strongest evidence, or None if there are too few seeds for the first one.

    Seeds after the first `rule.most` do not count.

    Args:
        differences: one per seed, in the order of the seeds.
        rule: defines the interim analyses.
        ps: p-value of each interim analysis, if it is not that of the paired t test.
    """
    if len(differences) < rule.first:
        return None
    import numpy as np

    weighted_ps = (smallest_weighted_p([differences], rule)[0] if ps is None
                   else np.array([p / weight(rule.first + i, rule.most) for i, p in enumerate(ps)]))
    index = int(weighted_ps.argmin())
    return InterimAnalysis(rule.first + index, error_rate(float(weighted_ps[index]), rule))


def error_rate(q: float, rule: UntilDecided) -> float:
    """Return the probability, if there is no difference, that some interim analysis has p at most q * weight."""
    if q >= 1:
        return 1.0
    if q < SMALLEST:
        return q / SMALLEST * math.exp(float(_table(rule.first, rule.most)(math.log(SMALLEST))))
    return min(1.0, math.exp(float(_table(rule.first, rule.most)(math.log(q)))))


def critical(seeds: int, rule: UntilDecided, level: float = ALPHA) -> float:
    """Return the critical t of the interim analysis after that many seeds.

    Args:
        seeds: the number of seeds, from `rule.first` to `rule.most`.
        rule: defines the interim analyses.
        level: the significance level of all interim analyses together.
    """
    return -t_quantile(seeds - 1, threshold(level, rule) * weight(seeds, rule.most) / 2)


def repeated_interval(values: Sequence[float], rule: UntilDecided, crossed: Crossed | None = None) -> Interval:
    """Return the mean of values, one per seed, with its 95% repeated interval.

    There is no interval before the first interim analysis. With probability 95%, the intervals of all analyses contain
    the true mean, so one may stop at any time. Seeds after the first `rule.most` do not count. If there is an estimate
    over seeds and samples, its variance is used.
    """
    values = values[:rule.most]
    n, mean = len(values), fmean(values)
    if n < rule.first:
        return Interval(mean, None, None, n)
    if crossed:
        half = -t_quantile(crossed.df, threshold(1 - LEVEL, rule) * weight(n, rule.most) / 2) * crossed.variance**0.5
    else:
        half = critical(n, rule, 1 - LEVEL) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def interval_of(values: Sequence[float], rule: UntilDecided | None, crossed: Crossed | None = None) -> Interval:
    """Return the mean of values with its repeated interval, or with the usual interval if no rule added seeds."""
    if rule:
        return repeated_interval(values, rule, crossed)
    return crossed.interval if crossed else mean_interval(values)


def seeds_to_decide(differences: Sequence[float], rule: UntilDecided, family: int,
                    crossed: Crossed | None = None) -> int | None:
    """Estimate how many seeds would make a difference significant in its family if mean and variance do not change.

    Return at least one more seed than there are. Return None if `rule.most` seeds would not be enough or if nothing can
    be estimated.
    """
    n = len(differences)
    if n < 2 or max(map(abs, differences)) <= ROUNDING:
        return None
    mean, deviation = abs(fmean(differences)), stdev(differences)

    def is_enough(seeds: int) -> bool:
        if crossed or deviation <= ROUNDING:  # without a deviation, p is that of `p_by_look`
            p = crossed.with_seeds(seeds).p if crossed else smallest_p(seeds)
            return p <= threshold(ALPHA / family, rule) * weight(seeds, rule.most)
        return mean >= critical(seeds, rule, ALPHA / family) * deviation / math.sqrt(seeds)

    return next(filter(is_enough, range(max(n + 1, rule.first), rule.most + 1)), None)


def threshold(level: float, rule: UntilDecided) -> float:
    """Return the q whose chance is `level`. A difference is significant if p / weight of an analysis is at most q."""
    return _threshold(rule.first, rule.most, level)


@functools.cache
def _threshold(first: int, most: int, level: float) -> float:
    from scipy.optimize import brentq

    rule = UntilDecided(first=first, most=most)
    return math.exp(brentq(lambda log_q: math.log(error_rate(math.exp(log_q), rule) / level), math.log(level) - 12, 0.0,
                           xtol=1e-9))


@functools.cache
def _table(first: int, most: int) -> Callable[[float], Floats]:
    """Return an interpolation of log(chance(q)) as a function of log(q), for q from `SMALLEST` to 1."""
    import numpy as np
    from scipy.interpolate import PchipInterpolator

    decades = -math.log10(SMALLEST)
    qs = np.logspace(-decades, math.log10(0.5), round((decades + math.log10(0.5)) * PER_DECADE))
    chances = [crossing([_t(n, q * weight(n, most)) for n in range(first, most + 1)], first) for q in qs]
    interpolator: Callable[[float], Floats] = PchipInterpolator(np.log([*qs, 1.0]), np.log([*chances, 1.0]))
    return interpolator


def _t(seeds: int, p: float) -> float:
    return -t_quantile(seeds - 1, p / 2)


def crossing(boundary: Sequence[float], first: int, nodes: int = NODES, grid: int = GRID) -> float:
    """Return the probability, if there is no difference, that |t| reaches a boundary at any interim analysis.

    Args:
        boundary: a positive t for each number of seeds from `first` on.
        first: the number of seeds of the first analysis, at least 2.
        nodes: the number of nodes of the Gauss-Legendre quadrature over the next difference.
        grid: the number of values of t, evenly spaced in asinh(t). The probability is interpolated between them, from
            above.
    """
    import numpy as np
    from scipy.special import stdtr

    later: Floats | None = None  # for each t on the grid: the probability of crossing after this analysis
    current_grid = np.zeros(0)
    for n in range(first + len(boundary) - 2, first - 1, -1):
        next_grid, current_grid = current_grid, np.linspace(0.0, math.asinh(boundary[n - first]), grid)
        later = _next_look(np.sinh(current_grid), n, boundary[n + 1 - first], next_grid, later, nodes)
    total = 2 * float(stdtr(first - 1, -boundary[0]))
    if later is None:
        return total
    inside = np.diff(stdtr(first - 1, np.sinh(current_grid)))
    return total + float((inside * (later[1:] + later[:-1])).sum())


def _next_look(t: Floats, n: int, bound: float, then: Floats, later: Floats | None, nodes: int) -> Floats:
    """Return, for values of t of n seeds, the probability of crossing a boundary at n + 1 seeds or later.

    With a = sqrt(n) r: r(n + 1) sqrt(n + 1) = sqrt(1 + a^2) sin(v), and v = u + atan(a) lies within pi / 2 of atan(a).
    The next t is within the boundary for |v| <= s. It is also within it for v >= pi - s, because the new difference is
    then so large that t falls again.
    """
    import numpy as np
    from scipy.special import betaln, stdtr

    a = t * np.sqrt(n / (n - 1 + t * t))
    shift, size = np.arctan(a), np.sqrt((1 + a * a) / (n + 1))  # size scales r(n + 1)
    low, high = shift - math.pi / 2, shift + math.pi / 2
    s = np.arcsin(np.minimum(1.0, bound / math.sqrt(n + bound * bound) / size))
    above = [stdtr(n, -math.sqrt(n) * np.tan(np.minimum(v - shift, math.pi / 2))) for v in (s, math.pi - s)]
    below = np.where(-s > low, stdtr(n, -math.sqrt(n) * np.tan(np.minimum(s + shift, math.pi / 2))), 0.0)
    crossed: Floats = below + np.maximum(above[0] - above[1], 0.0)
    if later is None:
        return crossed
    x, share = np.polynomial.legendre.leggauss(nodes)
    for start, end in ((np.maximum(low, -s), np.minimum(high, s)), (np.minimum(math.pi - s, high), high)):
        half = np.maximum(end - start, 0.0)[:, None] / 2
        v = start[:, None] + half * (1 + x)
        density = np.maximum(np.cos(v - shift[:, None]), 0.0) ** (n - 1) * half * share * math.exp(-betaln(n / 2, 0.5))
        r = np.minimum(np.abs(size[:, None] * np.sin(v)), 1 - 1e-15)
        crossed = crossed + (density * np.interp(np.arcsinh(r * np.sqrt(n / (1 - r * r))), then, later)).sum(axis=1)
    return crossed
