"""A method chosen under constraints: counted facts filter, evidence ranks, and each constraint has its price."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.core.errors import SpecError
from clbench.report.analysis.facts import limiting_test_samples
from clbench.report.analysis.families import Pair, leader
from clbench.report.analysis.grouping import Setting
from clbench.report.columns import ACC, BYTES, COMPUTE, INFERENCE, REPLAY, TRAINABLE, Measure
from clbench.report.formatting import number

PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
AMOUNT = re.compile(r"(?P<number>[0-9.]+(?:e[0-9]+)?)\s*(?:(?P<percent>%)|(?P<times>x)(?:-(?P<method>.+))?|"
                    r"(?P<prefix>Ki|Mi|Gi|[kKMGT]?)B?)")


@dataclass(frozen=True)
class Kind:
    """Something counted that can be limited, as `--max-NAME`, and what a method above the limit is said to do."""

    name: str
    measure: Measure
    words: str


KINDS = (Kind("kept", BYTES, "stores"), Kind("trainable", TRAINABLE, "trains"), Kind("compute", COMPUTE, "needs"),
         Kind("inference", INFERENCE, "needs per sample"), Kind("samples", REPLAY, "stores samples:"))


@dataclass(frozen=True)
class Limit:
    """A constraint: at most so much of what is counted."""

    kind: Kind
    flag: str  # as it was given: `--max-kept 5MB`
    most: float

    def refusal(self, value: float | None) -> str | None:
        """Return why a method with this value is left out, None if it is not."""
        if value is None:
            return f"{self.kind.measure.column.name} not recorded"
        return None if value <= self.most else f"{self.kind.words} {number(value, self.kind.measure.column.unit)}"


@dataclass(frozen=True)
class Rival:
    """A method that is allowed, beside the one that is chosen; differences are the chosen one's less its own."""

    method: str
    accuracy: float
    difference: float
    half_width: float | None  # of its own 95 % interval
    shown: bool  # to be worse than the chosen one, among all pairs of the setting
    needed: int | None  # about how many seeds would show it, where it is not shown
    caution: str = ""  # marks of a method that is underfit or at chance
    untested: str = ""  # why there is no test
    limited: int | None = None  # test samples, where they are too few for more seeds to show it


@dataclass(frozen=True)
class Price:
    """What a constraint costs: the best without it, less the best with it (None where no method keeps to all)."""

    flag: str
    method: str  # the best without it
    accuracy: float
    difference: float | None
    half_width: float | None


@dataclass(frozen=True)
class Choice:
    """The methods of a setting that keep to some constraints, the best by accuracy first."""

    title: str
    scenario: str
    seeds: int
    limits: tuple[Limit, ...]
    best: str | None  # None: no method is allowed
    accuracy: float | None
    half_width: float | None
    costs: Mapping[str, float | None]  # of the best, by the kinds' names
    rivals: tuple[Rival, ...]
    prices: tuple[Price, ...]
    refused: Mapping[str, str]  # why, by method

    @property
    def open(self) -> list[Rival]:
        """Return the rivals that are not shown to be worse."""
        return [rival for rival in self.rivals if not rival.shown]


def limit(setting: Setting, name: str, given: str) -> Limit:
    """Return a constraint for a setting.

    Args:
        setting: whose baseline relative limits are relative to.
        name: of a kind.
        given: an amount, as in `5MB` or `20k`; a share of what plain fine-tuning has, as in `1%`; a multiple of it, as
            in `1.5x`, or of what another method has, as in `2x-er`.

    Raises:
        SpecError: it is none of these, or what it is relative to is not there.
    """
    kind = next(kind for kind in KINDS if kind.name == name)
    flag = f"--max-{name} {given}" if name != "samples" else "--no-samples-kept"
    found = AMOUNT.fullmatch(given.strip())
    if found is None or found["number"].count(".") > 1:
        raise SpecError(f"{flag}: expected an amount such as 5MB or 20k, a share such as 1%, or a multiple such as 2x "
                        "or 2x-naive")
    amount = float(found["number"])
    if not (found["percent"] or found["times"]):
        return Limit(kind, flag, amount * PREFIXES[found["prefix"]])
    other = found["method"] or setting.baseline
    value = values_of(setting, kind).get(other or "")
    if other is None or value is None:
        whom = f"method {other!r}" if other else "fine-tuning baseline (naive)"
        raise SpecError(f"{flag}: {setting.title} has no {whom} whose {kind.measure.column.name} is known. Give an "
                        "amount instead")
    return Limit(kind, flag, amount * value / (100 if found["percent"] else 1))


