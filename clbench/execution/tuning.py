"""Tuning: search the options of each method on validation samples, in a series of experiments.

A row is a method in a scenario. In every round, each row's sampler proposes candidates, all candidates run as one
experiment in the run folder of the search, and the samplers receive the scores. Finished trials do not run again, so an
interrupted search continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from clbench.core import options as opt
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.objective import ACCURACY
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.execution import run
from clbench.execution.candidates import choose, find_refusal, label_of, ranking, score, spaces_of, tie_note
from clbench.execution.reuse import OnStale
from clbench.execution.samplers import SEED, STARTUP, TPE, Candidate, Grid, Sampler, corners, is_at_end, sampler_for
from clbench.execution.workers.plan import Listener
from clbench.experiment.plan import plan
from clbench.experiment.search import Outcome, Search, Space, Tried
from clbench.experiment.spec import MethodSpec, Spec
from clbench.experiment.sweeps import expand, types_of
from clbench.results import metrics
from clbench.results.records import Record

EXAMPLE = "[tune.ewc] with strength = {low = 1e1, high = 1e7, log = true} (docs/tuning.md)"


@dataclass
class Row:
    """A method in a scenario, with its search space, its sampler and the candidates tried so far."""

    entry: int  # index among the experiment's methods after sweeps are expanded
    method: MethodSpec
    label: str  # without the searched options
    scenario: Scenario
    space: Space
    sampler: Sampler
    metric: str = ACCURACY.name
    tried: list[Tried] = field(default_factory=list)

    def candidate(self, chosen: Candidate) -> MethodSpec:
        """Return the method with the options of a candidate, as a separate row."""
        written = [f"{option}={opt.format_value(value)}" for option, value in chosen.items()]
        return self.method.with_options(chosen).model_copy(update={
            "label": ":".join([self.label, *written]), "scenario": (self.scenario,)})

    def record_results(self, candidates: Sequence[Candidate], records: Sequence[Record]) -> None:
        """Store the results of candidates, and pass their scores to the sampler: the worst if a seed has no result."""
        tried = []
        for chosen in candidates:
            label = self.candidate(chosen).label
            results = [r for r in records if r.label == label and r.trial.scenario == self.scenario]
            failures = [f"seed {r.trial.seed} {r.status}" for r in results if r.status != "done"]
            tried.append(Tried(method=self.label, scenario=self.scenario, options=chosen, failure=", ".join(failures),
                               metric="" if self.metric == ACCURACY.name else self.metric,
                               acc=() if failures else tuple(round(metrics.acc(r.R), 6) for r in results)))
        self.tried += tried
        self.sampler.tell([score(t) for t in tried])

    @property
    def ranking(self) -> list[Tried]:
        """Return each candidate once, sorted from the best mean to the worst; ties stay in the order of the search."""
        return ranking(self.tried)

    @property
    def chosen(self) -> Tried:
        """Return the chosen candidate: the best mean, or a tied candidate with a lower learning rate."""
        return choose(self.tried)

    @property
    def added(self) -> dict[str, list[float]]:
        """Return the values by which axes were widened, by option."""
        return self.sampler.added if isinstance(self.sampler, Grid) else {}

    @property
    def at_edge(self) -> list[str]:
        """Return the options whose best value is at an end of the searched numbers."""
        best = self.ranking[0].options
        return [option for option, axis in self.space.items()
                if is_at_end(best[option], axis, self.added.get(option, ()))]

    @property
    def notes(self) -> list[str]:
        """Return the remarks on the row's search, in sentences."""
        tie = tie_note(self.tried)
        return [*(self.sampler.notes if isinstance(self.sampler, Grid) else []), *([tie] if tie else []),
                *(f"the best {option} is at an end of what was searched; a better one may lie beyond"
                  for option in self.at_edge)]


