"""Which test decides on paired differences, fixed before they are looked at, and what is known of its mistakes.

Sign flips suppose only that a difference is as likely as its negative, but with n seeds their p is at least 2^(1 - n):
in a family of m tests they can show something only where m * 2^(1 - n) is at most 5 %. Elsewhere the paired t test
decides, which supposes normal differences. Numbers of seeds and tests alone choose, never the results.
`benchmarks/false_claims.py` simulates how often either claims a difference that is not there.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean, stdev
from typing import Literal

from clbench.results.stats import ALPHA, ROUNDING, seeds_needed, sign_flip_p, smallest_p

Test = Literal["flips", "t", "sequential"]  # the last where seeds were added until decided: `sequential`
MOST_SEEDS = 100  # more are not worth naming


def deciding_test(seeds: int, family: int) -> Test | None:
    """Return the test that decides on a pair with so many seeds in a family of so many tests; None for one seed.

    >>> deciding_test(6, 1), deciding_test(6, 36), deciding_test(1, 1)
    ('flips', 't', None)
    """
    if seeds < 2:
        return None
    return "flips" if family * smallest_p(seeds) <= ALPHA else "t"


def paired_t_p(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the two-sided p-value of the paired t test of each series of differences, all of one length n >= 2.

    Differences that are all equal have no deviation, from which t could tell anything: their p is that of sign flips,
    which where t decides is never small enough to show a difference. Source: Student 1908.
    """
    import numpy as np
    from scipy.special import stdtr

    found = np.asarray(differences, dtype=np.float64)
    n = found.shape[1]
    deviation = found.std(axis=1, ddof=1)
    alike = deviation <= ROUNDING
    t = np.abs(found.mean(axis=1)) * math.sqrt(n) / np.where(alike, 1.0, deviation)
    p = 2 * stdtr(n - 1, -t)
    p[alike] = np.where(np.abs(found[alike, 0]) <= ROUNDING, 1.0, smallest_p(n))
    return [float(value) for value in p]


def p_values(differences: Sequence[Sequence[float]], family: int) -> list[float]:
    """Return the p-value of each series of one length by the test that decides in a family of so many; 1 for one seed.

    They are not corrected; `clbench.results.stats.holm` corrects them.
    """
    test = deciding_test(len(differences[0]), family)
    if test is None:
        return [1.0] * len(differences)
    return sign_flip_p(differences) if test == "flips" else paired_t_p(differences)


def seeds_to_show(differences: Sequence[float], family: int) -> int | None:
    """Return about how many seeds would show a difference in its family if mean and deviation stay as they are.

    At least one more than there are. Where there is no deviation to reckon with (a single seed, or differences that are
    all equal) as many as sign flips need. None where no `MOST_SEEDS` would do.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or (deviation := stdev(differences)) <= ROUNDING:
        return None if n > 1 and abs(differences[0]) <= ROUNDING else seeds_needed(family)
    effect = abs(fmean(differences)) / deviation
    if stdtr(MOST_SEEDS - 1, -effect * math.sqrt(MOST_SEEDS)) * 2 * family > ALPHA:
        return None
    low, high = n, MOST_SEEDS  # more seeds show more
    while high - low > 1:
        middle = (low + high) // 2
        shown = 2 * family * float(stdtr(middle - 1, -effect * math.sqrt(middle))) <= ALPHA
        low, high = (low, middle) if shown else (middle, high)
    return high


def saturated_rate(seeds: int) -> float:
    """Return how often a family decided by t made a false claim in simulation where one method was saturated.

    The worst family of those simulated with so many seeds, or with the next fewer of which there are any.
    """
    rates = {int(n): float(rate) for n, rate in _simulated()["saturated"].items()}
    return rates[max((n for n in rates if n <= seeds), default=min(rates))]


@functools.cache
def _simulated() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((files("clbench.results") / "false_claims.json").read_text())
    return found
