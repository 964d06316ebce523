"""Divide a difference among its causes: Shapley values of a table of outcomes, paired by seed. Functions are pure.

A combination of k factors is a number. Its bit i is set if factor i is as in B instead of A, so 0 is A and 2^k - 1 is
B. A table has an outcome per seed for each combination. A factor's Shapley value is the change that it causes when it
is switched from A to B, averaged over all orders in which the factors can be switched one after the other (Shapley
1953, A value for n-person games). It is the only division with these properties: the contributions sum to the
difference, a factor without effect gets 0, factors with the same effect get the same contribution, and contributions
are additive over tables (for instance, over seeds).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clbench.core.errors import ClbenchError
from clbench.results.items import cross
from clbench.results.stats import half_width

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

Table = Mapping[int, Sequence[float]]  # the outcome of each seed by combination
Order = tuple[int, ...]
LEAST_PAIRS = 2  # pairs of orders; a single pair gives no variance between pairs
ENOUGH_PAIRS = 6  # with fewer pairs of orders, intervals contain the true value less often than they state


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, half the width of its 95% interval (None for a single seed), and the value of each seed."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Attribution:
    """What each factor contributes to the difference between A and B."""

    a: Estimate
    b: Estimate
    difference: Estimate  # B minus A
    parts: tuple[Estimate, ...]  # Shapley values; they sum to the difference, also for each seed
    from_a: tuple[Estimate, ...]  # change in A if only this factor is as in B
    from_b: tuple[Estimate, ...]  # B minus B with this factor as in A
    orders: int  # number of sampled orders that were averaged; 0: all orders


def attribute(table: Table, factors: int, orders: Sequence[Order] = ()) -> Attribution:
    """Divide the difference between A and B among factors.

    Args:
        table: the outcomes of each combination in `needed`, one per seed, with the seeds in the same order.
        factors: the number of factors.
        orders: pairs of an order and its reverse, from `draw`. If there are none, the table has all combinations, which
            cover all orders.

    Raises:
        ClbenchError: a combination is missing, has an outcome that is not finite, or has another number of seeds.
    """
    import numpy as np

    seeds = len(table.get(0, ()))
    for combination in needed(factors, orders):
        if len(table.get(combination, ())) != seeds or not seeds or not all(map(math.isfinite, table[combination])):
            raise ClbenchError(f"combination {combination:0{factors}b} has not one finite outcome for each seed")
    outcomes = {combination: np.asarray(values, dtype=np.float64) for combination, values in table.items()}
    all_factors = 2**factors - 1
    if orders:
        contributions = np.stack([_changes_along(outcomes, order) for order in orders])  # [orders, factors, seeds]
        pairs = (contributions[0::2] + contributions[1::2]) / 2
        parts = tuple(estimate_crossed(pairs[:, i]) for i in range(factors))
    else:
        parts = tuple(estimate_mean(values) for values in shapley(outcomes, factors))
    singles = [1 << i for i in range(factors)]
    last_changes = tuple(estimate_mean(outcomes[all_factors] - outcomes[all_factors - single]) for single in singles)
    return Attribution(estimate_mean(outcomes[0]), estimate_mean(outcomes[all_factors]),
                       estimate_mean(outcomes[all_factors] - outcomes[0]), parts,
                       tuple(estimate_mean(outcomes[single] - outcomes[0]) for single in singles),
                       last_changes, len(orders))


def shapley(outcomes: Mapping[int, Array], factors: int) -> list[Array]:
    """Return the Shapley value of each factor, per seed, from the outcomes of all combinations.

    phi_i = sum over the combinations S without i of |S|! (k - 1 - |S|)! / k! (v(S + i) - v(S)).
    """
    weights = [1 / (factors * math.comb(factors - 1, size)) for size in range(factors)]
    return [sum((weights[combination.bit_count()] * (outcomes[combination | 1 << i] - outcomes[combination])
                 for combination in range(2**factors) if not combination >> i & 1), start=0 * outcomes[0])
            for i in range(factors)]


def _changes_along(outcomes: Mapping[int, Array], order: Order) -> Array:
    """Return the change that each factor causes if the factors are switched in this order, [factors, seeds]."""
    import numpy as np

    changes, combination = np.empty((len(order), len(outcomes[0]))), 0
    for factor in order:
        changes[factor] = outcomes[combination | 1 << factor] - outcomes[combination]
        combination |= 1 << factor
    return changes


def estimate_mean(values: Array) -> Estimate:
    """Return the mean of values per seed with its Student t interval."""
    seeds = len(values)
    half = half_width(float(values.std(ddof=1)) / math.sqrt(seeds), seeds - 1) if seeds > 1 else None
    return Estimate(float(values.mean()), half, tuple(map(float, values)))


def estimate_crossed(values: Array) -> Estimate:
    """Return the mean of values [pairs of orders, seeds] with an interval that covers other seeds and other orders.

    Seeds and pairs are crossed random effects (`clbench.results.items.cross`). A single seed has no interval.
    """
    by_seed = tuple(map(float, values.mean(axis=0)))
    half = cross(by_seed, values.T).interval.half_width if len(by_seed) > 1 else None
    return Estimate(float(values.mean()), half, by_seed)


def needed(factors: int, orders: Sequence[Order] = ()) -> list[int]:
    """Return the combinations that a table needs: all, or those along the orders and one switch away from A or B."""
    if not orders:
        return list(range(2**factors))
    all_factors = 2**factors - 1
    ends = {0, all_factors, *(1 << i for i in range(factors)), *(all_factors - (1 << i) for i in range(factors))}
    return sorted(ends.union(*(itertools.accumulate((1 << f for f in order), int.__or__) for order in orders)))


def trials(combinations: Sequence[int], free: int = 0) -> int:
    """Return how many trainings the combinations need. The factors of the bits in `free` need no extra training."""
    return len({combination & ~free for combination in combinations})


def all_trials(factors: int, free: int = 0) -> int:
    """Return how many trainings all combinations need."""
    return int(2 ** (factors - free.bit_count()))


def draw(factors: int, most: int, free: int = 0) -> list[Order]:
    """Return as many random orders as need no more than `most` trainings per seed, each followed by its reverse.

    Return no orders if all combinations need no more trainings than that. Averaging a factor's change over an order and
    its reverse cancels the interactions of two factors (antithetic sampling: Mitchell et al. 2022, Sampling
    permutations for Shapley value estimation). The same factors always get the same orders.

    Raises:
        ClbenchError: two pairs of orders need more trainings.
    """
    if all_trials(factors, free) <= most:
        return []
    if count_least_trainings(factors, free) > most:
        raise ClbenchError(f"{factors} factors have {2**factors} combinations, and even a sample of orders needs "
                           f"{count_least_trainings(factors, free)} trainings per seed, more than {most}")
    orders: list[Order] = []
    for pair in _pairs(factors):
        if trials(needed(factors, [*orders, *pair]), free) > most:
            break
        orders += pair
    return orders


def count_least_trainings(factors: int, free: int = 0) -> int:
    """Return the smallest possible number of trainings per seed, of a sample of orders or of all combinations."""
    orders = list(itertools.chain.from_iterable(itertools.islice(_pairs(factors), LEAST_PAIRS)))
    return min(trials(needed(factors, orders), free), all_trials(factors, free))


def _pairs(factors: int) -> Iterator[tuple[Order, Order]]:
    """Yield random orders with their reverses. Every call yields the same orders."""
    import numpy as np

    generator = np.random.default_rng(0)
    while True:
        order = tuple(map(int, generator.permutation(factors)))
        yield order, order[::-1]
