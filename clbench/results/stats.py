"""Statistics over seeds and over settings: intervals, paired tests, corrections, ranks.

Functions import numpy and scipy themselves, because importing scipy.stats takes longer than the rest of a report.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from clbench.core.errors import ClbenchError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEVEL = 0.95  # level of the confidence intervals of means
ALPHA = 0.05  # a difference is significant if its corrected p is not above this
FEW = 8  # with fewer seeds, intervals and tests are Student's t
RESAMPLES = 99_999  # largest number of bootstrap resamples
EXACT_TO = 16  # up to this many seeds, all 2^n sign flips are counted; beyond, as many random ones as for this number
BINS = 1000  # of the histogram of resampled means
IN_CACHE = 1 << 18  # numbers in one step of the sign flips, which fit into the cache
ROUNDING = 1e-12  # values that differ by no more than this count as equal


@dataclass(frozen=True)
class Interval:
    """A mean over n values with its confidence interval, which is None if n = 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Return half the width. The mean is the middle of a Student t interval, and near the middle of a BCa one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Ranks:
    """The ranks of methods over settings. 1 is the best; methods with equal scores share the mean of their ranks."""

    ranks: tuple[tuple[float, ...], ...]  # [setting][method]
    average: tuple[float, ...]  # average rank of each method
    p: float  # p-value of Friedman's test that all methods are equal
    critical: float  # smallest distance of average ranks that is significant at ALPHA


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values (one per seed) with its 95 % confidence interval.

    For fewer than 8 values, it is the Student t interval with half width t(n - 1, 0.975) * s / sqrt(n), where s is the
    sample standard deviation (divisor n - 1). From 8 values on, it is the BCa bootstrap interval at an expanded level
    (`_bca`). If all values are equal, the interval has width 0, because BCa is undefined.

    Raises:
        ClbenchError: no values, or a value that is not finite.
    """
    if not values:
        raise ClbenchError("a mean needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ClbenchError("a mean over seeds needs finite values; leave out trials that diverged")
    if len(values) >= FEW and max(values) - min(values) > ROUNDING:
        return _bca(values)
    return t_interval(values)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of independent values with its Student t interval; a single value has none."""
    n, mean = len(values), fmean(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = t_quantile(n - 1, (1 + level) / 2) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@functools.cache
def t_quantile(df: float, p: float) -> float:
    """Return a quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def half_width(error: float, df: float) -> float:
    """Return half the width of the 95 % interval of an estimate with a standard error on `df` degrees of freedom."""
    return t_quantile(df, (1 + LEVEL) / 2) * error


def welch_half_width(first: tuple[float, int], second: tuple[float, int], level: float = 0.95) -> float:
    """Return the half width of Welch's interval for the difference of two means.

    Args:
        first: the standard error of one mean and its number of values.
        second: likewise for the other mean.
        level: the level of the interval.

    Raises:
        ClbenchError: a number of values below 2, which has no standard error.

    Source: Welch 1947, with the Welch-Satterthwaite degrees of freedom.
    """
    if min(first[1], second[1]) < 2:
        raise ClbenchError("a standard error needs at least two values")
    variance = first[0] ** 2 + second[0] ** 2
    if variance == 0:
        return 0.0
    df = variance**2 / sum(error**4 / (n - 1) for error, n in (first, second))
    return t_quantile(df, (1 + level) / 2) * math.sqrt(variance)


def _bca(values: Sequence[float]) -> Interval:
    """Return the mean of values that are not all equal with its BCa bootstrap interval at the expanded level.

    BCa: Efron 1987, Better bootstrap confidence intervals. Its ends are quantiles of the resampled means, whose
    deviation is too small by sqrt((n - 1) / n) and which lack the tails of t. So the normal quantile of the level is
    replaced by that of Hesterberg's expanded percentile interval, sqrt(n / (n - 1)) * t(n - 1): Hesterberg 2015, What
    teachers should know about the bootstrap, The American Statistician 69(4). `scipy.stats.bootstrap` at that level
    differs only in the resamples: with 8 seeds, it would need many to resolve tails of 0.1 %. Here, the 6,435
    weighted resamples are all that exist.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    n, mean = len(values), fmean(values)
    offsets = np.asarray(values) - mean
    counts, weights = _resamples(n)
    means = counts @ offsets / n
    rounding = 1e-9 * np.abs(offsets).max()  # means this close to the mean count as equal to it, half of them as below
    bias = ndtri(weights[means < -rounding].sum() + weights[np.abs(means) <= rounding].sum() / 2)
    acceleration = (offsets**3).sum() / (6 * (offsets**2).sum() ** 1.5)
    quantile = math.sqrt(n / (n - 1)) * t_quantile(n - 1, (1 + LEVEL) / 2)
    z = bias + np.array([-quantile, quantile])
    probabilities = ndtr(bias + z / (1 - acceleration * z))
    low, high = (mean + end for end in _quantiles(means, weights, probabilities.tolist()))
    return Interval(mean, low, high, n)


def _quantiles(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64],
               probabilities: Sequence[float]) -> list[float]:
    """Return, for each probability, the smallest value up to which the weights of values sum to it.

    Only the values in one bin of a histogram are sorted, which takes a fifth of the time of sorting all.
    """
    import numpy as np

    least, largest = values.min(), values.max()
    bins = ((values - least) * (BINS / (largest - least))).astype(np.intp)
    sums = np.bincount(bins, weights).cumsum()
    quantiles = []
    for probability in probabilities:
        index = min(int(np.searchsorted(sums, probability)), len(sums) - 1)  # all weights may sum to just below 1
        inside = bins == index
        order = values[inside].argsort()
        sums_inside = weights[inside][order].cumsum() + (sums[index - 1] if index else 0.0)
        place = min(int(np.searchsorted(sums_inside, probability)), len(order) - 1)
        quantiles.append(float(values[inside][order[place]]))
    return quantiles


