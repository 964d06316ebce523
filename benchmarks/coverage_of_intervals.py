"""How often the 95 % interval of a mean over seeds holds the true mean, by simulation: the table of docs/statistics.md.

`python benchmarks/coverage_of_intervals.py` takes a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from tabulate import tabulate

from clbench.results.stats import mean_interval

Draw = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]
DRAWS: dict[str, tuple[Draw, float]] = {  # what draws accuracies, and their mean
    "normal": (lambda rng, shape: rng.normal(0.9, 0.01, shape), 0.9),
    "near 99 %, Beta(99, 1)": (lambda rng, shape: rng.beta(99, 1, shape), 0.99),  # bounded at 1, skewed downwards
}
SEEDS = (5, 6, 10, 20)


def covered(name: str, n: int, samples: int = 10_000) -> tuple[float, float]:
    """Return the shares of samples of n values whose interval holds the mean: ours, and Student's for comparison."""
    draw, mean = DRAWS[name]
    values = draw(np.random.default_rng(n), (samples, n))
    ours = [mean_interval(row) for row in values.tolist()]
    half = float(stdtrit(n - 1, 0.975)) * values.std(axis=1, ddof=1) / math.sqrt(n)
    return (float(np.mean([one.low is not None and one.high is not None and one.low <= mean <= one.high
                           for one in ours])),
            float((np.abs(values.mean(axis=1) - mean) <= half).mean()))


if __name__ == "__main__":
    rows = []
    for name in DRAWS:
        found = [covered(name, n) for n in SEEDS]
        rows += [[name, interval, *(f"{100 * pair[k]:.1f}" for pair in found)]
                 for k, interval in enumerate(("ours", "Student t"))]
    print(tabulate(rows, ["accuracies", "interval", *(f"{n} seeds" for n in SEEDS)], "pipe", disable_numparse=True))
