"""Statistics over seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from clbench.errors import ClbenchError


@dataclass(frozen=True)
class Interval:
    """A mean with the half width of its confidence interval; None where n = 1 gives no interval."""

    mean: float
    half_width: float | None
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of independent values (one per seed) and its Student t interval.

    half width = t(n - 1, (1 + level) / 2) * s / sqrt(n), with s the sample deviation (divisor n - 1).

    Raises:
        ClbenchError: no values, a value that is not finite, or a level outside (0, 1).
    """
    if not values:
        raise ClbenchError("a mean needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ClbenchError("a mean over seeds needs finite values; leave out trials that diverged")
    if not 0 < level < 1:
        raise ClbenchError(f"a confidence level lies between 0 and 1, got {level}")
    n = len(values)
    half = _t_quantile(n - 1, (1 + level) / 2) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(fmean(values), half, n)


@functools.cache
def _t_quantile(df: float, p: float) -> float:
    from scipy.special import stdtrit  # here, because importing scipy takes longer than a whole report

    return float(stdtrit(df, p))


def welch_half_width(first: tuple[float, int], second: tuple[float, int], level: float = 0.95) -> float:
    """Return the half width of Welch's interval for the difference of two means.

    Args:
        first: the standard error of one mean and the number of values behind it.
        second: those of the other.
        level: of the interval.

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
    return _t_quantile(df, (1 + level) / 2) * math.sqrt(variance)