def rows_of(spec: Spec, registry: Registry, trials: int, only: Sequence[str] = (), widen: int = 0) -> list[Row]:
    """Return the rows to tune: all rows with a space, or those with labels or names in `only`.

    Methods have the spaces of their [tune.METHOD] tables or default spaces (`spaces_of`).

    Args:
        spec: the experiment.
        registry: the installed plugins.
        trials: largest number of candidates per row, without those that widen a grid.
        only: labels or names; empty for all.
        widen: largest number of values by which a grid's axis is extended on each side.

    Raises:
        SpecError: there is no search space, or none in the experiment's scenarios; a search space is for an unknown
            method; or a method does not take the searched options.
    """
    planned = plan(spec, registry)
    scenarios = list(dict.fromkeys(p.trial.scenario for p in planned))
    methods = [m for m, _ in expand(spec.methods, registry, [])]
    spaces = spaces_of(spec, methods, registry, planned, only)
    names = [_names(method, space, scenarios, spec, registry) for method, space in zip(methods, spaces, strict=True)]
    problems = _unknown_names(spec, methods, spaces, names, only)
    rows: list[Row] = []
    for entry, (method, space, (name, label)) in enumerate(zip(methods, spaces, names, strict=True)):
        if not space or (only and not {name, label} & set(only)):
            continue
        try:
            label_of(method, space, spec.recipe, registry)  # checks options for other scenarios, too
        except SpecError as error:
            problems += str(error).splitlines()
            continue
        options_without_floats = [option for option in space if float not in types_of(method, option, registry)]
        method_scenarios = list(filter(method.runs_in, scenarios))
        if any(row.label == label and row.scenario in method_scenarios for row in rows):
            problems.append(f"two methods have the options {label!r}, apart from what is searched; keep one of them, "
                            "or give one a label")
        for scenario in method_scenarios:
            scenario_space = {option: axis for option, axis in space.items() if axis.scenario in (None, scenario)}
            refuse = partial(find_refusal, method, spec.recipe, registry)
            refusals = [refuse(corner) for corner in corners(scenario_space)]
            sampler = sampler_for(scenario_space, options_without_floats, trials, widen, refuse)
            if all(refusals) or (any(refusals) and isinstance(sampler, TPE)):
                problems += next(filter(None, refusals)).splitlines()
            elif scenario_space:
                rows.append(Row(entry, method, label, scenario, scenario_space, sampler, planned[0].metric))
    if not rows and not problems:
        problems.append(f"nothing is left to search in scenario {' and '.join(scenarios)}: every option in the "
                        "[tune.*] tables is for another one")
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    return rows


def find_unsearched(rows: Sequence[Row], spec: Spec, registry: Registry) -> list[str]:
    """Return the methods that no row searches, by label or name."""
    searched = {row.entry for row in rows}
    return [method.label or method.name for entry, (method, _) in enumerate(expand(spec.methods, registry, []))
            if entry not in searched]


def _names(method: MethodSpec, space: Space, scenarios: list[Scenario], spec: Spec, registry: Registry) -> list[str]:
    """Return a method's name and its label; without a label, one is made from the options that are not searched."""
    searched = {option: axis for option, axis in space.items()
                if axis.scenario in (None, *filter(method.runs_in, scenarios))}
    try:
        label = label_of(method, searched, spec.recipe, registry)
    except SpecError:  # `rows_of` reports it
        label = method.label or method.name
    return [method.name, label]


def _unknown_names(spec: Spec, methods: Sequence[MethodSpec], spaces: Sequence[Space], names: Sequence[list[str]],
                   only: Sequence[str]) -> list[str]:
    """Return a line for each name in [tune] without a method, and for each name in `only` without a method to search.

    `spaces` and `names` are the spaces and names of `methods`, in the same order.
    """
    known_names = list(dict.fromkeys(chain.from_iterable(names)))
    tables = list(dict.fromkeys(filter(None, chain.from_iterable((m.label, m.name) for m in methods))))
    without = {name for name in only
               if not any(name in method_names and space for space, method_names in zip(spaces, names, strict=True))}
    return [*(f"tune.{name}: the experiment has no method {name!r}; its methods are {', '.join(tables)}"
              for name in spec.tune if name not in tables),
            *(f"--methods {name}: nothing says what to search; add a table [tune.{_table(name, methods, names)}]"
              if name in known_names else
              f"--methods {name}: the experiment has no method {name!r}; its methods are {', '.join(known_names)}"
              for name in only if name in without),
            *([] if any(spaces) or spec.tune or without else [
                f"these methods declare nothing to search; add a table for each, such as {EXAMPLE}"])]


def _table(name: str, methods: Sequence[MethodSpec], names: Sequence[list[str]]) -> str:
    """Return the name of a table in [tune] for the first method that has this name or label."""
    method = next(method for method, method_names in zip(methods, names, strict=True) if name in method_names)
    return method.label or method.name


