import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from clbench.core.errors import ClbenchError
from clbench.results import stats
from clbench.results.stats import effect_size, holm, mean_interval, rank_methods, sign_flip_p, welch_half_width


def test_three_values_worked_by_hand():
    over = mean_interval([1.0, 2.0, 3.0])
    assert over.mean == 2.0
    assert over.n == 3
    assert over.half_width == pytest.approx(4.30265273 * 1.0 / math.sqrt(3), rel=1e-7)  # t(2, 0.975) of any table


def test_one_seed_has_no_interval():
    over = mean_interval([0.7])
    assert (over.mean, over.half_width, over.n) == (0.7, None, 1)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5, 0.5, 0.5]).half_width == 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=4), st.floats(-10, 10))
def test_shifting_the_values_shifts_the_mean_only(values, shift):
    before, after = mean_interval(values), mean_interval([v + shift for v in values])
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.half_width == pytest.approx(before.half_width, abs=1e-6)


def expanded(n):
    """Return the normal quantile of the level by Hesterberg 2015: -Phi^-1 of his alpha'/2."""
    return math.sqrt(n / (n - 1)) * scipy_stats.t.ppf(0.975, n - 1)


def exact_bca(values):
    """Return the BCa interval from all n^n resamples, by Efron & Tibshirani 1993, equations 14.9-14.15."""
    n, mean = len(values), statistics.fmean(values)
    means = np.sort(np.mean(list(itertools.product(values, repeat=n)), axis=1))
    below, above = np.mean(means < mean - 1e-12), np.mean(means < mean + 1e-12)
    z0 = scipy_stats.norm.ppf((below + above) / 2)  # half of those equal to the mean count as below, as in scipy
    left_out = np.array([statistics.fmean(values[:i] + values[i + 1:]) for i in range(n)])
    off = left_out.mean() - left_out
    a = (off ** 3).sum() / (6 * (off ** 2).sum() ** 1.5)
    z = z0 + expanded(n) * np.array([-1, 1])
    return np.quantile(means, scipy_stats.norm.cdf(z0 + z / (1 - a * z)), method="inverted_cdf")


@pytest.mark.parametrize("values", [[0.91, 0.93, 0.9, 0.97, 0.915], [0.2, 0.21, 0.25, 0.4, 0.22, 0.205]])
def test_the_bca_interval_is_that_of_all_resamples(values):
    over = stats._bca(values)
    assert over.mean == statistics.fmean(values)
    assert [over.low, over.high] == pytest.approx(exact_bca(values), abs=1e-12)
    assert over.half_width == (over.high - over.low) / 2


@pytest.mark.parametrize("n", [8, 9, 20])
def test_it_is_the_interval_of_scipy_at_the_expanded_level(n):
    values = np.random.default_rng(n).exponential(size=n)
    level = 1 - 2 * scipy_stats.norm.cdf(-expanded(n))
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=99_999, confidence_level=level, method="BCa",
                                   rng=np.random.default_rng(1)).confidence_interval
    over = mean_interval(values.tolist())
    assert [over.low, over.high] == pytest.approx(list(theirs), abs=0.04 * (theirs.high - theirs.low))


def test_ten_values_use_all_resamples_so_that_a_far_value_gives_no_noise():
    values = [0.22, 0.48, 0.46, 0.74, 0.66, 0.62, 1.14, 6.41, 0.4, 0.97]
    level = 1 - 2 * scipy_stats.norm.cdf(-expanded(10))
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=400_000, confidence_level=level, method="BCa",
                                   batch=50_000, rng=np.random.default_rng(1)).confidence_interval
    assert mean_interval(values).half_width == pytest.approx((theirs.high - theirs.low) / 2, rel=0.02)


@given(st.integers(5, 12), st.floats(0.001, 1e6), st.floats(-1, 1))
def test_the_interval_follows_scale_shift_and_sign(n, scale, shift):
    values = np.random.default_rng(n).random(n)
    plain, moved = mean_interval(values.tolist()), mean_interval((scale * (values + shift)).tolist())
    assert [moved.low, moved.high] == pytest.approx([scale * (plain.low + shift), scale * (plain.high + shift)])
    if n <= 10:  # with all resamples
        turned = mean_interval((-values).tolist())
        assert [-turned.high, -turned.low] == pytest.approx([plain.low, plain.high])


def test_seven_seeds_have_a_student_t_interval_and_eight_another_one():
    values = [1.0, 2.0, 3.0, 9.0, 3.75, 2.5, 2.25]
    seven, eight = mean_interval(values), mean_interval([*values, 2.75])
    assert seven.half_width == pytest.approx(2.44691185 * statistics.stdev(values) / math.sqrt(7))  # t(6, 0.975)
    assert eight.half_width != pytest.approx(2.36462425 * statistics.stdev([*values, 2.75]) / math.sqrt(8), rel=0.01)
    assert eight.high - eight.mean > eight.mean - eight.low  # skewed as the values are


@pytest.mark.parametrize("values", [[0.5] * 7, [0.3, 0.1 + 0.2, 0.3, 0.3, 0.3], [0.0, 5e-324, 0.0, 0.0, 0.0]])
def test_many_values_that_are_equal_but_for_rounding_have_an_interval_of_no_width(values):
    assert mean_interval(values).half_width < 1e-12


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_values_and_values_that_are_not_finite_are_errors(values):
    with pytest.raises(ClbenchError, match="mean"):
        mean_interval(values)


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