def values_of(setting: Setting, kind: Kind) -> dict[str, float | None]:
    """Return what is counted of each method, the mean over its seeds; None where some record has not counted it."""
    found: dict[str, float | None] = {}
    for label, by_seed in setting.values(kind.measure).items():
        known = [value for value in by_seed.values() if value is not None]
        found[label] = fmean(known) if known and len(known) == len(by_seed) else None
    return found


def choose(setting: Setting, limits: Sequence[Limit]) -> Choice:
    """Return what a setting's records say of its methods under constraints.

    Which is best is asked after looking, so what is shown is shown among all pairs of the setting's methods.
    """
    counted = {kind: values_of(setting, kind) for kind in KINDS}
    accuracies = {label: found for label, found in setting.compared(ACC).items() if label in setting.eligible}
    refused = {m.label: "not every seed gave a result" for m in setting.methods
               if not m.reference and m.label not in accuracies}
    for label in accuracies:
        reasons = [why for one in limits if (why := one.refusal(counted[one.kind].get(label)))]
        if reasons:
            refused[label] = ", ".join(reasons)
    allowed = [label for label in accuracies if label not in refused]
    tests = setting.tests(ACC, accuracies)
    best = leader(ACC.column, {label: accuracies[label] for label in allowed}, tests) if allowed else None
    if best is None:
        return Choice(setting.title, setting.records[0].trial.scenario, len(setting.seeds), tuple(limits), None, None,
                      None, {}, (), tuple(_prices(limits, counted, accuracies, None, setting)), refused)
    pairs = {pair.first: pair for pair in tests.against(best)}
    rivals = sorted((rival_of(pairs[label], accuracies, setting) for label in allowed if label != best),
                    key=lambda rival: -rival.accuracy)
    over = setting.interval(ACC, best)
    return Choice(setting.title, setting.records[0].trial.scenario, len(setting.seeds), tuple(limits), best, over.mean,
                  over.half_width, {kind.name: counted[kind].get(best) for kind in KINDS}, tuple(rivals),
                  tuple(_prices(limits, counted, accuracies, best, setting)), refused)


def rival_of(pair: Pair, accuracies: Mapping[str, Mapping[int, float]], setting: Setting) -> Rival:
    """Return what is to be said of a method beside the chosen one, the second of the pair."""
    own = pair.swapped  # the best less the rival
    over = own.interval
    shown = own.significant and over.mean > 0
    is_open = not (shown or pair.equal or pair.untested)
    limited = limiting_test_samples(setting, pair) if is_open else None
    return Rival(pair.first, fmean(accuracies[pair.first].values()), over.mean, over.half_width, shown,
                 pair.needed if is_open and not limited else None, setting.cautions.get(pair.first, ""),
                 pair.untested, limited)


def _prices(limits: Sequence[Limit], counted: Mapping[Kind, Mapping[str, float | None]],
            accuracies: Mapping[str, Mapping[int, float]], best: str | None,
            setting: Setting) -> list[Price]:
    """Return what each constraint costs where the others stay."""
    found = []
    for one in limits:
        rest = [other for other in limits if other is not one]
        free = {label: own for label, own in accuracies.items()
                if not any(other.refusal(counted[other.kind].get(label)) for other in rest)}
        if not free:
            continue
        without = leader(ACC.column, free)
        accuracy = fmean(free[without].values())
        if best is None:
            found.append(Price(one.flag, without, accuracy, None, None))
            continue
        if without == best:
            found.append(Price(one.flag, without, accuracy, 0.0, 0.0))
            continue
        pair, = setting.tests(ACC, {label: accuracies[label] for label in (without, best)}, best).pairs
        found.append(Price(one.flag, without, accuracy, pair.interval.mean, pair.interval.half_width))
    return found
