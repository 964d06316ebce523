"""Simulate how often reports claim a difference that does not exist, and how often intervals contain the true mean.

    python benchmarks/error_rates.py [--experiments 4000]

Each experiment draws the accuracies of methods that are equal on average, seed by seed, and applies the tests and
intervals of clbench. A family has 1 or 10 comparisons with a baseline. The nulls:

- normal; t with 2 degrees of freedom: differences with normal and with very heavy tails.
- near 100%, one method or all: errors are exponential, so accuracies are skewed. The others are normal with the same
  mean and a tenth of the deviation.
- one seed in ten collapses: each method loses 30 points in a tenth of its seeds.
- one method collapses: only the baseline does. Its other seeds are better, so that all means are equal.
- shared test samples: every seed is tested on the same 200 samples, which favor some methods by chance, by a standard
  deviation of 0.5 points. clbench's tests and intervals use the result on each sample; the usual tests do not.
- shared samples, unequal tasks: the same with tasks of 100, 50, 30, 15 and 5 samples. Accuracy is the mean over tasks,
  so the deviation is 0.8 points. It is not known which sample belongs to which task.

Power is the share of experiments that find, of one method that differs from the baseline by two standard deviations
over seeds, that it differs in this direction. "lost" is the additional power of the usual tests over seeds. These test
accuracies near 100% too and do not use results on single samples. The script writes benchmarks/error_rates.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clbench.report.analysis.families import family
from clbench.report.columns import ACC
from clbench.results.items import cross, weight_by_task
from clbench.results.paired import p_values
from clbench.results.stats import ALPHA, holm, mean_interval

ROOT = Path(__file__).resolve().parents[1]
SEEDS, SIZES = (3, 5, 6, 8, 10), (1, 10)
SD, OFFSET, SAMPLES = 0.02, 0.005, 200
Floats = NDArray[np.float64]


def normal(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies (method, seed) with normal noise."""
    return 0.5 + SD * draws.standard_normal(shape)


