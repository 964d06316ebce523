"""Spec -> Trials: names resolved, options validated and completed, and a key for each trial."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clbench.core import options as opt
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.hookspecs import BenchmarkInfo, ModelInfo, StrategyInfo
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.experiment.arrival import Arrival
from clbench.experiment.inputs import find_weights, network_of, settle_inputs
from clbench.experiment.search import Search, Searched, Tried
from clbench.experiment.spec import PUBLISHED, MethodSpec, Named, Spec, changed
from clbench.experiment.sweeps import expand
from clbench.experiment.trial import PlannedTrial, Resolved, Trial
from clbench.experiment.until import sequence


def plan(spec: Spec, registry: Registry, pretrained: bool | None = None, side: int | None = None) -> list[PlannedTrial]:
    """Return the trials of an experiment: seeds outermost, so that early results compare all methods.

    Args:
        spec: what to compare.
        registry: what is installed.
        pretrained: whether the model is to be taken for a pretrained one; None: where weights are given.
        side: pixels of its images, if that is known where the model's option `size` does not say it.

    Raises:
        SpecError: names unknown, options wrong, scenarios the benchmark has not; all of them, a line each.
    """
    problems: list[str] = []
    benchmark = _resolve(spec.benchmark, "benchmark", registry.benchmark, problems)
    model = _resolve(spec.model, "model", registry.model, problems)
    methods = [(m, swept, _resolve(m, "method", registry.strategy, problems))
               for m, swept in expand(spec.methods, registry, problems)]
    if benchmark:
        info, _ = benchmark
        assert isinstance(info, BenchmarkInfo)
        problems += [f"benchmark {info.name!r} does not support scenario {s!r}: choose {' or '.join(info.scenarios)}"
                     for s in spec.scenario if s not in info.scenarios]
        planned_seeds = sequence(spec.seeds, spec.max_seeds) if spec.until else spec.seeds
        if problem := benchmark[1].seed_problem(planned_seeds, spec.validation):
            problems.append(f"benchmark {spec.benchmark.name!r}: {problem}")
    weights, inputs = None, None
    if benchmark and model:
        weights, known = find_weights(spec.weights, spec.model, model[0], problems)
        inputs = settle_inputs(benchmark[1], spec.benchmark, model[1], weights, known, problems, model[0])
    recipes = [_own_recipe(spec, m, found[0], problems) if found else {} for m, _, found in methods]
    rows = [(m, m.label or _label(m, found[1], swept, own))
            for (m, swept, found), own in zip(methods, recipes, strict=True) if found]
    scenarios: tuple[Scenario, ...] = spec.scenario or (_default_scenario(*benchmark) if benchmark else ())
    problems += _rows(scenarios, rows)
    problems += [problem for s in scenarios if (problem := spec.arrival.scenario_problem(s))]
    problems += [f"method {m.label or m.name!r}: outputs = {chosen} applies to scenario class; for scenario {s} leave "
                 'it out, or give the method scenario = ["class"]' for m, _, found in methods
                 if found and (chosen := _chosen_outputs(found[1])) for s in scenarios if s != "class" and m.runs_in(s)]
    if problems or inputs is None:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    known_weights = weights is not None if pretrained is None else pretrained
    network = network_of(model[0], inputs, side) if model and known_weights else None
    complete = [found and (found[0], found[1], found[1].settled(known_weights, network)) for _, _, found in methods]
    refuse_for_arrival(spec.arrival, [(label, found[0], found[2], own) for (_, label), found, own in
                                      zip(rows, complete, recipes, strict=True) if found])
    resolved = [(m, label, found[0], own, Resolved(name=m.name, options=found[2].model_dump()),
                 {scenario: _searched(spec, m, scenario, found[1]) for scenario in scenarios})
                for (m, label), found, own in zip(rows, complete, recipes, strict=True) if found]
    return [
        PlannedTrial(Trial(benchmark=Resolved(name=spec.benchmark.name, options=inputs.benchmark.model_dump()),
                           scenario=scenario, model=Resolved(name=spec.model.name, options=inputs.model.model_dump()),
                           weights=weights, preprocessing=inputs.preprocessing, recipe=spec.recipe, own_recipe=own,
                           method=method, seed=seed, validation=spec.validation,
                           arrival=spec.arrival),
                     label, isinstance(info, StrategyInfo) and info.reference, _family(info, method, own),
                     searched[scenario])
        for scenario in scenarios
        for seed in spec.seeds
        for row, label, info, own, method, searched in resolved if row.runs_in(scenario)
    ]


def _default_scenario(info: BenchmarkInfo, options: opt.Options) -> tuple[Scenario, ...]:
    """Return the scenario of a benchmark where none is asked for: the one its options say, else its first."""
    said: Scenario | None = getattr(options, "default_scenario", None)
    return (said,) if said else tuple(info.scenarios[:1])


def _chosen_outputs(options: opt.Options) -> str:
    """Return what competes in training where the options say otherwise than the method's paper, else nothing."""
    field, chosen = type(options).model_fields.get("outputs"), getattr(options, "outputs", None)
    return chosen if field is not None and chosen is not None and chosen != field.default else ""