@pytest.mark.parametrize(("differences", "p"), [
    ([0.1, 0.2, 0.3], 2 / 8), ([0.1, 0.2, -0.3], 1), ([0.1, 0.1, 0.1, -0.1], 10 / 16),
    ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32), ([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6], 2 / 64),
    ([0.1] * 5 + [-0.1], 14 / 64), ([0.1, 0.2, 0.0, 0.4], 4 / 16), ([0.0, 0.0, 0.0], 1), ([0.2], 1),
])
def test_sign_flips_counted_by_hand(differences, p):
    assert sign_flip_p([differences]) == [p]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.sampled_from([1.0, 0.1, 1 / 3]))
def test_sign_flips_agree_with_scipy(values, unit):
    expected = scipy_stats.permutation_test((np.asarray(values, dtype=float),), np.sum, permutation_type="samples",
                                            n_resamples=np.inf, vectorized=True)
    assert sign_flip_p([[v * unit for v in values]])[0] == pytest.approx(min(1.0, expected.pvalue))


def test_beyond_sixteen_seeds_signs_are_drawn_and_the_same_each_time():
    rows = [(np.random.default_rng(s).standard_normal(17) + 0.4).tolist() for s in range(3)]
    expected = [np.mean(np.abs(np.asarray(list(itertools.product((-1, 1), repeat=17))) @ row) >= abs(sum(row)) - 1e-9)
                for row in rows[:1]]
    assert sign_flip_p(rows)[:1] == pytest.approx(expected, abs=4 * (0.25 / 2 ** 15) ** 0.5)
    assert sign_flip_p(rows) == sign_flip_p(rows)
    assert sign_flip_p([[1.0] * 20])[0] <= 3 * stats.smallest_p(20)


@pytest.mark.parametrize("n", range(2, 17))
def test_the_smallest_p_is_that_of_differences_of_one_sign(n):
    assert sign_flip_p([[float(i + 1) for i in range(n)]]) == [stats.smallest_p(n)]


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_between_no_correction_and_bonferroni_and_keeps_the_order(ps):
    corrected = holm(ps)
    assert all(p <= c <= min(1.0, len(ps) * p) + 1e-15 for p, c in zip(ps, corrected, strict=True))
    assert [c for _, c in sorted(zip(ps, corrected, strict=True))] == sorted(corrected)


def test_the_effect_size_by_hand():
    differences = [0.01, 0.03, 0.02, 0.06]  # mean 0.03, s = sqrt(0.0014 / 3)
    j = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))  # 0.7236; the usual 1 - 3 / (4 * 3 - 1) is 0.7273
    assert effect_size(differences) == pytest.approx(j * 0.03 / math.sqrt(0.0014 / 3))
    assert effect_size([0.1, 0.1, 0.1]) is None
    assert effect_size([0.1, 0.3]) is None


def test_the_effect_size_has_no_bias():
    draws = np.random.default_rng(0).normal(0.8, 1.0, (4_000, 5))
    found = [effect_size(row) for row in draws.tolist()]
    assert statistics.fmean(found) == pytest.approx(0.8, abs=4 * statistics.stdev(found) / math.sqrt(len(found)))


# Ranks of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets: Demsar 2006, table 6
DEMSAR = [(4, 3, 2, 1), (1, 2, 3, 4), (4, 1, 2, 3), (4, 1, 3, 2), (4, 2, 3, 1), (1, 2.5, 4, 2.5), (3, 2, 4, 1),
          (2.5, 2.5, 4, 1), (4, 3, 2, 1), (2.5, 2.5, 2.5, 2.5), (4, 2.5, 1, 2.5), (3, 2, 4, 1), (4, 1, 2, 3),
          (3, 1, 4, 2)]


def test_ranks_and_their_tests_are_those_of_demsars_example():
    found = rank_methods([[-rank for rank in row] for row in DEMSAR])
    assert list(found.ranks) == DEMSAR
    assert [round(r, 3) for r in found.average] == [3.143, 2.0, 2.893, 1.964]
    assert found.critical == pytest.approx(1.25, abs=0.005)
    corrected = sum(t ** 3 - t for t in (2, 2, 4, 2)) / (14 * (4 ** 3 - 4))  # the paper's 9.28 is without ties
    assert found.p == pytest.approx(scipy_stats.chi2.sf(9.28 / (1 - corrected), 3), rel=0.01)


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_nemenyis_critical_values_are_those_of_demsars_table_5(methods, q):
    critical = rank_methods([list(range(methods))] * 6).critical
    assert critical == pytest.approx(q * math.sqrt(methods * (methods + 1) / 36), abs=0.002)


def test_methods_that_are_all_alike_have_equal_ranks():
    found = rank_methods([[0.1 + 0.2, 0.3, 0.3]] * 4)
    assert found.average == (2.0, 2.0, 2.0) and found.p == 1.0


def test_two_settings_cannot_tell_few_methods_apart():
    assert rank_methods([[1, 2, 3]] * 2).p == pytest.approx(math.exp(-2))  # chi2 = 4 with 2 degrees of freedom
    assert [stats.settings_needed(k) for k in (3, 8, 9)] == [3, 3, 2]
