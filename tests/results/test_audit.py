"""Verdicts of an audit: intervals, margins, Holm's correction, and how often an unchanged model loses something."""

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from clbench.core.objective import CAUSAL_LM, EXACT, NLL
from clbench.results.audit import (
    MARGINS,
    FileScores,
    compare,
    judge,
    margin,
    noise_floor,
    score_interval,
    score_z,
    stays_within,
    worse_p,
)


@pytest.mark.parametrize(("gained", "lost", "items", "expected"), [
    (1, 7, 21, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, Tango's interval
    (0, 0, 100, (-0.037, 0.037)),  # 1.96^2 / (100 + 1.96^2)
])
def test_the_score_interval_is_the_published_one(gained, lost, items, expected):
    assert score_interval(gained, lost, items) == pytest.approx(expected, abs=5e-4)


def test_the_score_test_without_a_difference_is_mcnemars():
    assert score_z(3, 11, 50, 0.0) == pytest.approx((3 - 11) / math.sqrt(3 + 11))


def test_the_score_interval_is_the_inverted_test():
    for gained, lost, items in ((0, 12, 12), (2, 9, 40), (5, 5, 30)):
        for end in score_interval(gained, lost, items):
            if abs(end) < 1 - 1e-9:
                assert abs(score_z(gained, lost, items, end)) == pytest.approx(norm.ppf(0.975), abs=1e-6)


def test_the_score_interval_covers():
    draws = np.random.default_rng(0)
    share = [0.6, 0.08, 0.2, 0.12]  # both right, gained, lost, both wrong
    covered = []
    for _ in range(1000):
        _, gained, lost, _ = draws.multinomial(60, share)
        low, high = score_interval(int(gained), int(lost), 60)
        covered.append(low <= share[1] - share[2] <= high)
    assert 0.93 <= np.mean(covered) <= 0.975


def test_the_p_value_beyond_a_margin_is_that_of_the_t_test():
    worsenings = [0.2, 0.1, 0.4, 0.25, 0.15]
    one_sided = ttest_1samp(worsenings, 0.05, alternative="greater").pvalue
    assert worse_p(worsenings, 0.05) == pytest.approx(2 * one_sided)
    assert worse_p([0.1], 0.05) == 1.0
    assert (worse_p([0.1, 0.1], 0.05), worse_p([0.1, 0.1], 0.1)) == (0.0, 1.0)


def test_the_floor_is_what_the_mean_changes_and_the_margin_is_three_of_them():
    first, again = FileScores((1.0, 2.0), (True, True)), FileScores((1.1, 2.3), (True, False))
    assert noise_floor(first, again, NLL) == pytest.approx(0.2)
    assert noise_floor(first, again, EXACT) == 0.5
    assert margin(0.2, NLL) == pytest.approx(0.6)
    assert (margin(0.01, NLL), margin(0.001, EXACT)) == (0.05, 0.01)


def judged(differences, floor=0.0, metric=NLL):
    base = FileScores(tuple(1.0 for _ in differences))
    scores = FileScores(tuple(1.0 + d for d in differences))
    return judge([compare("m", "f", metric, base, scores, floor)])[0]


@pytest.mark.parametrize(("differences", "verdict"), [
    ((0.5, 0.6, 0.4, 0.55), "lost"), ((-0.5, -0.6, -0.4, -0.55), "kept"), ((0.01, -0.01, 0.02, 0.0), "kept"),
    ((0.5, -0.6, 0.4, -0.1), "inconclusive"), ((0.04, 0.08, 0.05, 0.06), "inconclusive"), ((3.0,), "inconclusive"),
    ((0.0, 0.0, 0.0), "kept")])
def test_verdicts_follow_from_the_interval_and_the_margin(differences, verdict):
    assert judged(differences).verdict == verdict


def test_exact_is_lost_if_fewer_items_match():
    base = FileScores((0.0,) * 30, (True,) * 30)
    for lost, verdict in ((20, "lost"), (0, "inconclusive"), (1, "inconclusive")):
        scores = FileScores((0.0,) * 30, (False,) * lost + (True,) * (30 - lost))
        one, = judge([compare("m", "f", EXACT, base, scores, 0.0)])
        assert (one.verdict, one.difference) == (verdict, pytest.approx(-lost / 30))
    gained = compare("m", "f", EXACT, FileScores((0.0,) * 30, (False,) * 30), base, 0.0)
    assert judge([gained])[0].verdict == "kept"


def test_a_loss_that_holm_does_not_leave_significant_is_inconclusive():
    weak = (0.2, 0.35, 0.1, 0.3, 0.15, 0.4)
    alone = judged(weak)
    assert alone.verdict == "lost"
    base, other = FileScores((1.0,) * 6), FileScores((1.0, 1.1, 0.9, 1.0, 1.2, 0.8))
    cells = [compare("m", str(i), NLL, base, other, 0.0) for i in range(9)]
    together = judge([compare("m", "f", NLL, base, FileScores(tuple(1.0 + d for d in weak)), 0.0), *cells])
    assert together[0].low > 0.05
    assert together[0].corrected_p == pytest.approx(10 * alone.p)
    assert together[0].verdict == "inconclusive"


def test_losses_stay_within_if_intervals_of_nll_and_means_of_exact_do():
    base = FileScores((1.0,) * 20, (True,) * 20)
    small = FileScores((1.01,) * 20, (True,) * 20)
    wrong = FileScores((1.01,) * 20, (False,) + (True,) * 19)
    worse = FileScores((1.2,) * 20, (True,) * 20)
    for scores, within in ((small, True), (wrong, False), (worse, False)):
        assert stays_within(judge([compare("m", "f", metric, base, scores, 0.0) for metric in (NLL, EXACT)])) == within
    unsure, = judge([compare("m", "f", NLL, FileScores((1.0,) * 4), FileScores((1.04, 1.08, 1.05, 1.06)), 0.0)])
    assert unsure.verdict == "inconclusive" and not stays_within([unsure])


@pytest.mark.slow
def test_few_audits_of_an_unchanged_model_report_a_loss():
    """Losses of the same model differ by rounding, and right answers change where two tokens are almost equally likely.

    Five files of 40 items, half of their answers right; the noise is ten times that of bfloat16.
    """
    draws, reported = np.random.default_rng(1), 0
    for _ in range(200):
        cells = []
        for name in "abcde":
            nll = draws.gamma(2.0, 0.5, 40)
            right = draws.random(40) < 0.5
            passes = []
            for _ in range(3):
                noise = 0.1 * draws.standard_t(3, 40) * nll
                flips = draws.random(40) < 0.04
                passes.append(FileScores(tuple(nll + noise), tuple(right ^ flips)))
            for metric in CAUSAL_LM.metrics:
                floor = noise_floor(passes[0], passes[1], metric)
                cells.append(compare("m", name, metric, passes[0], passes[2], floor))
        reported += any(one.verdict == "lost" for one in judge(cells))
    assert reported <= 10


def reported_losses(shift, lost=0.0, margins=None, audits=200):
    """Return how many audits report a loss. Items are independent, and each audit has one file and one metric.

    Args:
        shift: the true mean change of nll.
        lost: the true share of right answers that become wrong, minus that of wrong ones that become right; if it is
            not 0, the audits are of exact match instead of nll.
        margins: the margins of the audits; by default those of `clbench forget`.
        audits: the number of audits.
    """
    draws, reported = np.random.default_rng(2), 0
    for _ in range(audits):
        nll, right = draws.gamma(2.0, 0.5, 60), draws.random(300) < 0.5
        after = nll + shift + draws.normal(0, 0.1, 60) * nll
        flips = draws.random(300) < np.where(right, 0.04 + lost, 0.04 - lost)
        base, scores = (FileScores(tuple(a), tuple(b)) for a, b in ((nll, right), (after, right ^ flips)))
        metric = EXACT if lost else NLL
        reported += judge([compare("m", "f", metric, base, scores, 0.0, margins or MARGINS)])[0].verdict == "lost"
    return reported


@pytest.mark.parametrize(("at_margin", "beyond", "metric"), [
    ({"shift": 0.05}, {"shift": 0.15}, NLL), ({"shift": 0.0, "lost": 0.01}, {"shift": 0.0, "lost": 0.1}, EXACT)])
def test_few_audits_report_a_loss_if_the_true_change_is_just_the_margin(at_margin, beyond, metric):
    """At the margin, the interval is beyond it in 2.5% of the audits; a larger change or no margin gives more."""
    assert MARGINS[metric.name] == max(at_margin["shift"], at_margin.get("lost", 0.0))
    assert reported_losses(**at_margin) <= 10
    assert reported_losses(**beyond) >= 150
    assert reported_losses(**at_margin, margins=dict.fromkeys(MARGINS, 0.0)) > 10
