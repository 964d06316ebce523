"""Two experiments explained: which mixtures of them are to be run, and what their records say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clbench.core.errors import ClbenchError, MissingDataError, SpecError
from clbench.core.registry import Registry
from clbench.experiment.factors import METRIC, Factor, Pair, Place, compare, factors
from clbench.experiment.overrides import read_spec
from clbench.experiment.trial import PlannedTrial
from clbench.report.columns import Measure, find_tested
from clbench.report.explained import Explanation, check_units
from clbench.results import attribution
from clbench.results.attribution import Order
from clbench.results.records import Record
from clbench.results.store import Store

STRUCTURE = ("benchmark", "model", "method", "scenario", "weights")  # tables that decide whether a trial can be built


@dataclass(frozen=True)
class Study:
    """The trials that divide a difference among factors.

    A combination is a number as in `attribution`. Some have the same trials: what is measured decides on none.
    """

    pair: Pair
    factors: tuple[Factor, ...]
    measures: tuple[Measure, Measure]
    orders: tuple[Order, ...]  # none: all combinations are run
    trials: Mapping[int, tuple[PlannedTrial, ...]]  # of each combination, one per seed

    @property
    def planned(self) -> list[PlannedTrial]:
        """Return every trial once, seeds outermost, so that early seeds are whole."""
        by_key = {one.trial.key: one for column in zip(*self.trials.values(), strict=True) for one in column}
        return list(by_key.values())

    @property
    def combinations(self) -> dict[str, tuple[PlannedTrial, ...]]:
        """Return the trials of each combination that is run, by its name."""
        return {column[0].label: column for column in self.trials.values()}

    def measure(self, chosen: int) -> Measure:
        """Return what is measured in a combination."""
        at = next((i for i, factor in enumerate(self.factors) if METRIC in factor.places), None)
        return self.measures[at is not None and chosen >> at & 1]


def prepare(a: Path, b: Path, metric: str, given: Mapping[str, Any], registry: Registry, most: int,
            done: Path | None = None) -> Study:
    """Read two experiments and find what is to be run to explain their difference.

    Args:
        a: the file of the first.
        b: that of the second.
        metric: what is measured, or what in A and what in B, with a comma.
        given: what replaces the files' settings in both.
        registry: what is installed.
        most: trials that may be run in all.
        done: the run folder.

    Raises:
        SpecError: a file is not valid, metrics are unknown, too many or of different units; or as `compare`, `design`.
    """
    found = find_tested([name.strip() for name in metric.split(",")])
    if len(found) > 2:
        raise SpecError(f"--metric: one metric, or A's and B's, got {len(found)}")
    measures = found[0], found[-1]
    check_units(measures)
    first, second = (read_spec(path, {}, given, ()) for path in (a, b))
    pair = compare(first, second, registry, (str(a), str(b)),
                   (measures[0].column.title, measures[1].column.title))
    return design(pair, measures, most, done)


def design(pair: Pair, measures: tuple[Measure, Measure], most: int, done: Path | None = None) -> Study:
    """Find the factors of two experiments and the combinations to be run.

    Args:
        pair: the experiments.
        measures: what is measured in A and in B.
        most: trials that may be run in all.
        done: the run folder; what it has a result of can be built.

    Raises:
        SpecError: no sample of orders is so small.
    """
    found = factors(pair.parts, refusing(pair, done))
    free = sum(1 << i for i, factor in enumerate(found) if factor.places == {METRIC})
    seeds = len(pair.seeds)
    if (least := attribution.least(len(found), free) * seeds) > most:
        raise SpecError(f"{len(found)} factors need at least {least} trials with {seeds} seeds, and --max-trials is "
                        f"{most}: give --max-trials {least}, fewer --seeds, or experiments that differ in less")
    orders = attribution.draw(len(found), most // seeds, free)
    made: dict[frozenset[Place], tuple[PlannedTrial, ...]] = {}
    trials = {}
    for chosen in attribution.needed(len(found), orders):
        own = [factor for i, factor in enumerate(found) if chosen >> i & 1 and not free >> i & 1]
        places = frozenset[Place]().union(*(factor.places for factor in own))
        if places not in made:
            name = _named([factor for i, factor in enumerate(found) if not free >> i & 1], own)
            made[places] = tuple(replace(one, label=f"{one.trial.method.name}, {name}")
                                 for one in pair.mixture(places))
        trials[chosen] = made[places]
    return Study(pair, tuple(found), measures, tuple(orders), trials)


def _named(every: Sequence[Factor], own: Sequence[Factor]) -> str:
    """Return what a combination is called: by what A has from B, or B from A if that is less."""
    rest = [factor.name for factor in every if factor not in own]
    if len(rest) < len(own):
        return f"B without {', '.join(rest)}" if rest else "B"
    return " + ".join(["A", *(factor.name for factor in own)])


def refusing(pair: Pair, done: Path | None = None) -> Callable[[frozenset[Place]], str]:
    """Return what says why a mixture cannot be run, empty if it can: plan refuses it, or nothing can be built of it.

    What is built is a network and a method for the mixture's stream, as before any run; nothing where a folder has the
    result already. Where data are not at hand, it is not tried: the run gets them or says so.
    """
    structure = frozenset(part.place for part in pair.parts if part.place[0] in STRUCTURE)
    built = {frozenset[Place](): "", structure: ""}  # the experiments themselves
    kept = {path.stem for path in Store(done).records.glob("*.json")} if done else set[str]()

    def refusal(from_b: frozenset[Place]) -> str:
        if why := pair.refusal(from_b):
            return why
        own = from_b & structure
        if own not in built:
            one = pair.mixture(from_b, pair.seeds[:1])[0]
            built[own] = "" if one.trial.key in kept else _unbuildable(pair, one)
        return built[own]

    return refusal


def _unbuildable(pair: Pair, planned: PlannedTrial) -> str:
    """Return why a trial cannot be built; empty if it can, or if its data are not there."""
    from clbench.data.datasets import without_downloads
    from clbench.execution.trial_runner import TrialRunner

    try:
        with without_downloads():
            TrialRunner(pair.a.execution, "cpu", "", pair.registry).prepare(planned.trial)
    except MissingDataError:
        return ""
    except ClbenchError as error:
        return str(error).splitlines()[0]
    return ""


def conclude(study: Study, records: Mapping[str, Record]) -> Explanation:
    """Divide the difference by what the records say; seeds without an outcome everywhere are left out.

    Raises:
        ClbenchError: no seed has an outcome for every combination.
    """
    values: dict[int, list[float | None]] = {}
    missing: dict[int, str] = {}
    for chosen, column in study.trials.items():
        measure = study.measure(chosen)
        values[chosen] = []
        for one in column:
            record = records.get(one.trial.key)
            value = measure.value(record, None) if record is not None and record.status == "done" else None
            values[chosen].append(value)
            if value is None:
                status = "is not there" if record is None else record.status if record.status != "done" else (
                    f"has no {measure.column.title}")
                missing.setdefault(one.trial.seed, f"{one.label} {status}")
    seeds = study.pair.seeds
    left_out = tuple(f"seed {seed} is left out: {why}" for seed, why in sorted(missing.items()))
    kept = [i for i, seed in enumerate(seeds) if seed not in missing]
    if not kept:
        raise ClbenchError("\n".join(["no seed has an outcome for every combination", *left_out]))
    table = {chosen: [value for i in kept if (value := row[i]) is not None] for chosen, row in values.items()}
    found = attribution.attribute(table, len(study.factors), study.orders)
    own = tuple(records[one.trial.key] for one in study.planned if one.trial.key in records)
    ends = study.trials[0][0].trial, study.trials[max(study.trials)][0].trial
    return Explanation(study.pair.names, study.factors, study.measures, tuple(seeds[i] for i in kept), found,
                       len({column[0].trial.key for column in study.trials.values()}), left_out, own, ends)
