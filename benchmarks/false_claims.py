"""How often reports claim a difference between methods that are alike, simulated.

    python benchmarks/false_claims.py [--experiments 10000]

Each experiment draws the accuracies of methods that are alike on average, seed by seed, and asks `clbench`'s own tests
whether any pair of its family differs: each method against a baseline, or all pairs. Noise is normal, or symmetric with
heavy tails, and of one size for all methods or of sizes from 0.1 to 10. In `saturated` one method (the baseline, where
there is one) is close to 100 %: its error is exponential, the others' are normal about the same mean, so differences
are skewed and the paired t's assumption does not hold. Writes benchmarks/false_claims.md, and the rates that reports
print beside verdicts into clbench/results/false_claims.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clbench.results.paired import deciding_test, p_values
from clbench.results.stats import ALPHA

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(2, 13)
FAMILIES = {"baseline": (1, 4, 9, 36), "all pairs": (3, 5, 10, 20)}  # other methods; methods
SYMMETRIC = ("normal", "normal, unlike sizes", "t with 3 df", "double exponential", "Cauchy")
SATURATED = ("saturated, others 0.1", "saturated, others 1")  # deviation of the others' error; the saturated one's is 1
AT_ONCE = 2_000_000  # differences in memory
SIGNS = 2_000_000_000  # sign flips times differences that are worth waiting for


def noise(kind: str, shape: tuple[int, int, int], draws: np.random.Generator) -> NDArray[np.float64]:
    """Return the accuracies (experiment, method, seed) of methods that are alike on average."""
    experiments, methods, _ = shape
    if kind == "normal, unlike sizes":
        return draws.standard_normal(shape) * 10 ** draws.uniform(-1, 1, (experiments, methods, 1))
    if kind in SATURATED:
        found = float(kind.rsplit(maxsplit=1)[1]) * draws.standard_normal(shape) - 1
        found[:, 0] = -draws.exponential(1.0, (experiments, shape[2]))
        return found
    return {"normal": draws.standard_normal, "t with 3 df": lambda s: draws.standard_t(3, s),
            "double exponential": lambda s: draws.laplace(size=s), "Cauchy": draws.standard_cauchy}[kind](shape)


def false_claims(asked: str, methods: int, seeds: int, kind: str, experiments: int) -> float:
    """Return the share of experiments in which some difference of the family is shown (Holm's first step)."""
    count = methods + 1 if asked == "baseline" else methods
    pairs = [(i, 0) for i in range(1, count)] if asked == "baseline" else list(combinations(range(count), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    draws = np.random.default_rng([len(asked), methods, seeds, len(kind)])
    step = max(1, AT_ONCE // (len(pairs) * seeds * (2 ** (seeds - 1) // 64 + 1)))
    shown = 0
    for start in range(0, experiments, step):
        drawn = noise(kind, (min(step, experiments - start), count, seeds), draws)
        differences = (drawn[:, first] - drawn[:, second]).reshape(-1, seeds)
        ps = np.reshape(p_values(differences, len(pairs)), (len(drawn), len(pairs)))
        shown += int((len(pairs) * ps.min(axis=1) <= ALPHA).sum())
    return shown / experiments


def cases() -> Iterator[tuple[str, int, int, int]]:
    """Yield what is simulated: question, methods, size of the family, seeds."""
    for asked, sizes in FAMILIES.items():
        for methods in sizes:
            family = methods if asked == "baseline" else methods * (methods - 1) // 2
            for seeds in SEEDS:
                if deciding_test(seeds, family) == "t" or family * 10_000 * 2 ** (seeds - 1) <= SIGNS:
                    yield asked, methods, family, seeds


def times(family: int) -> int:
    """Return how many times the experiments are made: a single test is quick, and its rate the closest to 5 %."""
    return 10 if family == 1 else 1


def main() -> None:
    """Simulate every case and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=10_000)
    experiments = parser.parse_args().experiments
    kinds = (*SYMMETRIC, *SATURATED)
    lines, worst, saturated = [], {"flips": 0.0, "t": 0.0}, dict.fromkeys(SEEDS, 0.0)
    for asked, methods, family, seeds in cases():
        test = deciding_test(seeds, family)
        rates = {kind: false_claims(asked, methods, seeds, kind, times(family) * experiments) for kind in kinds}
        worst[test] = max(worst[test], *(rates[kind] for kind in SYMMETRIC))
        if test == "t":
            saturated[seeds] = max(saturated[seeds], *(rates[kind] for kind in SATURATED))
        lines.append(f"| {asked} | {family} | {seeds} | {test} | "
                     + " | ".join(f"{100 * rates[kind]:.2f}" for kind in kinds) + " |")
        print(lines[-1], flush=True)
    told = [f"# False claims, simulated\n\n`python benchmarks/false_claims.py`: {experiments:,} experiments in each "
            f"cell ({times(1) * experiments:,} for a single test), in which all methods are alike on average; "
            "the share (%) in which some test of the family shows a "
            f"difference at {100 * ALPHA:g} %. With symmetric noise at most {100 * worst['flips']:.2f} % where sign "
            f"flips decide, {100 * worst['t']:.2f} % where the paired t does. One standard error is "
            f"{100 * (ALPHA * (1 - ALPHA) / experiments) ** 0.5:.2f} points at 5 %.\n",
            "| family | tests | seeds | decided by | " + " | ".join(kinds) + " |",
            "|:--|--:|--:|:--|" + "--:|" * len(kinds), *lines]
    (ROOT / "benchmarks/false_claims.md").write_text("\n".join(told) + "\n")
    found = {"experiments": experiments, "symmetric": worst,
             "saturated": {str(n): rate for n, rate in saturated.items() if rate}}
    (ROOT / "clbench/results/false_claims.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
