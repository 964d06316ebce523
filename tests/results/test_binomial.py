import math
import random

import pytest

from clbench.results.items import Z, difference_error, wilson_interval


@pytest.mark.parametrize(("accuracy", "samples"), [(0.5, 12), (0.926, 121), (0.0, 20), (1.0, 2000)])
def test_the_ends_are_the_accuracies_that_a_score_test_would_just_not_reject(accuracy, samples):
    for end in wilson_interval(accuracy, samples):
        assert abs(accuracy - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / samples), abs=1e-8)


def test_about_95_of_100_intervals_hold_the_true_accuracy():
    draws = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high = wilson_interval(sum(draws.random() < 0.7 for _ in range(40)) / 40, 40)
        held += low <= 0.7 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_the_error_of_a_difference_is_that_of_two_independent_test_sets():
    draws = random.Random(0)
    found = [(sum(draws.random() < 0.9 for _ in range(50)) - sum(draws.random() < 0.6 for _ in range(50))) / 50
             for _ in range(2000)]
    mean = sum(found) / 2000
    assert difference_error(0.9, 0.6, 50) == pytest.approx(math.sqrt(sum((d - mean) ** 2 for d in found) / 1999),
                                                           rel=0.06)
