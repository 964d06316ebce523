"""Simulate how often `--until decided` claims a difference that does not exist, and how many seeds it needs.

    python benchmarks/until_decided.py [--experiments 10000]

False claims: methods that are equal on average get the largest number of seeds, and every interim analysis of every
pair counts, so that no stopping rule could claim more. Noise is normal, symmetric with heavy tails, or that of one
method close to 100% (`near 100%`). As in reports, a method is not tested while its mean is within three standard
deviations of 100%. `shared samples` is the case of error_rates.py in which all seeds are tested on the same samples.
Seeds: differences are normal. The paired t-test of 20
seeds finds the effect with 90% power, in the same family and with the same correction. Either one method has the effect
or all methods have it. The tests are those of clbench (`clbench.results.sequential`). The script writes
benchmarks/until_decided.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from error_rates import SHARED, shared
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import nct

from clbench.experiment.until import UntilDecided
from clbench.results import sequential
from clbench.results.items import cross
from clbench.results.paired import NEAR_LIMIT
from clbench.results.stats import ALPHA

ROOT = Path(__file__).resolve().parents[1]
RULES = (UntilDecided(first=3, most=30), UntilDecided(first=3, most=12), UntilDecided(first=5, most=30))
FAMILIES = (("baseline", 1), ("baseline", 4), ("baseline", 9), ("baseline", 36),  # methods without the baseline
            ("all pairs", 3), ("all pairs", 5), ("all pairs", 10))  # all methods
SYMMETRIC = ("normal", "normal, unlike sizes", "t with 3 df")
SATURATED = ("near 100%, others 0.1", "near 100%, others 1")  # the deviation of the other methods
FIXED, POWER = 20, 0.9
SIZES = (1.0, 1.5, 2.0)  # multiples of the effect that the fixed number of seeds finds
GOALS = {1.0: 0.8, 1.5: 0.55, 2.0: 0.4}  # upper limits of the median, as a share of the fixed number of seeds
AT_ONCE = 2_000_000  # differences in memory
Case = tuple[str, int, UntilDecided, str, int]


def noise(kind: str, shape: tuple[int, int, int], draws: np.random.Generator) -> NDArray[np.float64]:
    """Return the accuracies (experiment, method, seed) of methods that are equal on average."""
    experiments, methods, _ = shape
    if kind == "normal, unlike sizes":
        return draws.standard_normal(shape) * 10 ** draws.uniform(-1, 1, (experiments, methods, 1))
    if kind in SATURATED:  # 0 stands for 100%
        found = float(kind.rsplit(maxsplit=1)[1]) * draws.standard_normal(shape) - 1
        found[:, 0] = -draws.exponential(1.0, (experiments, shape[2]))
        return found
    return draws.standard_normal(shape) if kind == "normal" else draws.standard_t(3, shape)


def size_of(asked: str, methods: int) -> int:
    """Return the number of tests of a family."""
    return methods if asked == "baseline" else math.comb(methods, 2)


def near_limit(accuracies: NDArray[np.float64], first: int) -> NDArray[np.bool_]:
    """Return whether accuracies (experiment, method, seed) are too close to 0 for a test, after each number of seeds.

    Args:
        accuracies: at most about 0, which stands for 100%.
        first: the smallest number of seeds.
    """
    n = np.arange(1, accuracies.shape[2] + 1)
    sums, squares = accuracies.cumsum(axis=2), (accuracies**2).cumsum(axis=2)
    variance = np.maximum(squares - sums**2 / n, 0) / np.maximum(n - 1, 1)
    near: NDArray[np.bool_] = (-sums / n < NEAR_LIMIT * np.sqrt(variance))[:, :, first - 1:]
    return near


def false_claims(case: Case) -> float:
    """Return the share of experiments in which an interim analysis shows a difference (Holm's first step)."""
    asked, methods, rule, kind, experiments = case
    count = methods + 1 if asked == "baseline" else methods
    pairs = [(i, 0) for i in range(1, count)] if asked == "baseline" else list(combinations(range(count), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    draws = np.random.default_rng([len(asked), methods, rule.first, rule.most, len(kind)])
    step, shown = max(1, AT_ONCE // (len(pairs) * rule.most)), 0
    for start in range(0, experiments, step):
        drawn = noise(kind, (min(step, experiments - start), count, rule.most), draws)
        differences = (drawn[:, first] - drawn[:, second]).reshape(-1, rule.most)
        ps = np.minimum.accumulate(sequential.smallest_weighted_p(differences, rule), axis=1)
        ps = ps.reshape(len(drawn), len(pairs), -1)
        if kind in SATURATED:
            near = near_limit(drawn, rule.first)
            ps = np.where(near[:, first] | near[:, second], 1.0, ps)
        told = ps.min(axis=(1, 2))
        shown += sum(len(pairs) * sequential.error_rate(float(q), rule) <= ALPHA for q in told)
    return shown / experiments


def claims_on_shared_samples(experiments: int, rule: UntilDecided) -> tuple[float, float]:
    """Return the shares of false claims of clbench, and of sequential tests that ignore that samples are shared."""
    draws, shown, ignoring = np.random.default_rng(2), 0, 0
    for _ in range(experiments):
        accuracies, scores = shared(draws, (2, rule.most), SHARED["shared test samples"])
        differences, by_sample = accuracies[1] - accuracies[0], scores[1] - scores[0]
        ps = [cross(differences[:n], by_sample[:n]).p for n in range(rule.first, rule.most + 1)]
        analysis = sequential.find_strongest_analysis(differences, rule, ps)
        shown += analysis is not None and analysis.p <= ALPHA
        ignored = sequential.find_strongest_analysis(differences, rule)
        ignoring += ignored is not None and ignored.p <= ALPHA
    return shown / experiments, ignoring / experiments


def by_usual_tests(experiments: int, rule: UntilDecided) -> float:
    """Return the share of false claims of a paired t-test that is repeated uncorrected after each seed."""
    draws = np.random.default_rng(0)
    ps = sequential.p_by_look(draws.standard_normal((experiments, rule.most)), rule.first)
    return float((ps.min(axis=1) <= ALPHA).mean())


def effect(family: int, affected: int, experiments: int) -> float:
    """Return the mean, in standard deviations, that a Holm-corrected t-test of 20 seeds finds with 90% power."""
    if affected == 1:
        bound = -stdtrit(FIXED - 1, ALPHA / family / 2)
        return float(brentq(lambda d: nct.sf(bound, FIXED - 1, d * math.sqrt(FIXED)) - POWER, 0.1, 5))
    draws = np.random.default_rng(1).standard_normal((experiments, affected, FIXED))
    deviation, mean = draws.std(axis=2, ddof=1), draws.mean(axis=2)

    def power(d: float) -> float:
        ps = np.sort(2 * stdtr(FIXED - 1, -np.abs(mean + d) * math.sqrt(FIXED) / deviation), axis=1)
        steps = ps <= ALPHA / (family - np.arange(affected))
        return float(np.logical_and.accumulate(steps, axis=1).mean())

    return float(brentq(lambda d: power(d) - POWER, 0.1, 5, xtol=1e-3))


def seeds_taken(family: int, affected: int, d: float, rule: UntilDecided, experiments: int) -> NDArray[np.int_]:
    """Return the number of seeds until each method with the effect differs significantly; `most` + 1 if it never does.

    Each interim analysis applies Holm's rule to the methods with the effect. Methods without it count only in the size
    of the family.
    """
    draws = np.random.default_rng([family, affected, round(1000 * d)])
    differences = draws.standard_normal((experiments * affected, rule.most)) + d
    p = sequential.smallest_weighted_p(differences, rule)
    told = np.minimum.accumulate(p, axis=1).reshape(experiments, affected, -1)
    bounds = np.array([sequential.threshold(ALPHA / (family - j), rule) for j in range(affected)])
    order = np.argsort(told, axis=1)
    steps = np.logical_and.accumulate(np.take_along_axis(told, order, axis=1) <= bounds[:, None], axis=1)
    shown = np.zeros_like(steps)
    np.put_along_axis(shown, order, steps, axis=1)
    return np.where(shown.any(axis=2), shown.argmax(axis=2) + rule.first, rule.most + 1).ravel()


def efficiency(case: tuple[int, int, UntilDecided, int]) -> str:
    """Return a row of the table of seeds."""
    family, affected, rule, experiments = case
    count = max(1, experiments // affected)
    d = effect(family, affected, count)
    cells = []
    for size in SIZES:
        taken = seeds_taken(family, affected, size * d, rule, count)
        median = int(np.median(taken))
        cells.append(f"{median}{'' if median <= GOALS[size] * FIXED else ' (above)'}"
                     f" | {100 * (taken <= rule.most).mean():.1f}")
    return (f"| {family} | {'all' if affected > 1 else 'one'} | {rule.first} to {rule.most} | {d:.2f} | "
            + " | ".join(cells) + " |")


def cases(experiments: int) -> Iterator[Case]:
    """Yield the cases for which false claims are simulated."""
    for rule, (asked, methods), kind in product(RULES, FAMILIES, (*SYMMETRIC, *SATURATED)):
        yield asked, methods, rule, kind, experiments


def main() -> None:
    """Simulate every case and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=10_000)
    experiments = parser.parse_args().experiments
    asked = list(cases(experiments))
    taken = [(family, affected, rule, experiments) for rule in (RULES[0], RULES[2])
             for family in (1, 4, 9, 36) for affected in dict.fromkeys((1, family))]
    with get_context("spawn").Pool(2) as pool:
        rates = dict(zip(asked, pool.map(false_claims, asked, chunksize=5), strict=True))
        seeds = pool.map(efficiency, taken, chunksize=1)
    symmetric = max(rate for case, rate in rates.items() if case[3] in SYMMETRIC)
    saturated = max(rate for case, rate in rates.items() if case[3] in SATURATED)
    kinds = (*SYMMETRIC, *SATURATED)
    lines = [f"| {question} | {size_of(question, methods)} | {rule.first} to {rule.most} | " + " | ".join(
        f"{100 * rates[question, methods, rule, kind, experiments]:.2f}" for kind in kinds) + " |"
        for rule, (question, methods) in product(RULES, FAMILIES)]
    goals = ", ".join(f"{GOALS[size] * FIXED:g} at {size:g}" for size in SIZES)
    usual = by_usual_tests(experiments, RULES[0])
    on_shared = [(rule, *claims_on_shared_samples(experiments, rule)) for rule in RULES]
    error = 100 * (ALPHA * (1 - ALPHA) / experiments) ** 0.5
    told = [
        f"# Seeds until decided, simulated\n\n`python benchmarks/until_decided.py`: {experiments:,} experiments in "
        "each cell.\n\n## False claims\n\nAll methods are alike on average; the share (%) of experiments in which some "
        f"look at some test of the family shows a difference at {100 * ALPHA:g} %, whatever the rule of stopping. With "
        f"symmetric noise at most {100 * symmetric:.2f} %; where one method is near 100 % up to "
        f"{100 * saturated:.2f} %. One standard error is {error:.2f} points at 5 %. The usual paired t test, made "
        f"after each seed from 3 to 30 as if it were the last, errs in {100 * usual:.0f} %.\n",
        "| family | tests | looks at seeds | " + " | ".join(kinds) + " |",
        "|:--|--:|:--|" + "--:|" * len(kinds), *lines,
        "\nIf two methods are tested on the same 200 samples in every seed, clbench uses the result on each sample. "
        "The same sequential tests without these results err more often:\n",
        "| looks at seeds | shared samples | without the results on samples |", "|:--|--:|--:|",
        *(f"| {rule.first} to {rule.most} | {100 * known:.2f} | {100 * ignored:.2f} |"
          for rule, known, ignored in on_shared),
        "\n## Seeds\n\nNormal differences of each method and the baseline, with a mean of so many deviations that the "
        f"paired t test of {FIXED} seeds, corrected over the same family by Holm's rule, finds it with "
        f"{100 * POWER:g} % power, and of 1.5 and 2 times that. After how many seeds such a method is decided (median) "
        f"and the share (%) that is decided at all. The median is to be at most {goals} times the effect; `(above)` "
        "marks what is not.\n",
        "| tests | with the effect | looks at seeds | effect | "
        + " | ".join(f"x{size:g}: seeds | decided" for size in SIZES) + " |",
        "|--:|:--|:--|--:|" + "--:|" * 2 * len(SIZES), *seeds]
    (ROOT / "benchmarks/until_decided.md").write_text("\n".join(told) + "\n")
    print("\n".join(told))


if __name__ == "__main__":
    main()
