"""Looks after each seed: probabilities against simulation and closed forms, and what is committed of simulations."""

import math
import re
from statistics import median

import numpy as np
import pytest
from helpers import TESTS
from scipy import stats

from clbench.experiment.until import UntilDecided
from clbench.report.analysis.families import family
from clbench.report.columns import ACC
from clbench.results import sequential
from clbench.results.paired import paired_t_p
from clbench.results.sequential import (
    critical,
    crossing,
    error_rate,
    find_strongest_analysis,
    p_by_look,
    repeated_interval,
    smallest_weighted_p,
)

RULE = UntilDecided(first=3, most=30)
MD = (TESTS.parent / "benchmarks" / "until_decided.md").read_text()


@pytest.mark.parametrize("boundary", [(3.0, 2.5, 2.5), (9.9, 4.0, 3.0, 2.6, 2.5, 2.4), (1.0, 5.0), (60.0, 0.5)])
def test_the_probability_to_cross_is_that_of_simulated_seeds(boundary):
    draws = np.random.default_rng(1).standard_normal((200_000, 2 + len(boundary)))
    crossed = np.zeros(len(draws), dtype=bool)
    for n, bound in enumerate(boundary, start=3):
        first = draws[:, :n]
        crossed |= np.abs(first.mean(axis=1) / first.std(axis=1, ddof=1) * math.sqrt(n)) >= bound
    rate = crossed.mean()
    assert crossing(boundary, 3) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / len(draws)))


def test_a_single_look_is_the_usual_t_test():
    one = UntilDecided(first=8, most=8)
    values = np.random.default_rng(0).normal(0.5, 1, 8)
    assert find_strongest_analysis(values, one) == (8, pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9))
    assert critical(8, one) == pytest.approx(stats.t.ppf(0.975, 7), rel=1e-6)
    usual = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = repeated_interval(values, one)
    assert (found.low, found.high) == (pytest.approx(usual.low), pytest.approx(usual.high))


def test_each_look_is_the_t_test_of_the_seeds_so_far():
    values = np.random.default_rng(2).normal(0.2, 1, (4, 9))
    found = p_by_look(values, 3)
    for n in range(3, 10):
        assert found[:, n - 3] == pytest.approx(stats.ttest_1samp(values[:, :n], 0, axis=1).pvalue, rel=1e-9)
    far = values * 1e-6 + 0.5  # a small deviation beside a large mean
    assert p_by_look(far, 3)[:, -1] == pytest.approx(paired_t_p(far), rel=1e-6)
    assert p_by_look([[0.1] * 6, [0.0] * 6], 3).tolist() == [[0.25, 0.125, 0.0625, 0.03125], [1.0] * 4]


@pytest.mark.slow
def test_the_chance_of_a_table_is_that_of_its_integrals():
    for q in (0.2, 0.013, 4e-4, 2e-6):
        boundary = [stats.t.isf(q * sequential.weight(n, 30) / 2, n - 1) for n in range(3, 31)]
        assert error_rate(q, RULE) == pytest.approx(crossing(boundary, 3, nodes=48, grid=800), rel=0.02)
    assert error_rate(1.0, RULE) == 1
    assert error_rate(1e-10, RULE) == pytest.approx(error_rate(1e-9, RULE) / 10)


def test_a_sequential_p_only_falls_and_reaches_the_level_where_t_is_critical():
    values = np.random.default_rng(4).normal(0.3, 1, 40)
    ps = [find_strongest_analysis(values[:n], RULE).p for n in range(3, 41)]
    assert ps == sorted(ps, reverse=True)
    assert ps[27] == ps[-1]  # what comes after the most is left out
    assert find_strongest_analysis(values[:2], RULE) is None
    n, level = 9, 0.05 / 4
    t = critical(n, RULE, level)
    at = np.array([-1.0, 1.0] * 4 + [0.0])  # their mean is 0; moved to have this t at the last look alone
    moved = at + t * at.std(ddof=1) / math.sqrt(n)
    alone = float(p_by_look([moved], n)[0, 0]) / sequential.weight(n, 30)
    assert error_rate(alone, RULE) == pytest.approx(level, rel=1e-3)


def verdicts(differences, rule):
    """The report's own verdicts on a method against a baseline without noise."""
    values = {"naive": dict.fromkeys(range(differences.shape[1]), 0.5)}  # far from 100%
    values |= {f"m{i}": dict(enumerate(0.5 + row / 100)) for i, row in enumerate(differences)}
    return family(ACC.column, values, "naive", until=rule).pairs


@pytest.mark.slow
def test_no_more_than_5_percent_of_families_claim_what_is_not_there():
    draws = np.random.default_rng(5).standard_normal((1000, 4, 30))
    wrong = sum(any(pair.significant for pair in verdicts(one, RULE)) for one in draws)
    assert 0.02 < wrong / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("size", "most"), [(1.0, 16), (1.5, 11), (2.0, 8)])
def test_a_difference_is_shown_by_fewer_seeds_than_were_fixed(size, most):
    effect = 0.7643  # found by t of 20 seeds with 90 % power, by its noncentral distribution:
    bound = stats.t.isf(0.025, 19)
    assert stats.nct.sf(bound, 19, effect * math.sqrt(20)) == pytest.approx(0.9, abs=1e-3)
    draws = np.random.default_rng(6).standard_normal((300, 30)) + size * effect
    taken = [next((n for n in range(3, 31) if verdicts(one[None, :n], RULE)[0].significant), 31) for one in draws[:60]]
    quick = smallest_weighted_p(draws, RULE) <= sequential.threshold(0.05, RULE)
    counted = np.where(quick.any(axis=1), quick.argmax(axis=1) + 3, 31)
    assert taken == counted[:60].tolist()
    assert median(counted) <= most


def test_repeated_intervals_hold_the_mean_at_all_looks_together():
    draws = np.random.default_rng(7).standard_normal((400, 30))
    rule = UntilDecided(first=4, most=12)
    missed = 0
    for values in draws:
        found = [repeated_interval(values[:n], rule) for n in range(4, 13)]
        missed += any(not interval.low <= 0 <= interval.high for interval in found)
    assert 0.01 < missed / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert repeated_interval(draws[0, :3], rule).half_width is None


def test_what_is_committed_of_the_simulations_keeps_what_is_promised():
    assert int(re.search(r"([\d,]+) experiments", MD)[1].replace(",", "")) >= 10_000
    assert float(re.search(r"symmetric noise at most ([\d.]+) %", MD)[1]) <= 5.5
    rows = [line for line in MD.splitlines() if re.match(r"\| (1|4|9) \| one \| 3 to 30 ", line)]
    assert len(rows) == 3 and not any("(above)" in row for row in rows)
