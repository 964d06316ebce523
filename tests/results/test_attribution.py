import importlib.util
import itertools
import random
from fractions import Fraction
from math import fsum

import pytest
from helpers import ROOT

from clbench.core.errors import ClbenchError
from clbench.results.attribution import all_trials, attribute, count_least_trainings, draw, needed, trials


def table(factors, seeds=3, seed=0):
    rng = random.Random(seed)
    return {chosen: [rng.random() for _ in range(seeds)] for chosen in range(2**factors)}


def by_definition(outcomes, factors, seed):
    """The mean change over every order, in exact arithmetic."""
    orders = list(itertools.permutations(range(factors)))
    parts = [Fraction(0)] * factors
    for order in orders:
        for place, factor in enumerate(order):
            before = sum(1 << f for f in order[:place])
            parts[factor] += Fraction(outcomes[before | 1 << factor][seed]) - Fraction(outcomes[before][seed])
    return [float(part / len(orders)) for part in parts]


@pytest.mark.parametrize("factors", [1, 2, 3, 5])
def test_parts_are_shapley_values_by_their_definition_and_sum_to_the_difference(factors):
    outcomes = table(factors)
    found = attribute(outcomes, factors)
    for seed in range(3):
        assert [part.values[seed] for part in found.parts] == pytest.approx(by_definition(outcomes, factors, seed))
        assert fsum(p.values[seed] for p in found.parts) == pytest.approx(found.difference.values[seed], abs=1e-14)
    assert fsum(part.mean for part in found.parts) == pytest.approx(found.b.mean - found.a.mean, abs=1e-14)
    assert found.from_a[0].values == tuple(b - a for a, b in zip(outcomes[0], outcomes[1], strict=True))
    whole = 2**factors - 1
    assert found.from_b[0].values == tuple(b - a for a, b in zip(outcomes[whole - 1], outcomes[whole], strict=True))


@pytest.mark.parametrize("most", [2**5, 24])
def test_what_changes_nothing_has_exactly_nothing(most):
    outcomes = table(5)
    outcomes = {chosen: outcomes[chosen & ~4] for chosen in outcomes}
    orders = draw(5, most)
    part = attribute(outcomes, 5, orders).parts[2]
    assert bool(orders) == (most < 2**5)
    assert (part.mean, part.half_width, part.values) == (0.0, 0.0, (0.0,) * 3)


def test_intervals_are_students_over_seeds():
    from scipy.stats import ttest_1samp

    found = attribute(table(3, seeds=6), 3)
    for part in (*found.parts, *found.from_a, found.difference):
        interval = ttest_1samp(part.values, 0).confidence_interval(0.95)
        assert (part.mean - part.half_width, part.mean + part.half_width) == pytest.approx(interval)
    assert attribute(table(3, seeds=1), 3).parts[0].half_width is None


def test_a_sample_of_orders_sums_too_and_is_exact_where_only_pairs_of_factors_interact():
    factors, rng = 6, random.Random(1)
    alone = [rng.gauss(0, 1) for _ in range(factors)]
    together = {pair: rng.gauss(0, 1) for pair in itertools.combinations(range(factors), 2)}
    outcomes = {chosen: [sum(alone[i] for i in range(factors) if chosen >> i & 1) + seed + sum(
        effect for (i, j), effect in together.items() if chosen >> i & chosen >> j & 1) for seed in range(2)]
        for chosen in range(2**factors)}
    orders = draw(factors, 30)
    found = attribute({chosen: outcomes[chosen] for chosen in needed(factors, orders)}, factors, orders)
    for i, part in enumerate(found.parts):
        assert part.mean == pytest.approx(alone[i] + sum(e / 2 for pair, e in together.items() if i in pair))
        assert part.half_width == pytest.approx(0, abs=1e-12)
    assert fsum(part.mean for part in found.parts) == pytest.approx(found.difference.mean)


def test_the_interval_of_a_sample_tells_how_orders_differ_too():
    from scipy.stats import ttest_1samp

    outcomes = {chosen: [10.0 * (chosen.bit_count() >= 3 and bool(chosen & 1))] * 4 for chosen in range(2**6)}
    orders = draw(6, 30)

    def changes(order):
        before = order[:order.index(0)]
        return outcomes[sum(1 << f for f in before) | 1][0] - outcomes[sum(1 << f for f in before)][0]

    pairs = [(changes(one) + changes(other)) / 2 for one, other in zip(orders[::2], orders[1::2], strict=True)]
    part = attribute(outcomes, 6, orders).parts[0]  # seeds are alike, so pairs of orders are all that differs
    interval = ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert len(set(pairs)) > 1
    assert (part.mean - part.half_width, part.mean + part.half_width) == pytest.approx(interval)
    assert attribute(outcomes, 6).parts[0].half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("factors", "most"), [(3, 8), (6, 64), (6, 63), (6, 30), (8, 100), (10, 60)])
def test_a_sample_of_orders_needs_no_more_than_is_allowed_and_all_combinations_are_taken_where_they_fit(factors, most):
    orders = draw(factors, most)
    assert len(needed(factors, orders)) <= most and (not orders) == (2**factors <= most)
    assert orders[1::2] == [order[::-1] for order in orders[::2]]
    assert orders == draw(factors, most)


def test_a_factor_that_needs_no_training_costs_none():
    assert trials(needed(6), 0b0100) == 32
    assert draw(6, 32, free=0b0100) == [] and draw(6, 32) != []


def test_two_pairs_of_orders_have_one_degree_of_freedom():
    from scipy.stats import t

    outcomes = {chosen: 9 * values for chosen, values in table(8, seeds=1).items()}
    orders = draw(8, count_least_trainings(8))
    assert len(orders) == 4
    part = attribute(outcomes, 8, orders).parts[0]  # seeds are alike
    pairs = [attribute(outcomes, 8, [*pair, *pair]).parts[0].mean for pair in (orders[:2], orders[2:])]
    error = abs(pairs[0] - pairs[1]) / 2
    assert error > 0 and part.half_width == pytest.approx(t.ppf(0.975, 1) * error)


def test_the_number_of_all_trainings_is_counted_without_listing_them():
    assert all_trials(60) == 2**60 and all_trials(3, 0b101) == 2 == trials(needed(3), 0b101)


def test_too_small_a_sample_is_refused():
    with pytest.raises(ClbenchError, match="6 factors have 64 combinations, and even a sample of orders needs "):
        draw(6, 12)


@pytest.mark.parametrize("spoilt", [[], [0.1, 0.2], [0.1, 0.2, float("nan")]])
def test_a_combination_without_an_outcome_of_each_seed_is_refused(spoilt):
    with pytest.raises(ClbenchError, match="combination 10 has not one finite outcome for each seed"):
        attribute({**table(2), 2: spoilt}, 2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    script = ROOT / "benchmarks" / "coverage_of_explain.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    share, gap, _ = module.measured(module.Case(4, 5, "normal", 16), tables=300)
    assert 0.93 <= share <= 0.97 and gap < 1e-12
    lines = [line.split("|") for line in module.OUT.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(module.CASES)
    assert all(93 <= float(cells[-3]) <= 97 for cells in lines)
