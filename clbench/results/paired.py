"""Choose the test that compares two methods seed by seed, and estimate how many seeds it needs.

With fewer than `FEW` seeds, it is the paired t-test, which assumes normal differences. With more seeds, it is the
sign-flip test, which assumes only that a difference is as likely as its negative. If the smallest p-value of that test
cannot be significant in a family of that size, it is the t-test again. The choice depends only on the numbers of seeds
and tests, never on the results. If all seeds share their test samples and records say which were answered correctly,
`clbench.results.items` replaces both tests. Close to 100%, differences are skewed and t-tests err too often, so methods
with such accuracies are not tested. `benchmarks/error_rates.py` simulates the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from clbench.results.items import Crossed
from clbench.results.stats import ALPHA, FEW, ROUNDING, sign_flip_p, smallest_p

Test = Literal["flips", "t", "crossed", "sequential"]  # "sequential" if `--until decided` added seeds
MOST_SEEDS = 100  # larger numbers of needed seeds are not reported
NEAR_LIMIT = 3  # standard deviations over seeds; a mean accuracy that is closer to 100% is not tested


def deciding_test(seeds: int, family: int) -> Test | None:
    """Return the test of a pair with `seeds` seeds in a family of `family` tests; None for one seed.

    >>> deciding_test(8, 1), deciding_test(6, 1), deciding_test(8, 36), deciding_test(1, 1)
    ('flips', 't', 't', None)
    """
    if seeds < 2:
        return None
    return "flips" if seeds >= FEW and family * smallest_p(seeds) <= ALPHA else "t"


def near_limit(accuracies: Sequence[float]) -> bool:
    """Return whether the mean of accuracies, one per seed, is too close to 100% for a test.

    >>> near_limit([0.99, 0.97, 0.98]), near_limit([0.9, 0.91, 0.92]), near_limit([1.0, 1.0])
    (True, False, False)
    """
    return len(accuracies) > 1 and 1 - fmean(accuracies) < NEAR_LIMIT * stdev(accuracies) - ROUNDING


def paired_t_p(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the two-sided p-value of the paired t test of each series of differences, all of one length n >= 2.

    If all differences of a series are equal, their standard deviation is 0 and t is undefined. The p-value is then that
    of the sign-flip test, 2^(1-n) with n seeds.
    Source: Student 1908.
    """
    import numpy as np
    from scipy.special import stdtr

    series = np.asarray(differences, dtype=np.float64)
    n = series.shape[1]
    deviation = series.std(axis=1, ddof=1)
    constant = deviation <= ROUNDING
    t = np.abs(series.mean(axis=1)) * math.sqrt(n) / np.where(constant, 1.0, deviation)
    p = 2 * stdtr(n - 1, -t)
    p[constant] = np.where(np.abs(series[constant, 0]) <= ROUNDING, 1.0, smallest_p(n))
    return [float(value) for value in p]


def p_values(differences: Sequence[Sequence[float]], family: int) -> list[float]:
    """Return the p-value of each series by `deciding_test`; 1 for one seed. All series have the same length.

    The p-values are not corrected; `clbench.results.stats.holm` corrects them.
    """
    test = deciding_test(len(differences[0]), family)
    if test is None:
        return [1.0] * len(differences)
    return sign_flip_p(differences) if test == "flips" else paired_t_p(differences)


def seeds_to_show(differences: Sequence[float], family: int, crossed: Crossed | None = None) -> int | None:
    """Estimate how many seeds would make a difference significant in its family if mean and variance do not change.

    Return at least one more seed than there are. Return None if `MOST_SEEDS` would not be enough, or if nothing can be
    estimated (a single seed, or no difference on any seed).

    Args:
        differences: one per seed.
        family: the number of tests.
        crossed: the estimate over seeds and test samples, if the test is over both.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or max(map(abs, differences)) <= ROUNDING:
        return None
    mean, deviation = abs(fmean(differences)), stdev(differences)

    def is_significant(seeds: int) -> bool:
        if crossed:
            return family * crossed.with_seeds(seeds).p <= ALPHA
        if deviation <= ROUNDING:  # as in `paired_t_p`
            return family * smallest_p(seeds) <= ALPHA
        return family * 2 * float(stdtr(seeds - 1, -mean * math.sqrt(seeds) / deviation)) <= ALPHA

    if not is_significant(MOST_SEEDS):
        return None
    low, high = n, MOST_SEEDS  # bisection works, because more seeds give a smaller p
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_significant(middle) else (middle, high)
    return high