@functools.cache
def _resamples(n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how often each resample contains each of n values (resamples, n), and the resamples' probabilities.

    For up to 10 values, these are all resamples, at most 92,378. For more values, they are 99,999 random ones, which
    are always the same.
    """
    import numpy as np

    if math.comb(2 * n - 1, n) > RESAMPLES:
        random_counts = np.random.default_rng(0).multinomial(n, [1 / n] * n, RESAMPLES)
        return random_counts.astype(np.float64), np.full(RESAMPLES, 1 / RESAMPLES)
    multisets = itertools.combinations_with_replacement(range(n), n)
    choices = np.fromiter(itertools.chain.from_iterable(multisets), np.int8).reshape(-1, n)
    counts = np.stack([(choices == value).sum(axis=1) for value in range(n)], axis=1)
    orders = np.array([math.factorial(k) for k in range(n + 1)])
    return counts.astype(np.float64), orders[n] / orders[counts].prod(axis=1) / float(n) ** n


def sign_flip_p(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the two-sided p-value of each series of paired differences, all of one length n, by flipping signs.

    If two methods are equal, a difference is as likely as its negative. p is the share of all 2^n sign choices whose
    sum is at least as far from 0 as the observed sum. It is exact up to n = 16. For larger n, 2^15 random choices and
    the observed one are used. Source: Fisher 1935, The Design of Experiments, section 21.
    `scipy.stats.permutation_test` gives the same p but took 4 s for 45 series of 16, while this took 0.07 s.
    """
    import numpy as np

    series = np.asarray(differences, dtype=np.float64)
    n = series.shape[1]
    exact = n <= EXACT_TO
    signs = _all_signs(n) if exact else _some_signs(n)
    rounding = 1e-10 * np.abs(series).sum(axis=1)  # sums that differ only by rounding count as equal
    observed = np.abs(series.sum(axis=1)) - rounding
    counts = np.zeros(len(series), dtype=np.int64)
    for block in np.array_split(signs, max(1, len(signs) * len(series) // IN_CACHE)):
        sums = block @ series.T
        counts += (np.abs(sums, out=sums) >= observed).sum(axis=0)
    return [float(p) for p in (counts / len(signs) if exact else (counts + 1) / (len(signs) + 1))]


@functools.cache
def _some_signs(n: int) -> npt.NDArray[np.float64]:
    """Return random choices of n signs, as many as there are for n = 16 minus the observed one; always the same."""
    import numpy as np

    return np.random.default_rng(0).choice((-1.0, 1.0), (2 ** (EXACT_TO - 1) - 1, n))


@functools.cache
def _all_signs(n: int) -> npt.NDArray[np.float64]:
    """Return every choice of n signs up to a common sign (2^(n - 1), n), which does not change |sum|."""
    import numpy as np

    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
    return (1 - 2 * bits).astype(np.float64)


def smallest_p(n: int) -> float:
    """Return the smallest p that `sign_flip_p` can give for n seeds.

    >>> smallest_p(3), smallest_p(6)
    (0.25, 0.03125)
    """
    return 2.0 ** (1 - min(n, EXACT_TO))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for a family of tests by Holm's step-down rule, in their order; at most 1.

    The k-th smallest of m p-values (k from 0) is multiplied by m - k, and no corrected value is smaller than the one
    before it. So the probability of any false rejection is at most ALPHA. Source: Holm 1979, A simple sequentially
    rejective multiple test procedure. (scipy has no Holm correction.)

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, previous = [0.0] * len(ps), 0.0
    for k, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        previous = corrected[i] = max(previous, min(1.0, (len(ps) - k) * ps[i]))
    return corrected


def effect_size(differences: Sequence[float]) -> float | None:
    """Return Hedges' g of paired differences, J(n - 1) * mean / s; None if they are all equal or only one.

    Cohen's d_z = mean / s is biased upward for small n. J(m) = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)) corrects
    the bias. J(1) is 0, so two differences have no effect size. Source: Hedges 1981, equation 6e; for paired
    differences Lakens 2013.
    """
    n = len(differences)
    if n < 3 or max(differences) - min(differences) <= ROUNDING:
        return None
    m = n - 1
    log_j = math.lgamma(m / 2) - math.log(m / 2) / 2 - math.lgamma((m - 1) / 2)
    return math.exp(log_j) * fmean(differences) / stdev(differences)


def rank_methods(scores: Sequence[Sequence[float]]) -> Ranks:
    """Rank methods by their scores [setting][method], higher is better, and test the ranks.

    Friedman's test (chi-squared, corrected for ties, by scipy) decides whether any method differs. If so, average ranks
    differ significantly if their distance is at least Nemenyi's critical difference q sqrt(k (k + 1) / (6 N)), for k
    methods and N settings. Source: Demsar 2006, Statistical comparisons of classifiers over multiple data sets.

    Args:
        scores: at least two settings of at least three methods.
    """
    import numpy as np
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.asarray(scores, dtype=np.float64)
    settings, methods = table.shape
    ranks = rankdata(-np.round(table, 12), axis=1)  # means that are equal but for rounding share a rank
    ties = bool((ranks == ranks[:, :1]).all())
    p = 1.0 if ties else float(friedmanchisquare(*ranks.T).pvalue)
    q = float(studentized_range.ppf(1 - ALPHA, methods, np.inf)) / math.sqrt(2)
    return Ranks(tuple(tuple(map(float, row)) for row in ranks), tuple(map(float, ranks.mean(axis=0))), p,
                 q * math.sqrt(methods * (methods + 1) / (6 * settings)))


def settings_needed(methods: int) -> int:
    """Return the smallest number of settings with which Friedman's test of `methods` methods can be significant."""
    from scipy.stats import chi2

    return next(n for n in range(2, 100) if chi2.sf(n * (methods - 1), methods - 1) <= ALPHA)
