import json
import runpy
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from clbench.results.paired import deciding_test, p_values, paired_t_p, saturated_rate, seeds_to_show
from clbench.results.stats import ALPHA, sign_flip_p

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("n", [2, 3, 7, 60])
def test_the_paired_t_is_that_of_scipy(n):
    found = np.random.default_rng(n).normal(0.3, 1.0, (20, n))
    assert paired_t_p(found.tolist()) == pytest.approx(scipy_stats.ttest_1samp(found, 0.0, axis=1).pvalue, rel=1e-9)


def test_equal_differences_have_no_deviation_and_so_no_t():
    assert paired_t_p([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]]) == [0.25, 1.0]


def test_the_number_of_seeds_and_the_family_alone_choose_the_test():
    draws = np.random.default_rng(0)
    for n, family in ((6, 1), (5, 1), (11, 36), (10, 36), (3, 1431)):
        needed = 2.0 ** (1 - n) * family <= ALPHA
        assert deciding_test(n, family) == ("flips" if needed else "t")
        found = draws.normal(0, 1, (5, n)).tolist()
        assert p_values(found, family) == (sign_flip_p(found) if needed else paired_t_p(found))
    assert deciding_test(1, 1) is None and p_values([[0.5], [0.0]], 2) == [1.0, 1.0]


def test_the_seeds_that_would_do_are_the_fewest():
    differences = [0.01, 0.03, 0.02, -0.01, 0.02]
    effect = np.mean(differences) / np.std(differences, ddof=1)
    for family in (1, 45):
        needed = seeds_to_show(differences, family)
        ps = {n: 2 * family * scipy_stats.t.sf(effect * n ** 0.5, n - 1) for n in (needed - 1, needed)}
        assert ps[needed] <= ALPHA < ps[needed - 1]
    assert seeds_to_show([0.0001, -0.0001, 0.00001], 45) is None
    assert seeds_to_show([0.1, 0.1], 1) == seeds_to_show([0.1], 1) == 6  # sign flips
    assert seeds_to_show([0.0, 0.0], 1) is None


def test_the_rate_that_reports_print_is_that_of_the_simulation():
    kept = json.loads((files("clbench.results") / "false_claims.json").read_text())
    assert kept["experiments"] == 10_000
    assert max(kept["symmetric"].values()) <= 0.055
    assert saturated_rate(4) == kept["saturated"]["4"] and saturated_rate(1000) == list(kept["saturated"].values())[-1]
    told = (ROOT / "benchmarks/false_claims.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("| ")][1:]
    by_t = [float(cell) for row in rows if row[3] == "t" and row[2] == "4" for cell in row[-2:]]
    assert max(by_t) == pytest.approx(100 * saturated_rate(4), abs=0.005)  # two decimals


@pytest.mark.parametrize(("asked", "methods", "seeds"), [("baseline", 9, 3), ("all pairs", 5, 9)])
def test_the_simulation_gives_about_its_committed_rates(asked, methods, seeds):
    simulated = runpy.run_path(str(ROOT / "benchmarks/false_claims.py"))
    found = simulated["false_claims"](asked, methods, seeds, "normal", 1000)
    assert found <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 1000) ** 0.5
