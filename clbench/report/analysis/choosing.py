"""Choose a method under constraints on counted costs. Allowed methods are ranked, and each constraint has a price.

`find_choosable` computes all possible outcomes, so that the HTML page can choose as `choose` does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.core.errors import SpecError, unknown
from clbench.core.objective import ACCURACY, Metric
from clbench.core.scenario import scenario_rules
from clbench.report.analysis.facts import final_means, limiting_test_samples
from clbench.report.analysis.families import Family, PairedTest, leader
from clbench.report.analysis.grouping import Setting
from clbench.report.columns import BYTES, COMPUTE, INFERENCE, REPLAY, TRAINABLE, Measure
from clbench.report.decided import Candidate, CandidateComparison, Choosable
from clbench.report.formatting import number
from clbench.results.paired import MOST_SEEDS


def find_choosable(setting: Setting, everything: Family | None = None) -> Choosable | None:
    """Return the methods of a setting that can be chosen, or None if there are fewer than two.

    The chosen method is the best one that the constraints allow. So of each pair, only the method with the higher mean
    can be chosen.

    Args:
        setting: the setting of the methods.
        everything: the tests of the final means of all pairs, if they are already known.
    """
    finals = final_means(setting)
    if len(finals) < 2:
        return None
    intervals = {label: setting.interval(setting.final, label) for label in finals}
    amounts = {kind.name: values_of(setting, kind) for kind in KINDS}
    tests = everything or setting.tests(setting.final, setting.compared(setting.final))
    # Of equal methods, the first leads, as in `leader`. If a rule added seeds, significantly worse methods come last.
    order = sorted(finals, key=lambda label: (label in tests.dropped, setting.metric.rank(intervals[label].mean)))
    beaten = {label: tests.beaten_by(label) for label in finals}
    pairs = {}
    for pair in tests.pairs:
        if not {pair.first, pair.second} <= finals.keys():
            continue
        ahead = min(pair.first, pair.second, key=order.index)
        behind = pair.swapped if pair.first == ahead else pair
        rival = rival_of(behind, finals, setting, beaten[ahead])
        pairs[ahead, behind.first] = CandidateComparison(
            rival.difference, rival.half_width, rival.shown, rival.needed, rival.untested, rival.inconclusive)
    return Choosable(
        scenario_rules(setting.records[0].trial.scenario).task_given,
        tuple(Candidate(label, intervals[label].mean, intervals[label].half_width,
                        {name: values.get(label) for name, values in amounts.items()},
                        setting.cautions.get(label, "")) for label in order),
        tuple(tuple(pairs[a, b] for b in order[i + 1:]) for i, a in enumerate(order)),
        tuple(m.label for m in setting.methods if not m.reference and m.label not in finals), setting.metric)


PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
AMOUNT = re.compile(r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[0-9]+)?)\s*"
                    r"(?:(?P<percent>%)|(?P<times>x)(?:-(?P<method>.+))?|(?P<prefix>Ki|Mi|Gi|[kKMGT]?)B?)")


@dataclass(frozen=True)
class Kind:
    """A counted cost that `--max-NAME` can limit, with the words for a method above the limit."""

    name: str
    measure: Measure
    words: str


KINDS = (Kind("kept", BYTES, "stores"), Kind("trainable", TRAINABLE, "trains"), Kind("compute", COMPUTE, "needs"),
         Kind("inference", INFERENCE, "needs per sample"), Kind("samples", REPLAY, "stores samples:"))


@dataclass(frozen=True)
class Limit:
    """A constraint: the maximum amount of a counted cost."""

    kind: Kind
    flag: str  # as the user gave it: `--max-kept 5MB`
    most: float

    def refusal(self, value: float | None) -> str | None:
        """Return why a method with this value is not allowed, or None if it is allowed."""
        if value is None:
            return f"{self.kind.measure.column.name} not recorded"
        return None if value <= self.most else f"{self.kind.words} {number(value, self.kind.measure.column.unit)}"


@dataclass(frozen=True)
class Rival:
    """An allowed method that was not chosen. The difference says by how much the chosen one is better."""

    method: str
    accuracy: float  # or the final mean of another metric
    difference: float
    half_width: float | None  # of the uncorrected 95% interval
    shown: bool  # whether the rival is significantly worse, corrected for all pairs of the setting (`Family.beaten_by`)
    needed: int | None  # if not: about how many seeds would make the difference significant
    caution: str = ""  # marks of a method that is underfit or at chance
    untested: str = ""  # why there is no test
    limited: int | None = None  # number of test samples, if they are too few for more seeds to help
    inconclusive: bool = False  # whether there are too few seeds for a test
    equal: bool = False  # whether the methods are equal on every seed


@dataclass(frozen=True)
class Price:
    """The price of a constraint: how much better the best method would be without the constraint."""

    flag: str
    method: str  # the best method without the constraint
    accuracy: float
    difference: float | None  # None if no method is allowed
    half_width: float | None


@dataclass(frozen=True)
class Choice:
    """The methods of a setting that meet the constraints, the best first."""

    title: str
    scenario: str
    seeds: int
    limits: tuple[Limit, ...]
    best: str | None  # None: no method is allowed
    accuracy: float | None
    half_width: float | None
    costs: Mapping[str, float | None]  # of the best method, by the name of the kind
    rivals: tuple[Rival, ...]
    prices: tuple[Price, ...]
    refused: Mapping[str, str]  # the reason why a method is not allowed, by method
    metric: Metric = ACCURACY  # by which methods are ranked
    caution: str = ""  # marks of the best method if it is underfit or at chance
    most_seeds: int = MOST_SEEDS  # estimates of needed seeds consider no larger number

    @property
    def open(self) -> list[Rival]:
        """Return the rivals that are not significantly worse."""
        return [rival for rival in self.rivals if not rival.shown]


def limit(setting: Setting, name: str, given: str, labels: Mapping[str, str] | None = None) -> Limit:
    """Return a constraint for a setting.

    Args:
        setting: the setting. Relative limits refer to its baseline.
        name: name of a kind.
        given: an amount such as `5MB` or `20k`, a share of the baseline's amount such as `1%`, a multiple of it such as
            `1.5x`, or a multiple of another method's amount such as `2x-er`.
        labels: the labels of the setting's methods by further names, such as display names.

    Raises:
        SpecError: the text is none of these, or the setting lacks the method that it refers to.
    """
    kind = next(kind for kind in KINDS if kind.name == name)
    flag = f"--max-{name} {given}" if name != "samples" else "--no-samples-kept"
    match = AMOUNT.fullmatch(given.strip())
    if match is None:
        raise SpecError(f"{flag}: expected an amount such as 5MB or 20k, a share such as 1%, or a multiple such as 2x "
                        "or 2x-naive")
    amount = float(match["number"])
    if not (match["percent"] or match["times"]):
        return Limit(kind, flag, amount * PREFIXES[match["prefix"]])
    label_by_name = {**(labels or {}), **{m.label: m.label for m in setting.methods}}
    other_name = match["method"]
    if other_name and other_name not in label_by_name:
        raise SpecError(f"{flag}: {setting.title} has {unknown('method', other_name, label_by_name, 'clbench report')}")
    other_label = label_by_name[other_name] if other_name else setting.baseline
    value = values_of(setting, kind).get(other_label or "")
    if value is None:
        description = f"method {other_label!r}" if other_label else "fine-tuning baseline (naive)"
        raise SpecError(f"{flag}: {setting.title} has no {description} whose {kind.measure.column.name} is known. "
                        "Give an amount instead")
    return Limit(kind, flag, amount / (100 if match["percent"] else 1) * value)


def values_of(setting: Setting, kind: Kind) -> dict[str, float | None]:
    """Return the mean amount of each method over its seeds, or None if some record lacks the amount."""
    return {label: setting.mean(kind.measure, label) for label in setting.values(kind.measure)}


def choose(setting: Setting, limits: Sequence[Limit]) -> Choice:
    """Choose a method of a setting under constraints.

    The same data decide which method is best, so the family of tests has all pairs of the setting's methods.
    """
    amounts = {kind: values_of(setting, kind) for kind in KINDS}
    finals = final_means(setting)
    refused = {m.label: "not every seed gave a result" for m in setting.methods
               if not m.reference and m.label not in finals}
    for label in finals:
        reasons = [reason for constraint in limits
                   if (reason := constraint.refusal(amounts[constraint.kind].get(label)))]
        if reasons:
            refused[label] = ", ".join(reasons)
    allowed = [label for label in finals if label not in refused]
    tests = setting.tests(setting.final, setting.compared(setting.final))
    best = leader(setting.final.column, {label: finals[label] for label in allowed}, tests) if allowed else None
    if best is None:
        return Choice(setting.title, setting.records[0].trial.scenario, len(setting.seeds), tuple(limits), None, None,
                      None, {}, (), tuple(_prices(limits, amounts, finals, None, setting, tests)), refused,
                      setting.metric)
    pairs = {pair.first: pair for pair in tests.against(best)}
    beaten = tests.beaten_by(best)
    rivals = sorted((rival_of(pairs[label], finals, setting, beaten) for label in allowed if label != best),
                    key=lambda rival: setting.metric.rank(rival.accuracy))
    interval = setting.interval(setting.final, best)
    return Choice(setting.title, setting.records[0].trial.scenario, len(finals[best]), tuple(limits), best,
                  interval.mean, interval.half_width, {kind.name: amounts[kind].get(best) for kind in KINDS},
                  tuple(rivals), tuple(_prices(limits, amounts, finals, best, setting, tests)), refused, setting.metric,
                  setting.cautions.get(best, ""), setting.until.most if setting.until else MOST_SEEDS)


def rival_of(pair: PairedTest, finals: Mapping[str, Mapping[int, float]], setting: Setting,
             beaten: Collection[str]) -> Rival:
    """Compare a method, the first of the pair, to the chosen one, the second, which beats the methods of `beaten`."""
    interval = _lead(pair.swapped, setting).interval
    is_worse = pair.first in beaten
    is_open = not (is_worse or pair.equal or pair.untested)
    limited = limiting_test_samples(setting, pair) if is_open else None
    return Rival(pair.first, fmean(finals[pair.first].values()), interval.mean, interval.half_width, is_worse,
                 pair.needed if is_open and not limited else None, setting.cautions.get(pair.first, ""),
                 pair.untested, limited, is_open and not pair.decidable, pair.equal)


def _lead(pair: PairedTest, setting: Setting) -> PairedTest:
    """Return the pair, swapped if lower values are better, so that positive differences favor the first method."""
    return pair if setting.metric.direction == "up" else pair.swapped


def _prices(limits: Sequence[Limit], counted: Mapping[Kind, Mapping[str, float | None]],
            finals: Mapping[str, Mapping[int, float]], best: str | None,
            setting: Setting, tests: Family) -> list[Price]:
    """Return the price of each constraint if the other constraints stay. `tests` are those of all pairs."""
    prices = []
    for constraint in limits:
        other_limits = [other for other in limits if other is not constraint]
        candidates = {label: by_seed for label, by_seed in finals.items()
                      if not any(other.refusal(counted[other.kind].get(label)) for other in other_limits)}
        if not candidates:
            continue
        best_without = leader(setting.final.column, candidates, tests)
        accuracy = fmean(candidates[best_without].values())
        if best is None:
            prices.append(Price(constraint.flag, best_without, accuracy, None, None))
            continue
        if best_without == best:
            prices.append(Price(constraint.flag, best_without, accuracy, 0.0, 0.0))
            continue
        pair, = setting.tests(setting.final, {label: finals[label] for label in (best_without, best)}, best).pairs
        interval = _lead(pair, setting).interval
        prices.append(Price(constraint.flag, best_without, accuracy, interval.mean, interval.half_width))
    return prices