def refuse_for_arrival(arrival: Arrival, rows: Sequence[tuple[str, Any, opt.Options, Mapping[str, Any]]]) -> None:
    """Check that methods can learn from samples that arrive so: label, declaration, options and own recipe of each.

    Raises:
        SpecError: some cannot; a line for each.
    """
    problems = []
    for label, info, options, own in rows:
        reason = options.needs_boundaries if info.task_free else "it is not declared task_free"
        problems.append(arrival.method_problem(label, reason, info.parts_per_task))
        if arrival.hidden and (own.get("iterations") or own.get("repeats") or own.get("epochs", 1) != 1):
            problems.append(f"method {label!r}: boundaries = hidden is one pass; leave the budget out of its recipe")
    if any(problems):
        raise SpecError("\n".join(filter(None, problems)))


def refuse_doubles(planned: Sequence[PlannedTrial]) -> None:
    """Check that no trial stands in two rows: its one record can have one label.

    Of what is to be run, not of every plan: `clbench tune` may begin with rows that differ in what it searches only.

    Raises:
        SpecError: some do; a line for each such group of rows.
    """
    rows: dict[str, list[str]] = {}
    for one in planned:
        rows.setdefault(one.trial.key, []).append(one.label)
    same = dict.fromkeys(" and ".join(map(repr, labels)) for labels in rows.values() if len(labels) > 1)
    if same:
        raise SpecError("\n".join(f"methods {labels} have the same options and so the same results: leave one of "
                                  "them out" for labels in same))


def _own_recipe(spec: Spec, method: MethodSpec, info: Any, problems: list[str]) -> dict[str, Any]:
    """Return what a method's recipe has other than the experiment's; a mistake is added to `problems`."""
    given: Mapping[str, Any] = info.recipe if isinstance(method.recipe, str) else method.recipe
    if isinstance(method.recipe, str) and not given:
        problems.append(f"method {method.name!r}: recipe = published, but none is known for it; write it out, as in "
                        "recipe = {lr = 0.01}")
        return {}
    try:
        return changed(spec.recipe, given)[1]
    except SpecError as error:
        problems += [f"method {method.label or method.name!r}: {line}" for line in str(error).splitlines()]
        return {}


def tried_for(spec: Spec, method: MethodSpec, scenario: Scenario, options: opt.Options) -> list[tuple[Search, Tried]]:
    """Return the candidates of all searches of a row in a scenario, each with its search; `options` are the row's."""
    return [(search, t) for search in spec.tuning for name, space in search.space.items()
            if name in (method.label, opt.label(method.name, options, never=space))
            for t in search.tried if t.method == name and t.scenario == scenario]


