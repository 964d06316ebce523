"""Plan the trials of a Spec: resolve names, validate and complete options, and make a key for each trial."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from clbench.core import options as opt
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.files import readable_name
from clbench.core.hookspecs import BenchmarkInfo, ModelInfo, StrategyInfo
from clbench.core.objective import CLASSIFICATION, ObjectiveInfo
from clbench.core.option_marks import PerMember, marks
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.experiment.arrival import Arrival, refuse_for_arrival
from clbench.experiment.inputs import find_weights, network_of, settle_inputs
from clbench.experiment.recipe import Recipe, with_final_rate
from clbench.experiment.search import Search, Searched, Tried
from clbench.experiment.spec import MethodSpec, Named, Spec, change_recipe
from clbench.experiment.sweeps import expand
from clbench.experiment.trial import PlannedTrial, Resolved, Trial
from clbench.experiment.until import sequence

SURROGATE = re.compile("[\udc80-\udcff]")  # stands for a byte that is not UTF-8


def plan(spec: Spec, registry: Registry, pretrained: bool | None = None, side: int | None = None) -> list[PlannedTrial]:
    """Return the trials of an experiment by scenario, seed and method, so that early results compare all methods.

    Args:
        spec: the experiment.
        registry: the installed plugins.
        pretrained: whether to treat the model as pretrained; None means it is if weights are given.
        side: width and height of the model's images in pixels, if they are known without its option `size`.

    Raises:
        SpecError: names are unknown, options are wrong, or the benchmark does not support a scenario; a line for each.
    """
    problems = _not_utf8(spec)
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
    objective = benchmark[0].objective_with(benchmark[1]) if benchmark else CLASSIFICATION
    if benchmark and model:
        weights, weights_info = find_weights(spec.weights, spec.model, model[0], problems)
        inputs = settle_inputs(benchmark[1], spec.benchmark, model[1], weights, weights_info, problems, model[0],
                               objective)
    recipes = [_own_recipe(spec, m, resolved[0], problems) if resolved else {} for m, _, resolved in methods]
    rows = [(m, m.label or _label(m, resolved[1], swept, recipe))
            for (m, swept, resolved), recipe in zip(methods, recipes, strict=True) if resolved]
    scenarios: tuple[Scenario, ...] = spec.scenario or (_default_scenario(*benchmark) if benchmark else ())
    problems += _row_problems(scenarios, rows)
    problems += [problem for s in scenarios if (problem := spec.arrival.scenario_problem(s))]
    if objective.labels != "tokens" and (spec.recipe.group_by_length or any(r.get("group_by_length") for r in recipes)):
        problems.append(f"benchmark {spec.benchmark.name!r}: group_by_length needs items of tokens, as language models "
                        "have them; leave it out")
    if objective != CLASSIFICATION:
        declared = [resolved[0] for *_, resolved in methods if resolved]
        problems += _objective_problems(objective, scenarios, spec, declared, registry)
    for m, _, resolved in methods:
        outputs = _chosen_outputs(resolved[1]) if resolved else ""
        if outputs:
            problems += [f"method {m.label or m.name!r}: outputs = {outputs} applies to scenario class; for scenario "
                         f'{s} leave it out, or give the method scenario = ["class"]'
                         for s in scenarios if s != "class" and m.runs_in(s)]
    if problems or inputs is None:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    is_pretrained = weights is not None if pretrained is None else pretrained
    network = None
    if benchmark and model and is_pretrained:
        network = network_of(model[0], inputs, side, int(objective.labels != "tokens"))
    planned_rows: dict[Scenario, list[tuple[str, Any, dict[str, Any], opt.Options, Searched | None]]] = {}
    for (method, label), (_, _, resolved), recipe in zip(rows, methods, recipes, strict=True):
        if resolved:
            complete = resolved[1].settled(is_pretrained, network)
            for scenario in filter(method.runs_in, scenarios):
                planned_rows.setdefault(scenario, []).append((
                    label, resolved[0], recipe, complete.in_scenario(scenario, not spec.arrival.hidden),
                    _find_search(spec, method, scenario, resolved[1])))
    refuse_for_arrival(spec.arrival, [(label, strategy, options, recipe) for planned_row in planned_rows.values()
                                      for label, strategy, recipe, options, _ in planned_row], spec.online)
    metric = objective.primary
    planned: list[PlannedTrial] = []
    for scenario, seed in product(scenarios, spec.seeds):
        for row_label, strategy, recipe, options, searched in planned_rows.get(scenario, ()):
            with_options = Resolved(name=strategy.name, options=options.model_dump())
            trial = Trial(
                benchmark=Resolved(name=spec.benchmark.name, options=inputs.benchmark.model_dump()),
                scenario=scenario, model=Resolved(name=spec.model.name, options=inputs.model.model_dump()),
                weights=weights, preprocessing=inputs.preprocessing, recipe=with_final_rate(spec.recipe),
                own_recipe=recipe, method=with_options, seed=seed, validation=spec.validation, arrival=spec.arrival)
            planned.append(PlannedTrial(trial, row_label, strategy.reference, _family(strategy, with_options, recipe),
                                        searched, metric=metric, default_scenario=not spec.scenario))
    return planned


def _not_utf8(spec: Spec) -> list[str]:
    """Return a line for each name, option and file of an experiment that records cannot hold: a path of other bytes."""
    named = (spec.benchmark, spec.model, *spec.methods)
    texts = [*(part.name for part in named), *(opt.format_value(v) for part in named for v in part.options.values()),
             spec.weights or "", *spec.execution.general]
    return [f"{readable_name(text)} is not UTF-8, as records must be: rename it" for text in texts
            if SURROGATE.search(text)]


def _objective_problems(objective: ObjectiveInfo, scenarios: Sequence[Scenario], spec: Spec,
                        methods: Sequence[StrategyInfo], registry: Registry) -> list[str]:
    """Return why an experiment cannot train models for an objective other than classification."""
    problems = []
    purpose = "is for language models" if objective.labels == "tokens" else "has numbers to predict"
    suitable_names = sorted(info.name for info in registry.strategies.values() if objective.name in info.objectives)
    for info in methods:
        if objective.name not in info.objectives:
            problems.append(f"method {info.name!r} trains classifiers, and benchmark {spec.benchmark.name!r} "
                            f"{purpose}; methods for them are {', '.join(suitable_names)}")
    if objective.labels == "numbers" and "class" in scenarios:
        problems.append(f"benchmark {spec.benchmark.name!r} has numbers to predict, and scenario class needs "
                        "classes; choose scenario task or domain")
    if spec.arrival != Arrival():
        problems.append(f"benchmark {spec.benchmark.name!r} has no classes, so its samples arrive task by task; leave "
                        "blur, repeat, imbalance and boundaries out")
    return problems


def _default_scenario(info: BenchmarkInfo, options: opt.Options) -> tuple[Scenario, ...]:
    """Return the default scenario of a benchmark: the one that its options name, or else its first."""
    default: Scenario | None = getattr(options, "default_scenario", None)
    return (default,) if default else tuple(info.scenarios[:1])


def _chosen_outputs(options: opt.Options) -> str:
    """Return the value of the option `outputs`; empty if it is the method's current or earlier default."""
    field, chosen = type(options).model_fields.get("outputs"), getattr(options, "outputs", None)
    defaults = [field and field.default, options.BEFORE.get("outputs"), None]
    return "" if chosen in defaults else str(chosen)


