"""Verdicts on a claim: comparisons, their intervals, and the studies that count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from evidence import Measure, Row, Study, accuracy, accuracy_with_ids

from clbench.core.objective import ACCURACY
from clbench.results.metrics import acc
from clbench.results.paired import near_limit
from clbench.results.stats import LEVEL, Interval, t_interval, welch_half_width

MARGIN = 2.0  # largest loss in points of accuracy that is still "not much worse"
Verdict = Literal["supported", "contradicted", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "inconclusive")
Rule = Callable[[Interval], Verdict]
NEAR_100 = "near 100%: not tested"


def is_above(bound: float) -> Rule:
    """Return the rule that a claim is supported if the whole interval is above a bound."""
    def rule(interval: Interval) -> Verdict:
        if interval.low is None or interval.high is None or interval.low <= bound <= interval.high:
            return "inconclusive"
        return "supported" if interval.low > bound else "contradicted"
    return rule


def is_below(bound: float) -> Rule:
    """Return the rule that a claim is supported if the whole interval is below a bound."""
    opposite: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}
    return lambda interval: opposite.get(verdict := is_above(bound)(interval), verdict)


def is_within(bound: float) -> Rule:
    """Return the rule that a claim is supported if the whole interval is within a bound on both sides of 0."""
    def rule(interval: Interval) -> Verdict:
        if interval.low is None or interval.high is None:
            return "inconclusive"
        if -bound < interval.low and interval.high < bound:
            return "supported"
        return "contradicted" if interval.low > bound or interval.high < -bound else "inconclusive"
    return rule


def is_exactly(verdict: Verdict) -> Rule:
    """Return the rule for a quantity without sampling error, such as a number of parameters."""
    return lambda interval: verdict


@dataclass(frozen=True)
class Source:
    """The study or script that a comparison comes from."""

    name: str  # identifies the study
    description: str
    report: str  # path from the project's root
    scenario: str
    pretrained: bool
    setting: tuple[str, ...]

    @classmethod
    def of(cls, study: Study) -> Source:
        """Return the source for a study."""
        return cls(study.name, study.description, study.report, study.scenario, study.pretrained, study.setting)


@dataclass(frozen=True)
class Comparison:
    """One comparison of one study for a claim."""

    source: Source
    method: str
    rival: str
    values: Mapping[int, float]  # effect by seed, for the seeds that both sides have
    rule: Rule
    details: str = ""  # text with the values of both sides
    unit: str = "points"
    main: bool = False  # the study's main comparison; all others are sensitivity rows
    counted: bool = False
    exact: bool = False  # whether the values have no sampling error, so that there is no interval
    reason: str = ""  # why the verdict is inconclusive despite the interval
    second: Mapping[int, float] | None = None  # values of another study, subtracted by Welch

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the effect with its interval."""
        if self.second is not None:
            return welch_interval(list(self.values.values()), list(self.second.values()), level)
        if self.exact:
            mean = fmean(self.values.values())
            return Interval(mean, None, None, len(self.values))
        return t_interval(list(self.values.values()), level)

    def verdict(self, level: float = LEVEL) -> Verdict:
        """Return the verdict that follows from the interval of this level."""
        return "inconclusive" if self.reason else self.rule(self.interval(level))

    @property
    def seeds(self) -> str:
        """Return the number of seeds, or the numbers of both studies if there are two."""
        return str(len(self.values)) + (f" and {len(self.second)}" if self.second is not None else "")


def welch_interval(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the difference of two independent means with Welch's interval."""
    half = welch_half_width((stdev(first) / math.sqrt(len(first)), len(first)),
                            (stdev(second) / math.sqrt(len(second)), len(second)), level)
    mean = fmean(first) - fmean(second)
    return Interval(mean, mean - half, mean + half, min(len(first), len(second)))


def shared_seeds(first: Row, second: Row) -> list[int]:
    """Return the seeds that two rows of one setting have in common."""
    return sorted(first.trials.keys() & second.trials.keys())


def by_seed(first: Row, second: Row, effect: Callable[[float, float], float], measure: Measure) -> dict[int, float]:
    """Return the effect between two rows for each seed that both have."""
    return {seed: round(effect(measure(first.trials[seed]), measure(second.trials[seed])), 10)
            for seed in shared_seeds(first, second)}


def difference(study: Study, row: Row, rival: Row, rule: Rule, *, main: bool = False, reason: str = "") -> Comparison:
    """Return the paired difference of two rows' accuracies, in points."""
    values = by_seed(row, rival, lambda one, other: one - other, accuracy)
    reached = [[accuracy(side.trials[seed]) for seed in values] for side in (row, rival)]
    if not reason and any(near_limit([value / 100 for value in side]) for side in reached):
        reason = NEAR_100
    details = f"{describe_accuracy(row, values)}, {describe_accuracy(rival, values)}"
    return Comparison(Source.of(study), row.label, rival.label, values, rule, details, main=main, reason=reason)


def describe_accuracy(row: Row, seeds: Iterable[int]) -> str:
    """Return the mean accuracy over some seeds, in Class-IL also with task IDs if the records have it."""
    trials = [row.trials[seed] for seed in seeds]
    text = f"{ACCURACY.text(fmean(acc(trial.R) for trial in trials))}%"  # rounded as in the reports
    with_ids = [accuracy_with_ids(trial) for trial in trials]
    if trials and trials[0].trial.scenario == "class" and None not in with_ids:
        text += f" ({fmean(value for value in with_ids if value is not None):.1f}% with IDs)"
    return text


def mark_counted(comparisons: Iterable[Comparison], designed: Sequence[str] = ()) -> list[Comparison]:
    """Mark the main comparisons that count. Of several studies of one setting, only one counts.

    This is the first study that was designed for the claim, else the study with the most seeds.
    """
    rows = list(comparisons)

    def preference(row: Comparison) -> tuple[int, int]:
        folder = row.source.report.split("/")[-2]
        return (designed.index(folder) if folder in designed else len(designed)), -len(row.values)

    chosen: dict[tuple[str, ...], Comparison] = {}
    for row in sorted((row for row in rows if row.main), key=preference):
        chosen.setdefault(row.source.setting, row)
    return [replace(row, counted=row.main and chosen[row.source.setting] is row) for row in rows]


def simultaneous_level(comparisons: Iterable[Comparison]) -> float:
    """Return the level of intervals that all hold together with 95% probability, by Bonferroni over counted rows."""
    count = sum(row.counted and not row.exact for row in comparisons)
    return 1 - (1 - LEVEL) / max(count, 1)


def count_verdicts(comparisons: Iterable[Comparison], level: float) -> tuple[int, int, int]:
    """Return how many counted studies support a claim, contradict it, and do not decide it."""
    verdicts = [row.verdict(level) for row in comparisons if row.counted]
    return verdicts.count("supported"), verdicts.count("contradicted"), verdicts.count("inconclusive")
