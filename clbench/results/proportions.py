"""The difference of two proportions of the same items: Tango's score test and interval.

Source: Tango 1998, Equivalence test and confidence interval for the difference in proportions for the paired-sample
design, Statistics in Medicine 17. The interval is the inverted test, so both always agree. It needs no correction for
few items, and has a width if no item changed.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from clbench.results.stats import LEVEL

_STEPS = 60  # halvings of an interval of width 2


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
    # Maximum likelihood of the probability to lose an item, given the difference.
    b = (2 * items - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    losing = (math.sqrt(max(b * b - 8 * items * c, 0.0)) - b) / (4 * items)
    variance = items * (2 * losing + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def score_interval(gained: int, lost: int, items: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the ends of the interval of the difference of the proportions, second minus first."""
    limit = NormalDist().inv_cdf((1 + level) / 2)
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
