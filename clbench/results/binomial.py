"""The test-set sampling error of an accuracy, from the number of test samples."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson_interval(accuracy: float, samples: int) -> tuple[float, float]:
    """Return the two-sided 95 % interval of an accuracy in [0, 1] that was measured on independent test samples.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference. (scipy supports only
    integer numbers of correct samples, but a mean over seeds is not an integer.)

    >>> [round(end, 4) for end in wilson_interval(0.9, 100)]
    [0.8256, 0.9448]
    """
    share = Z**2 / samples
    middle = (accuracy + share / 2) / (1 + share)
    half = Z / (1 + share) * math.sqrt(accuracy * (1 - accuracy) / samples + share / (4 * samples))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference_error(first: float, second: float, samples: int) -> float:
    """Return the standard error of the difference of two accuracies that were measured on so many test samples each.

    It assumes independent test sets. Methods share a test set and mostly err on the same samples, so the true error is
    smaller. Only the answers to each sample show by how much.
    """
    return math.sqrt((first * (1 - first) + second * (1 - second)) / samples)
