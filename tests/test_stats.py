import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.errors import ClbenchError
from clbench.stats import mean_interval, welch_half_width


def test_three_values_worked_by_hand():
    over = mean_interval([1.0, 2.0, 3.0])
    assert over.mean == 2.0
    assert over.n == 3
    assert over.half_width == pytest.approx(4.30265273 * 1.0 / math.sqrt(3), rel=1e-7)  # t(2, 0.975) of any table


def test_the_level_sets_the_quantile():
    assert mean_interval([0.0, 2.0], level=0.90).half_width == pytest.approx(6.31375151 * math.sqrt(2) / math.sqrt(2))


def test_one_seed_has_no_interval():
    over = mean_interval([0.7])
    assert (over.mean, over.half_width, over.n) == (0.7, None, 1)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5, 0.5, 0.5]).half_width == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-10, 10))
def test_shifting_the_values_shifts_the_mean_only(values, shift):
    before, after = mean_interval(values), mean_interval([v + shift for v in values])
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.half_width == pytest.approx(before.half_width, abs=1e-6)


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=30, max_size=40))
def test_with_many_seeds_it_comes_close_to_the_normal_interval(values):
    normal = 1.959964 * statistics.stdev(values) / math.sqrt(len(values))
    assert normal <= mean_interval(values).half_width + 1e-12
    assert mean_interval(values).half_width <= 1.05 * normal + 1e-12


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_values_and_values_that_are_not_finite_are_errors(values):
    with pytest.raises(ClbenchError, match="mean"):
        mean_interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_in_per_cent_is_an_error(level):
    with pytest.raises(ClbenchError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], level=level)


def test_welch_agrees_with_scipys_interval():
    from scipy.stats import ttest_ind

    a, b = [87.1, 90.2, 84.9, 91.3], [80.5, 88.0, 86.1, 79.9, 90.4, 83.3]
    errors = [(statistics.stdev(values) / math.sqrt(len(values)), len(values)) for values in (a, b)]
    interval = ttest_ind(a, b, equal_var=False).confidence_interval(0.99)
    assert welch_half_width(*errors, level=0.99) == pytest.approx((interval.high - interval.low) / 2, rel=1e-12)


def test_welch_against_a_mean_without_spread_is_students_interval():
    values = [1.0, 2.0, 4.0]
    error = statistics.stdev(values) / math.sqrt(3)
    assert welch_half_width((error, 3), (0.0, 20)) == pytest.approx(mean_interval(values).half_width, rel=1e-12)
    assert welch_half_width((0.0, 3), (0.0, 20)) == 0


def test_welch_needs_two_values_on_both_sides():
    with pytest.raises(ClbenchError, match="at least two"):
        welch_half_width((0.1, 5), (0.1, 1))