def heavy(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies with noise of 2 degrees of freedom, within [0, 1]."""
    return np.clip(0.5 + SD * draws.standard_t(2, shape), 0, 1)


def one_near_limit(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies close to 100%, skewed for the first method only."""
    found = 1 - SD + SD / 10 * draws.standard_normal(shape)
    found[0] = 1 - SD * draws.exponential(1.0, shape[1])
    return found


def all_near_limit(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies close to 100%, skewed for all methods."""
    return 1 - SD * draws.exponential(1.0, shape)


def collapsing(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies of methods that lose 30 points in a tenth of their seeds."""
    return normal(draws, shape) - 0.3 * (draws.random(shape) < 0.1)


def one_collapsing(draws: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return accuracies with equal means, of which only those of the first method collapse in some seeds."""
    found = normal(draws, shape)
    found[0] += 0.03 - 0.3 * (draws.random(shape[1]) < 0.1)
    return found


NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": normal, "t with 2 df": heavy, "one near 100%": one_near_limit, "all near 100%": all_near_limit,
    "one seed in ten collapses": collapsing, "one method collapses": one_collapsing}
SHARED = {"shared test samples": (SAMPLES,), "shared samples, unequal tasks": (100, 50, 30, 15, 5)}  # samples per task


def shared(draws: np.random.Generator, shape: tuple[int, int],
           sizes: tuple[int, ...]) -> tuple[Floats, NDArray[np.float32]]:
    """Return accuracies (method, seed) and scores (method, seed, sample) on samples that all seeds share.

    `sizes` are the numbers of test samples of the tasks.
    """
    methods, seeds = shape
    by_sample = OFFSET * np.sqrt(SAMPLES) * draws.standard_normal((methods, 1, SAMPLES))
    rest = 0.3 * draws.standard_normal((methods, seeds, SAMPLES))
    scores = (normal(draws, shape)[:, :, None] + by_sample + rest).astype(np.float32)
    if len(sizes) == 1:
        return scores.mean(axis=2, dtype=np.float64), scores
    starts = np.cumsum([0, *sizes[:-1]])
    accuracies = (np.add.reduceat(scores, starts, axis=2, dtype=np.float64) / sizes).mean(axis=2)
    return accuracies, np.stack([[weight_by_task(of, sizes, mean, None)
                                  for of, mean in zip(*method, strict=True)]
                                 for method in zip(scores, accuracies, strict=True)])


def values_of(accuracies: Floats) -> dict[str, dict[int, float]]:
    """Return accuracies by method and seed, in the form that reports use; the first method is the baseline."""
    return {str(method): dict(enumerate(map(float, row))) for method, row in enumerate(accuracies)}


def claims(accuracies: Floats, scores: NDArray[np.float32] | None = None) -> bool:
    """Return whether clbench finds a significant difference to the first method."""
    answers = None if scores is None else {str(m): dict(enumerate(of)) for m, of in enumerate(scores)}
    return any(pair.significant for pair in family(ACC.column, values_of(accuracies), "0", answers=answers).pairs)


def finds(accuracies: Floats, change: float, scores: NDArray[np.float32] | None = None) -> bool:
    """Return whether clbench finds that the second method differs from the first, in the direction of `change`."""
    answers = None if scores is None else {str(m): dict(enumerate(of)) for m, of in enumerate(scores)}
    pairs = family(ACC.column, values_of(accuracies), "0", answers=answers).pairs
    pair = next(pair for pair in pairs if {pair.first, pair.second} == {"0", "1"})
    gain = np.mean(pair.differences) * (1 if pair.first == "1" else -1)
    return bool(pair.significant and gain * change > 0)


def usual_p(accuracies: Floats) -> list[float]:
    """Return the corrected p-values of the usual tests over seeds, without the rule near 100%."""
    differences = [tuple(row - accuracies[0]) for row in accuracies[1:]]
    return holm(p_values(differences, len(differences)))


def claims_by_usual_tests(accuracies: Floats) -> bool:
    """Return whether the usual tests find a difference."""
    return min(usual_p(accuracies)) <= ALPHA


def finds_by_usual_tests(accuracies: Floats, change: float) -> bool:
    """Return whether the usual tests find that the second method differs, in the direction of `change`."""
    return usual_p(accuracies)[0] <= ALPHA and float(np.mean(accuracies[1] - accuracies[0])) * change > 0


def covers(accuracies: Floats, truth: float) -> bool:
    """Return whether the interval of the first method contains the true mean."""
    over = mean_interval([float(value) for value in accuracies[0]])
    return over.low is not None and over.high is not None and over.low <= truth <= over.high


def share(found: list[bool]) -> str:
    """Return the share of true values, in percent."""
    return f"{100 * sum(found) / len(found):.1f}"


def rows(experiments: int) -> list[list[str]]:
    """Return a row for each null hypothesis, size of the family and number of seeds."""
    found = []
    for name, null in NULLS.items():
        truth = {"normal": 0.5, "t with 2 df": 0.5, "one seed in ten collapses": 0.47,
                 "one method collapses": 0.5}.get(name, 1 - SD)
        for size in SIZES:
            for seeds in SEEDS:
                draws = np.random.default_rng([len(name), size, seeds])
                drawn = [null(draws, (size + 1, seeds)) for _ in range(experiments)]
                change = -2 * SD if name.endswith("100%") else 2 * SD
                changed = [np.concatenate([one[:1], one[1:2] + change, one[2:]]) for one in drawn]
                with_rule = [finds(one, change) for one in changed]
                without = [finds_by_usual_tests(one, change) for one in changed]
                found.append([name, str(size), str(seeds), share([claims(one) for one in drawn]),
                              share([claims_by_usual_tests(one) for one in drawn]),
                              share([covers(one, truth) for one in drawn]), share(with_rule),
                              f"{100 * (sum(without) - sum(with_rule)) / experiments:.1f}"])
                print(*found[-1], sep=" | ", flush=True)
    return [*found, *shared_rows(experiments)]


def shared_rows(experiments: int) -> list[list[str]]:
    """Return the rows for shared test samples."""
    found = []
    for name, sizes in SHARED.items():
        for size in SIZES:
            for seeds in SEEDS:
                draws = np.random.default_rng([len(sizes), size, seeds])
                claimed, by_usual_tests, inside, power, lost = ([] for _ in range(5))
                for _ in range(experiments):
                    accuracies, scores = shared(draws, (size + 1, seeds), sizes)
                    claimed.append(claims(accuracies, scores))
                    by_usual_tests.append(claims_by_usual_tests(accuracies))
                    over = cross([float(value) for value in accuracies[0]], scores[0]).interval
                    inside.append(over.low <= 0.5 <= over.high)
                    accuracies[1] += 2 * SD
                    scores[1] += 2 * SD
                    power.append(finds(accuracies, 2 * SD, scores))
                    lost.append(finds_by_usual_tests(accuracies, 2 * SD))
                found.append([name, str(size), str(seeds), share(claimed), share(by_usual_tests), share(inside),
                              share(power), f"{100 * (sum(lost) - sum(power)) / experiments:.1f}"])
                print(*found[-1], sep=" | ", flush=True)
    return found


def main() -> None:
    """Run all simulations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=4000)
    experiments = parser.parse_args().experiments
    head = ["null", "comparisons", "seeds", "false claims (%)", "of usual tests (%)", "coverage (%)", "power (%)",
            "lost (points)"]
    table = rows(experiments)
    error = 100 * (ALPHA * (1 - ALPHA) / experiments) ** 0.5
    text = [f"# Error rates, simulated\n\n`python benchmarks/error_rates.py`: {experiments:,} experiments in each row, "
            "in which all methods are equal on average. *False claims* is the share of experiments in which clbench "
            "finds some significant difference of the family at 5%. *Of usual tests* is the same for tests over seeds "
            "that do not know test samples and that test accuracies near 100%. *Coverage* is the share of 95% "
            "intervals of one mean that contain the true mean. *Power* is for one method that differs by two standard "
            "deviations over seeds; *lost* is what usual tests have in addition. The docstring of the script describes "
            "each null. "
            f"One standard error is {error:.1f} points at 5%.\n",
            "| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1),
            *("| " + " | ".join(row) + " |" for row in table)]
    (ROOT / "benchmarks/error_rates.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
