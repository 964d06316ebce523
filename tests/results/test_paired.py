import importlib
import re

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats as scipy_stats

from clbench.experiment.until import UntilDecided
from clbench.results.paired import deciding_test, near_limit, p_values, paired_t_p, seeds_to_show
from clbench.results.sequential import find_strongest_analysis, seeds_to_decide
from clbench.results.stats import ALPHA, sign_flip_p


@pytest.mark.parametrize("n", [2, 3, 7, 60])
def test_the_paired_t_is_that_of_scipy(n):
    found = np.random.default_rng(n).normal(0.3, 1.0, (20, n))
    assert paired_t_p(found.tolist()) == pytest.approx(scipy_stats.ttest_1samp(found, 0.0, axis=1).pvalue, rel=1e-9)


def test_equal_differences_have_no_deviation_and_so_no_t():
    assert paired_t_p([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]]) == [0.25, 1.0]


def test_the_number_of_seeds_and_the_family_alone_choose_the_test():
    draws = np.random.default_rng(0)
    for n, family in ((8, 1), (7, 1), (6, 1), (11, 36), (10, 36), (3, 1431)):
        needed = n >= 8 and 2.0 ** (1 - n) * family <= ALPHA
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
    assert seeds_to_show([0.1], 1) is seeds_to_show([0.0, 0.0], 1) is None


def test_the_same_difference_on_every_seed_needs_as_many_seeds_as_its_test():
    for family in (1, 6):
        needed = seeds_to_show([0.1] * 3, family)
        ps = [family * p_values([[0.1] * n], family)[0] for n in (needed - 1, needed)]
        assert ps[1] <= ALPHA < ps[0]
    rule = UntilDecided(first=3, most=20)
    needed = seeds_to_decide([0.1] * 3, rule, 1)
    ps = [find_strongest_analysis([0.1] * n, rule).p for n in (needed - 1, needed)]
    assert ps[1] <= ALPHA < ps[0] and seeds_to_decide([0.0] * 3, rule, 1) is None


def test_accuracies_within_three_deviations_of_100_percent_are_near_the_limit():
    values = [0.94, 0.96, 0.98]  # mean 0.96, deviation 0.02
    assert near_limit(values) and near_limit([v + 0.01 for v in values])
    assert not near_limit([v - 0.021 for v in values])
    assert not near_limit([1.0, 1.0, 1.0]) and not near_limit([0.999])


def simulated():
    """Return the committed rows of benchmarks/error_rates.md: null, comparisons, seeds, and the numbers."""
    text = (ROOT / "benchmarks/error_rates.md").read_text()
    assert int(re.search(r"([\d,]+) experiments", text)[1].replace(",", "")) >= 4_000
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| ")]
    return [(name, int(size), int(seeds), *map(float, rest)) for name, size, seeds, *rest in rows[1:]]


def test_reports_claim_falsely_in_at_most_5_percent_of_the_simulated_families():
    rows = simulated()
    assert len(rows) == 8 * 2 * 5
    for name, *_, false_claims, _, coverage, _, _ in rows:
        if name != "one method collapses":  # no test of a few seeds sees what has not happened yet
            assert false_claims <= 5.5 + 100 * (ALPHA * (1 - ALPHA) / 4_000) ** 0.5, name
        if name == "normal":
            assert 93.5 <= coverage <= 96.5
    usual = [row[4] for row in rows if row[0].startswith("shared")]
    assert max(usual) > 6.5  # what the tests would claim if they did not know the samples


def test_the_simulation_gives_about_its_committed_rates(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("error_rates")
    committed = {row[:3]: row[3] for row in simulated()}
    draws = np.random.default_rng(1)
    found = 100 * np.mean([script.claims(script.normal(draws, (2, 5))) for _ in range(400)])
    assert found == pytest.approx(committed["normal", 1, 5], abs=4)


def test_the_page_on_statistics_has_the_worst_rates_of_the_simulation():
    worst: dict[str, tuple[float, float]] = {}
    for name, _, _, claims, usual, *_ in simulated():
        before = worst.get(name, (0.0, 0.0))
        worst[name] = max(before[0], claims), max(before[1], usual)
    page = (ROOT / "docs/statistics.md").read_text()
    shown = re.findall(r"^\| [^|]+ \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [(float(a), float(b)) for a, b in shown] == list(worst.values())