def refuse_doubles(planned: Sequence[PlannedTrial]) -> None:
    """Check that no trial is in two rows, because its record can have one label only.

    Only plans that are about to run are checked: `clbench tune` may start from rows that differ in the searched options
    only.

    Raises:
        SpecError: several rows have the same trials; the message has a line for each group of these rows.
    """
    rows: dict[str, list[str]] = {}
    for row in planned:
        rows.setdefault(row.trial.key, []).append(row.label)
    duplicates = dict.fromkeys(" and ".join(map(repr, labels)) for labels in rows.values() if len(labels) > 1)
    if duplicates:
        raise SpecError("\n".join(f"methods {labels} have the same options and so the same results: leave one of "
                                  "them out" for labels in duplicates))


def _own_recipe(spec: Spec, method: MethodSpec, info: Any, problems: list[str]) -> dict[str, Any]:
    """Return the parts of a method's recipe that differ from the experiment's; mistakes are added to `problems`."""
    if method.takes_published and not info.recipe:
        problems.append(f"method {method.name!r}: recipe = published, but none is known for it; write it out, as in "
                        "recipe = {lr = 0.01}")
        return {}
    try:
        return change_recipe(spec.recipe, method.own_recipe(info.recipe))[1]
    except SpecError as error:
        problems += [f"method {method.label or method.name!r}: {line}" for line in str(error).splitlines()]
        return {}


def find_candidates(spec: Spec, method: MethodSpec, scenario: Scenario,
                    options: opt.Options) -> list[tuple[Search, Tried]]:
    """Return the candidates of all searches of a row in a scenario, each with its search; `options` are the row's."""
    candidates: list[tuple[Search, Tried]] = []
    own_searches = (t for search in spec.tuning for t in search.tried if t.method == method.label)
    by_label = any(t.scenario == scenario for t in own_searches)
    for search in spec.tuning:
        for name, space in search.space.items():
            if name == (method.label if by_label else opt.label(method.name, options, never=space)):
                candidates += [(search, t) for t in search.tried if t.method == name and t.scenario == scenario]
    return candidates


