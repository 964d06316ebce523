"""Simulate how often the intervals of `clbench explain` contain the true Shapley value (docs/explain.md).

Each simulated table of outcomes has an effect of every factor, pair of factors and triple of factors. Each seed has a
random level and a random effect of each factor, and each training has noise. The truth is the Shapley value of the mean
outcomes, computed by the definition over all orders.

`python benchmarks/coverage_of_explain.py` takes a minute and writes benchmarks/explain/coverage.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from clbench.results.attribution import attribute, draw, needed

Array = npt.NDArray[np.float64]
TABLES = 2_000
OUT = Path(__file__).parent / "explain" / "coverage.md"
NOISE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {  # of a training, in points, mean 0
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "skewed": lambda rng, shape: 1 - rng.gamma(2, 0.5, shape),  # some runs fall far below
}


class Case(NamedTuple):
    """A kind of table, and how many combinations of factors are trained."""

    factors: int
    seeds: int
    noise: str
    most: int  # combinations per seed; if they are fewer than all, orders are sampled
    scale: float = 1.0  # of all random effects; if it is small, only the sample of orders adds uncertainty


CASES = (Case(3, 3, "normal", 8), Case(4, 5, "normal", 16), Case(4, 5, "skewed", 16), Case(6, 5, "normal", 64),
         Case(6, 5, "normal", 40), Case(7, 5, "normal", 60), Case(7, 10, "skewed", 60),
         Case(6, 5, "normal", 40, 0.1), Case(7, 5, "normal", 60, 0.02))


def truth(means: Array, factors: int) -> Array:
    """Return the Shapley values of mean outcomes [combinations] by definition: the mean change over all orders."""
    total, orders = np.zeros(factors), list(itertools.permutations(range(factors)))
    for order in orders:
        chosen = 0
        for factor in order:
            total[factor] += means[chosen | 1 << factor] - means[chosen]
            chosen |= 1 << factor
    return total / len(orders)


def effects(rng: np.random.Generator, factors: int) -> Array:
    """Return random mean outcomes [combinations], with effects of single factors, pairs and triples, in percent."""
    means = np.full(2**factors, 80.0)
    for size, scale in ((1, 3.0), (2, 1.5), (3, 1.5)):
        for some in itertools.combinations(range(factors), size):
            bits = sum(1 << f for f in some)
            means[[c for c in range(2**factors) if c & bits == bits]] += rng.normal(0, scale / factors ** (size - 1))
    return means


def simulated(rng: np.random.Generator, case: Case, means: Array) -> Array:
    """Return outcomes [combinations, seeds]: the means plus levels and effects of each seed, plus noise."""
    bits = np.arange(2**case.factors)[:, None] >> np.arange(case.factors) & 1
    noise = NOISE[case.noise]
    return means[:, None] + case.scale * (noise(rng, (1, case.seeds)) * 2 + bits @ noise(rng, (
        case.factors, case.seeds)) + noise(rng, (2**case.factors, case.seeds)))


def measured(case: Case, tables: int = TABLES) -> tuple[float, float, int]:
    """Return the share of intervals that contain the truth, the largest error of a sum, and the number of orders.

    The sum is that of the contributions, which must equal the whole difference.
    """
    rng = np.random.default_rng(case.factors * 1000 + case.seeds)
    orders = draw(case.factors, case.most)
    held, count, gap = 0, 0, 0.0
    for number in range(tables):
        if number % 20 == 0:  # computing the truth over all orders is slow
            means = effects(rng, case.factors)
            true = truth(means, case.factors)
        outcomes = simulated(rng, case, means)
        found = attribute({c: outcomes[c].tolist() for c in needed(case.factors, orders)}, case.factors, orders)
        for part, value in zip(found.parts, true, strict=True):
            assert part.half_width is not None
            held, count = held + (abs(part.mean - value) <= part.half_width), count + 1
        gap = max(gap, abs(sum(part.mean for part in found.parts) - found.difference.mean))
    return held / count, gap, len(orders)


def main() -> None:
    """Measure every case, print the table and write it."""
    rows = []
    for case in CASES:
        share, gap, orders = measured(case)
        rows.append([case.factors, case.seeds, case.noise, f"{case.scale:g}", f"{orders} orders" if orders else "all",
                     len(needed(case.factors, draw(case.factors, case.most))), f"{100 * share:.1f}", f"{gap:.0e}"])
    headers = ["factors", "seeds", "noise", "its scale", "combinations", "trainings per seed",
               "intervals that hold the truth (%)", "largest gap of a sum (points)"]
    text = tabulate(rows, headers, "pipe", disable_numparse=True)
    OUT.write_text(f"{TABLES:,} tables of outcomes in each row; `python benchmarks/{Path(__file__).name}`.\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
