"""Explain the difference of two experiments: the mixtures to run, and the contributions from their records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from clbench.core.errors import ClbenchError, MissingDataError, SpecError
from clbench.core.options import validate
from clbench.core.registry import Registry
from clbench.experiment.factors import METRIC, Factor, Pair, Place, compare, factors
from clbench.experiment.overrides import Note, read_spec
from clbench.experiment.spec import Spec
from clbench.experiment.trial import PlannedTrial
from clbench.report.columns import Measure, find_tested
from clbench.report.explained import Explanation, check_units
from clbench.report.metric_columns import final_of, measures_of
from clbench.results import attribution
from clbench.results.attribution import Order
from clbench.results.records import Record
from clbench.results.store import Store

STRUCTURE = ("benchmark", "model", "method", "scenario", "weights")  # tables that decide whether a trial can be built


@dataclass(frozen=True)
class Study:
    """The trials that attribute a difference to factors.

    A combination is a number as in `attribution`. Combinations that differ in the metric only have the same trials.
    """

    pair: Pair
    factors: tuple[Factor, ...]
    measures: tuple[Measure, Measure]
    orders: tuple[Order, ...]  # sampled orders of the factors; empty if all combinations run
    trials: Mapping[int, tuple[PlannedTrial, ...]]  # of each combination, one per seed

    @property
    def planned(self) -> list[PlannedTrial]:
        """Return every trial once, seed by seed, so that an interrupted run has complete seeds."""
        trials_by_seed = zip(*self.trials.values(), strict=True)
        by_key = {planned_trial.trial.key: planned_trial for planned_trial in chain.from_iterable(trials_by_seed)}
        return list(by_key.values())

    @property
    def combinations(self) -> dict[str, tuple[PlannedTrial, ...]]:
        """Return the trials of each combination, by its name."""
        return {column[0].label: column for column in self.trials.values()}

    def measure(self, chosen: int) -> Measure:
        """Return the metric of a combination."""
        factor_index = next((i for i, factor in enumerate(self.factors) if METRIC in factor.places), None)
        return self.measures[factor_index is not None and chosen >> factor_index & 1]


def prepare(a: Path, b: Path, metric: str | None, given: Mapping[str, Any], registry: Registry, most: int,
            run_folder: Path | None = None, note: Note | None = None) -> Study:
    """Read two experiments and plan the trials that explain their difference.

    Args:
        a: the file of the first experiment.
        b: the file of the second experiment.
        metric: the metric, or A's and B's metrics, separated by a comma; by default the metrics that rank methods.
        given: settings that override the settings of both files.
        registry: the installed plugins.
        most: largest number of trials.
        run_folder: the run folder.
        note: receives notes on settings that replace those of the files.

    Raises:
        SpecError: a file or an option is invalid; the metrics are unknown, more than two, of different units or need
            joint training; or as in `compare` and `design`.
    """
    titles = [name.strip() for name in metric.split(",")] if metric else []
    if len(titles) > 2:
        raise SpecError(f"--metric: one metric, or A's and B's, got {len(titles)}")
    first, second = (read_spec(path, {}, given, (), registry, note) for path in (a, b))
    measures = _measure(first, titles[:1], registry), _measure(second, titles[-1:], registry)
    check_units(measures)
    pair = compare(first, second, registry, (str(a), str(b)),
                   (measures[0].column.title, measures[1].column.title))
    return design(pair, measures, most, run_folder)


def _measure(spec: Spec, title: Sequence[str], registry: Registry) -> Measure:
    """Return the column of an experiment with a title, or the column that ranks its methods if `title` is empty."""
    info = registry.benchmark(spec.benchmark.name)
    options = validate(info.options, spec.benchmark.options, spec.benchmark.name, "clbench benchmarks")
    objective = info.objective_with(options)
    metric = objective.metric(objective.primary)
    measure = find_tested(title, measures_of(metric))[0] if title else final_of(metric)
    if measure.needs_joint:
        raise SpecError(f"--metric {title[0]} compares a method with joint training, which clbench explain does not "
                        "run: choose another metric")
    return measure


def design(pair: Pair, measures: tuple[Measure, Measure], most: int, run_folder: Path | None = None) -> Study:
    """Find the factors of two experiments and the combinations to run.

    Args:
        pair: the experiments.
        measures: the metrics of A and of B.
        most: largest number of trials.
        run_folder: the run folder; trials with a result in it are known to work.

    Raises:
        SpecError: the smallest possible number of trials is larger than `most`.
    """
    all_factors = factors(pair.parts, make_refusal(pair, run_folder))
    free = sum(1 << i for i, factor in enumerate(all_factors) if factor.places == {METRIC})
    seeds = len(pair.seeds)
    if (least_trials := attribution.count_least_trainings(len(all_factors), free) * seeds) > most:
        raise SpecError(f"{len(all_factors)} factors need at least {least_trials} trials with {seeds} seeds, and "
                        f"--max-trials is {most}: give --max-trials {least_trials}, fewer --seeds, or experiments "
                        "that differ in less")
    orders = attribution.draw(len(all_factors), most // seeds, free)
    mixtures: dict[frozenset[Place], tuple[PlannedTrial, ...]] = {}
    trials = {}
    for chosen in attribution.needed(len(all_factors), orders):
        from_b = [factor for i, factor in enumerate(all_factors) if chosen >> i & 1 and not free >> i & 1]
        places = frozenset[Place]().union(*(factor.places for factor in from_b))
        if places not in mixtures:
            name = _name_combination([factor for i, factor in enumerate(all_factors) if not free >> i & 1], from_b)
            mixtures[places] = tuple(replace(planned, label=f"{planned.trial.method.name}, {name}")
                                     for planned in pair.mixture(places))
        trials[chosen] = mixtures[places]
    return Study(pair, tuple(all_factors), measures, tuple(orders), trials)


def _name_combination(every: Sequence[Factor], from_b: Sequence[Factor]) -> str:
    """Return the name of a combination: `A + factors`, or `B without factors` if that lists fewer factors."""
    names_from_a = [factor.name for factor in every if factor not in from_b]
    if len(names_from_a) < len(from_b):
        return f"B without {', '.join(names_from_a)}" if names_from_a else "B"
    return " + ".join(["A", *(factor.name for factor in from_b)])


def make_refusal(pair: Pair, run_folder: Path | None = None) -> Callable[[frozenset[Place]], str]:
    """Return a function that says why a mixture cannot run; it returns an empty text if the mixture can run.

    A mixture cannot run if the plan refuses it, or if its network and method cannot be built for its stream. Nothing is
    built if the folder has the result already. If data are missing, the mixture is not refused: the run downloads them
    or reports the error.
    """
    structure = frozenset(part.place for part in pair.parts if part.place[0] in STRUCTURE)
    refusals = {frozenset[Place](): "", structure: ""}  # the experiments themselves
    recorded_keys = {path.stem for path in Store(run_folder).records.glob("*.json")} if run_folder else set[str]()

    def refusal(from_b: frozenset[Place]) -> str:
        if why := pair.refusal(from_b):
            return why
        structural = from_b & structure
        if structural not in refusals:
            planned = pair.mixture(from_b, pair.seeds[:1])[0]
            refusals[structural] = "" if planned.trial.key in recorded_keys else _unbuildable(pair, planned)
        return refusals[structural]

    return refusal


def _unbuildable(pair: Pair, planned: PlannedTrial) -> str:
    """Return why a trial cannot be built; empty if it can, or if its data are missing."""
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
    """Attribute the difference to the factors from the records; seeds with a missing result are left out.

    Raises:
        ClbenchError: no seed has a result for every combination.
    """
    values: dict[int, list[float | None]] = {}
    missing: dict[int, str] = {}
    for chosen, column in study.trials.items():
        measure = study.measure(chosen)
        values[chosen] = []
        for planned in column:
            record = records.get(planned.trial.key)
            value = measure.value(record, None) if record is not None and record.status == "done" else None
            values[chosen].append(value)
            if value is None:
                status = "is not there" if record is None else record.status if record.status != "done" else (
                    f"has no {measure.column.title}")
                missing.setdefault(planned.trial.seed, f"{planned.label} {status}")
    seeds = study.pair.seeds
    left_out = tuple(f"seed {seed} is left out: {why}" for seed, why in sorted(missing.items()))
    complete = [i for i, seed in enumerate(seeds) if seed not in missing]
    if not complete:
        raise ClbenchError("\n".join(["no seed has an outcome for every combination", *left_out]))
    table = {chosen: [value for i in complete if (value := row[i]) is not None] for chosen, row in values.items()}
    attributed = attribution.attribute(table, len(study.factors), study.orders)
    study_records = tuple(records[planned.trial.key] for planned in study.planned if planned.trial.key in records)
    ends = study.trials[0][0].trial, study.trials[max(study.trials)][0].trial
    return Explanation(study.pair.names, study.factors, study.measures, tuple(seeds[i] for i in complete), attributed,
                       len({column[0].trial.key for column in study.trials.values()}), left_out, study_records, ends)