def _find_search(spec: Spec, method: MethodSpec, scenario: Scenario, options: opt.Options) -> Searched | None:
    """Return the search from which a row has its options; None if there is none.

    The candidates of all searches of the row count, because each search was an opportunity to improve the result.
    """
    tried = find_candidates(spec, method, scenario, options)
    candidates = {str((t.method, t.options)) for _, t in tried}
    return next((Searched(candidates=len(candidates), validation=search.validation, seeds=search.seeds)
                 for search, t in tried if t.options.items() <= method.given.items()), None)


def _label(method: MethodSpec, options: opt.Options, swept: Sequence[str], own_recipe: Mapping[str, Any]) -> str:
    """Return the label of a row: the method, its options that differ from the defaults, and its own recipe."""
    shown = method.changed_parts if method.takes_published and own_recipe else own_recipe
    parts = [f"{name}={opt.format_value(value)}" for name, value in opt.recipe_options(shown).items()]
    published = ["recipe=published"] if method.takes_published and own_recipe else []
    return ":".join([opt.label(method.name, options, swept), *published, *parts])


def _family(info: Any, method: Resolved, own_recipe: Mapping[str, Any]) -> str:
    """Return a method's name, recipe and options, without the options that are scalars in its loss."""
    per_member = marks(info.options, PerMember)
    fixed_options = {k: v for k, v in method.options.items() if k not in per_member}
    return str(Resolved(name=method.name, options={**fixed_options, **opt.recipe_options(own_recipe)}))


def _row_problems(scenarios: Sequence[Scenario], rows: Sequence[tuple[MethodSpec, str]]) -> list[str]:
    """Return the mistakes in rows: two rows with one label in a scenario, and methods that run in no scenario."""
    shared_labels: set[str] = set()
    for scenario in scenarios:
        row_counts = Counter(label for m, label in rows if m.runs_in(scenario))
        shared_labels |= {label for label, count in row_counts.items() if count > 1}
    runnable_methods = {m.name for m, _ in rows if any(map(m.runs_in, scenarios))}
    return [*(f"two methods have the label {name!r}; give one of them another (label = ...) or other options"
              for name in sorted(shared_labels)),
            *(f"method {m.name!r} is for scenario {' and '.join(m.scenario)} only, but the experiment has scenario "
              f"{' and '.join(scenarios)}: give the method's options for that scenario, or leave the method out"
              for m, _ in rows if scenarios and m.name not in runnable_methods)]


def _resolve(named: Named, kind: str, find: Any, problems: list[str]) -> tuple[Any, opt.Options] | None:
    """Find a declaration by name and validate its options; mistakes are added to `problems`."""
    try:
        info: StrategyInfo | BenchmarkInfo | ModelInfo = find(named.name)
        if kind == "method" and (parts := named.options.keys() & Recipe.model_fields.keys()
                                 - info.options.model_fields.keys()):
            problems.extend(f"{named.name}: {part} belongs to the training configuration; write "
                            f"{named.name}:{opt.OWN_RECIPE}{part}={opt.format_value(named.options[part])}, or "
                            f"--{part.replace('_', '-')} for all methods" for part in sorted(parts))
            return None
        return info, opt.validate(info.options, named.options, named.name, f"clbench {kind}s")
    except ClbenchError as error:
        problems.extend(str(error).splitlines())
        return None


def resolved_benchmark(text: str, registry: Registry) -> Resolved:
    """Return a benchmark given as `name:option=value`, with all its options.

    Raises:
        SpecError: no benchmark has that name, or an option is wrong.
    """
    name, given_options = opt.parse_named(text)
    options = opt.validate(registry.benchmark(name).options, given_options, name, "clbench benchmarks")
    return Resolved(name=name, options=options.model_dump())


def trials_of_shard(planned: Sequence[PlannedTrial], shard: str | None) -> list[PlannedTrial]:
    """Return the i-th of n parts of a plan, in its order; `shard` is `i/n`, counted from 1, or None for the whole plan.

    Trials are assigned in turn, sorted by setting and then by method, so that every part has a share of each.

    Raises:
        SpecError: `shard` does not have this form.
    """
    if shard is None:
        return list(planned)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SpecError(f"shard {shard!r}: write i/n with i from 1 to n, as in 2/8")
    index, parts = int(match[1]) - 1, int(match[2])
    if parts > len(planned):
        raise SpecError(f"shard {shard!r}: the experiment has only {len(planned)} trials, so some parts would be "
                        "empty: use fewer parts")
    kinds = list(dict.fromkeys((p.trial.environment, p.label) for p in planned))
    positions = sorted(range(len(planned)), key=lambda i: kinds.index((planned[i].trial.environment, planned[i].label)))
    return [planned[i] for i in sorted(positions[index::parts])]