def propose_rounds(rows: Sequence[Row], spec: Spec, registry: Registry, out: Path,
                   on_stale: OnStale) -> Iterator[tuple[list[list[Candidate]], run.Experiment]]:
    """Yield the candidates of each row and the experiment that tests them, round by round.

    The next round needs the results of the last one (`Row.record_results`). The arguments are those of `search`.
    """
    while any(proposals := [row.sampler.ask() for row in rows]):
        methods = {(row.scenario, method.label): method for row, candidates in zip(rows, proposals, strict=True)
                   for method in map(row.candidate, candidates)}
        yield proposals, run.prepare(spec.model_copy(update={"methods": tuple(methods.values()), "until": None}),
                                     registry, out, on_stale=on_stale)


def search(rows: Sequence[Row], spec: Spec, registry: Registry, out: Path,
           show: Callable[[run.Experiment], AbstractContextManager[Listener]], command: str,
           on_stale: OnStale = "refuse") -> list[Record]:
    """Run the candidates that the rows' samplers propose, round by round, and return all records in order.

    Args:
        rows: the rows from `rows_of`; the results are stored in them.
        spec: the experiment, with the seeds, the validation share and the execution settings of the search.
        registry: the installed plugins.
        out: the run folder of the search.
        show: makes the listener of a round.
        command: the command that the user typed, stored in the records.
        on_stale: what to do with stale records of an earlier search.

    Raises:
        ClbenchError: as `run.prepare` and `run.execute`, or no candidate of a row has a result.
    """
    all_records: list[Record] = []
    for proposals, experiment in propose_rounds(rows, spec, registry, out, on_stale):
        with show(experiment) as listener:
            records = run.execute(experiment, listener, command=command)
        for row, candidates in zip(rows, proposals, strict=True):
            row.record_results(candidates, records)
        all_records += records
    run.write_report(experiment)
    problems = [f"{row.label}, scenario {row.scenario}: no candidate has a result for every seed, because trials "
                f"failed or diverged: {out / 'report.md'} says why" for row in rows if not row.ranking]
    if problems:
        raise ClbenchError("\n".join(problems))
    return all_records


def choose_methods(original: Spec, spec: Spec, rows: Sequence[Row], registry: Registry) -> list[MethodSpec]:
    """Return the methods of a file with the chosen options; a method whose options differ by scenario is split.

    `original` is the file's experiment, and `spec` is the same with flags, as it was searched.
    """
    methods: list[MethodSpec] = []
    scenarios = list(dict.fromkeys(p.trial.scenario for p in plan(spec, registry)))
    for entry, (method, _) in enumerate(expand(original.methods, registry, [])):
        method_rows = [row for row in rows if row.entry == entry]
        best: list[tuple[Candidate, list[Scenario]]] = []
        for row in method_rows:
            options = row.chosen.options
            existing = next((used_in for other, used_in in best if other == options), None)
            if existing is None:
                best.append((options, [row.scenario]))
            else:
                existing.append(row.scenario)
        unsearched = [s for s in method.scenario or scenarios if s not in {row.scenario for row in method_rows}]
        if best and unsearched:  # scenarios without a search keep the method unchanged
            best.append(({}, unsearched))
        methods += [method.with_options(options).model_copy(update={
            "scenario": tuple(used_in) if len(best) > 1 else method.scenario}) for options, used_in in best] or [method]
    return methods


def account(rows: Sequence[Row], spec: Spec, trials: int, budget: dict[str, int], command: str,
            versions: dict[str, str], widen: int = 0) -> Search:
    """Return the description of a search, which is stored with the chosen options."""
    kinds = {"every value of a grid": Grid, f"Optuna's TPE, seed {SEED}, the first {STARTUP} at random": TPE}
    samplers = [title for title, kind in kinds.items() if any(isinstance(row.sampler, kind) for row in rows)]
    spaces: dict[str, Space] = {}
    for row in rows:
        spaces.setdefault(row.label, {}).update(row.space)
    outcomes = [Outcome(method=row.label, scenario=row.scenario, notes=tuple(row.notes),
                        widened={option: len(values) for option, values in row.added.items()}) for row in rows]
    return Search(command=command, versions=versions, validation=spec.validation, budget=budget, seeds=spec.seeds,
                  trials=trials, sampler="; ".join(samplers), space=spaces, widen=widen,
                  outcomes=tuple(outcome for outcome in outcomes if outcome.notes),
                  tried=tuple(chain.from_iterable(row.tried for row in rows)))