def _searched(spec: Spec, method: MethodSpec, scenario: Scenario, options: opt.Options) -> Searched | None:
    """Return by what searches of the experiment's a row has its options, None where it has them from none.

    The candidates are those of every search of the row: one that found nothing better was a chance all the same.
    """
    tried = tried_for(spec, method, scenario, options)
    once = {str((t.method, t.options)) for _, t in tried}
    return next((Searched(candidates=len(once), validation=search.validation, seeds=search.seeds)
                 for search, t in tried if t.options.items() <= method.given.items()), None)


def _label(method: MethodSpec, options: opt.Options, swept: Sequence[str], own: Mapping[str, Any]) -> str:
    """Return what a row is called: the method, its options that differ from the defaults, and its own recipe."""
    parts = [f"{name}={opt.format_value(value)}" for name, value in opt.recipe_options(own).items()]
    if method.recipe == PUBLISHED and own:
        parts = ["recipe=published"]
    return ":".join([opt.label(method.name, options, swept), *parts])


def _family(info: Any, method: Resolved, own: Mapping[str, Any]) -> str:
    """Return a method's name, recipe and options without those that are numbers in its loss."""
    free = opt.scalars(info.options)
    kept = {k: v for k, v in method.options.items() if k not in free}
    return str(Resolved(name=method.name, options={**kept, **opt.recipe_options(own)}))


def _rows(scenarios: Sequence[Scenario], rows: Sequence[tuple[MethodSpec, str]]) -> list[str]:
    """Return what is wrong with the rows of the tables: two of one label in a scenario, and methods without any."""
    labels = [[label for m, label in rows if m.runs_in(s)] for s in scenarios]
    twice = {label for here in labels for label in here if here.count(label) > 1}
    met = {m.name for m, _ in rows if any(map(m.runs_in, scenarios))}
    return [*(f"two methods have the label {name!r}; give one of them another (label = ...) or other options"
              for name in sorted(twice)),
            *(f"method {m.name!r} is for scenario {' and '.join(m.scenario)} only, but the experiment has scenario "
              f"{' and '.join(scenarios)}: give the method's options for that scenario, or leave the method out"
              for m, _ in rows if scenarios and m.name not in met)]


def _resolve(named: Named, kind: str, find: Any, problems: list[str]) -> tuple[Any, opt.Options] | None:
    """Find a declaration by name and validate its options; mistakes are added to `problems`."""
    try:
        info: StrategyInfo | BenchmarkInfo | ModelInfo = find(named.name)
        return info, opt.validate(info.options, named.options, named.name, f"clbench {kind}s")
    except ClbenchError as error:
        problems.extend(str(error).splitlines())
        return None


def resolved_benchmark(text: str, registry: Registry) -> Resolved:
    """Return a benchmark given as `name:option=value`, with all its options.

    Raises:
        SpecError: there is none of that name, or an option is wrong.
    """
    name, given = opt.parse_named(text)
    options = opt.validate(registry.benchmark(name).options, given, name, "clbench benchmarks")
    return Resolved(name=name, options=options.model_dump())


def part(planned: Sequence[PlannedTrial], shard: str) -> list[PlannedTrial]:
    """Return the i-th of n parts of a plan, in its order; `shard` is `i/n`, counted from 1.

    Trials are dealt out setting by setting and in it method by method, so that every part has its share of each.

    Raises:
        SpecError: `shard` is no such thing.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise SpecError(f"shard {shard!r}: write i/n with i from 1 to n, as in 2/8")
    index, parts = int(found[1]) - 1, int(found[2])
    if parts > len(planned):
        raise SpecError(f"shard {shard!r}: the experiment has only {len(planned)} trials, so some parts would be "
                        "empty: use fewer parts")
    kinds = list(dict.fromkeys((p.trial.setting, p.label) for p in planned))
    dealt = sorted(range(len(planned)), key=lambda i: kinds.index((planned[i].trial.setting, planned[i].label)))
    return [planned[i] for i in sorted(dealt[index::parts])]
