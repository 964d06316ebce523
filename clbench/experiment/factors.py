"""The factors in which two experiments differ, and every mixture of the two as a Spec.

The values of a trial are stored by place, such as `("recipe", "lr")`. Each place at which A and B differ is a part. A
mixture takes some of these parts from B and all others from A. Parts become one factor if the plan cannot mix them.
This module does not import torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clbench.core.errors import SpecError
from clbench.core.options import Options, format_value
from clbench.core.registry import Registry
from clbench.experiment.arrival import Arrival
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import Spec, build
from clbench.experiment.trial import PlannedTrial, Resolved

Place = tuple[str, str]  # a table of the experiment and a name in it
METRIC: Place = ("metric", "name")  # does not affect any trial
KINDS = ("benchmark", "model", "method")  # tables with a name and options
BUDGET: Place = ("recipe", "budget")
EVERY_UP_TO = 10  # up to this number of factors, all mixtures are planned to find which are refused
NAMES: Mapping[Place, str] = {
    ("recipe", "lr"): "learning rate", ("recipe", "head_lr"): "learning rate of the heads",
    ("recipe", "schedule_by"): "steps of the schedule", ("recipe", "head_decay"): "weight decay of the heads",
    ("recipe", "group_by_length"): "grouping of items by length",
    ("recipe", "optimizer"): "optimizer", ("recipe", "max_grad_norm"):
    "gradient clipping", ("recipe", "optimizer_state"): "optimizer state", ("weights", "name"): "weights",
    ("scenario", "name"): "scenario", ("validation", "share"): "validation", METRIC: "metric"}


@dataclass(frozen=True)
class Part:
    """A value that differs between A and B."""

    place: Place
    name: str  # in words
    a: str  # A's value as text
    b: str  # B's value as text


@dataclass(frozen=True)
class Factor:
    """Parts that are taken together from A or from B; `why` gives the reason if there are several."""

    parts: tuple[Part, ...]
    why: str = ""

    @property
    def name(self) -> str:
        """Return the factor's name: `learning rate`, `mean and deviation`."""
        *first, last = [part.name for part in self.parts]
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def change(self) -> str:
        """Return the values in A and in B: `0.1 -> 0.001`."""
        return "{} -> {}".format(*(", ".join(values) for values in zip(*((p.a, p.b) for p in self.parts), strict=True)))

    @property
    def places(self) -> frozenset[Place]:
        """Return the places of its parts."""
        return frozenset(part.place for part in self.parts)


@dataclass
class Pair:
    """Two experiments with one trial per seed each, their differences and their mixtures."""

    a: Spec
    b: Spec
    names: tuple[str, str]  # names of A and B
    registry: Registry
    seeds: tuple[int, ...]
    sides: tuple[dict[Place, Any], dict[Place, Any]]  # all values of A and of B
    parts: tuple[Part, ...]
    refusals: dict[frozenset[Place], str] = field(default_factory=dict)  # why a mixture cannot be planned, or ""

    def mixture(self, from_b: Collection[Place], seeds: Sequence[int] | None = None) -> list[PlannedTrial]:
        """Return the trials, one per seed, that have the parts at these places from B and the others from A.

        Raises:
            SpecError: the plan refuses this mixture.
        """
        place_values = {key: self.sides[key in from_b].get(key) for key in self.sides[0] | self.sides[1]}
        values = _values(place_values, self.sides, from_b, self.registry)
        spec = build({**values, "seeds": list(self.seeds if seeds is None else seeds), "device": self.a.device})
        return plan(spec.model_copy(update={"execution": self.a.execution}), self.registry)

    def refusal(self, from_b: frozenset[Place]) -> str:
        """Return why a mixture cannot be planned, as one line; empty if it can."""
        from_b -= {METRIC}
        if from_b not in self.refusals:
            try:
                self.mixture(from_b, self.seeds[:1])
                self.refusals[from_b] = ""
            except SpecError as error:
                self.refusals[from_b] = str(error).splitlines()[0]
        return self.refusals[from_b]


def compare(a: Spec, b: Spec, registry: Registry, names: tuple[str, str], metrics: tuple[str, str]) -> Pair:
    """Return two experiments with the parts in which they differ.

    The recipe of an experiment is the one that its method is trained with, including the method's own recipe.

    Args:
        a: the first experiment.
        b: the second experiment.
        registry: the installed plugins.
        names: the names of both, for error messages.
        metrics: the metrics that are measured in A and in B.

    Raises:
        SpecError: an experiment does not have exactly one method in one scenario, or they share no seed, or they are
            the same.
    """
    planned = [_only(plan(spec, registry), name) for spec, name in zip((a, b), names, strict=True)]
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds:
        raise SpecError(f"{names[0]} and {names[1]} have no seed in common; give both --seeds")
    sides = [_values_by_place(trial, spec, registry) for trial, spec in zip(planned, (a, b), strict=True)]
    if _content(planned[0]) == _content(planned[1]):
        sides[1]["weights", "name"] = sides[0]["weights", "name"]
    for side, metric in zip(sides, metrics, strict=True):
        side[METRIC] = metric
    parts = _find_differences(sides[0], sides[1])
    if not parts:
        raise SpecError(f"{names[0]} and {names[1]} are the same experiment: there is nothing to explain")
    return Pair(a, b, names, registry, seeds, (sides[0], sides[1]), parts)


def _only(planned: Sequence[PlannedTrial], name: str) -> PlannedTrial:
    """Return the first trial of an experiment that has one method in one scenario."""
    for noun, option, names in (("methods", "--method", [p.label for p in planned]),
                                ("scenarios", "--scenario", [p.trial.scenario for p in planned])):
        different = list(dict.fromkeys(names))
        if len(different) > 1:
            raise SpecError(f"{name} has {len(different)} {noun} ({', '.join(different)}); choose one by {option}")
    return planned[0]


def _content(planned: PlannedTrial) -> str:
    return planned.trial.weights.sha256 if planned.trial.weights else ""


def _values_by_place(planned: PlannedTrial, spec: Spec, registry: Registry) -> dict[Place, Any]:
    """Return all values of a trial except its seed, by place; the options of a name are in the same table."""
    trial = planned.trial
    values: dict[Place, Any] = {("scenario", "name"): trial.scenario, ("weights", "name"): spec.weights,
                                ("validation", "share"): trial.validation}
    for kind in KINDS:
        resolved: Resolved = getattr(trial, kind)
        options = _options(kind, resolved.name, registry).stored(resolved.options)
        values[kind, ""] = resolved.name
        values |= {(kind, name): getattr(options, name) for name in type(options).model_fields}
    values |= {("arrival", name): getattr(trial.arrival, name) for name in Arrival.model_fields}
    recipe = trial.trained_by
    values[BUDGET] = (recipe.epochs, recipe.iterations)
    return values | {("recipe", name): getattr(recipe, name) for name in Recipe.model_fields
                     if name not in ("epochs", "iterations")}


def _options(kind: str, name: str, registry: Registry) -> type[Options]:
    """Return the class of the options of a benchmark, model or method."""
    if kind == "benchmark":
        return registry.benchmark(name).options
    return registry.model(name).options if kind == "model" else registry.strategy(name).options


def _find_differences(a: Mapping[Place, Any], b: Mapping[Place, Any]) -> tuple[Part, ...]:
    """Return the parts that differ. An option that only one side has is covered by the part of the name."""
    places = [place for place in a if place in b and a[place] != b[place]]
    words = [_name(place) for place in places]
    return tuple(Part(place, word if words.count(word) == 1 else f"{place[0]}'s {word}", _format_place(place, a[place]),
                      _format_place(place, b[place])) for place, word in zip(places, words, strict=True))


def _name(place: Place) -> str:
    return NAMES.get(place) or (place[1] or place[0]).replace("_", " ")


def _format_place(place: Place, value: Any) -> str:
    """Return a value as text, a budget with its unit."""
    if place == BUDGET:
        epochs, iterations = value
        return f"{iterations:,} iterations" if iterations else f"{epochs} epoch{'s' * (epochs > 1)}"
    return format_value(value)


def _values(given: Mapping[Place, Any], sides: Sequence[Mapping[Place, Any]], from_b: Collection[Place],
            registry: Registry) -> dict[str, Any]:
    """Return the plain values of an experiment from values by place."""
    epochs, iterations = given[BUDGET]
    recipe = {name: value for (table, name), value in given.items() if table == "recipe" and name != BUDGET[1]}
    recipe |= {"epochs": epochs} if iterations is None else {"iterations": iterations}
    named = {}
    for kind in KINDS:
        option_fields = _options(kind, given[kind, ""], registry).model_fields
        side_of_name = sides[(kind, "") in from_b]  # the side of the name may have options that the other side lacks
        named[kind] = {"name": given[kind, ""], "options": {
            name: given[kind, name] if all((kind, name) in side for side in sides) else side_of_name[kind, name]
            for name in option_fields if (kind, name) in side_of_name}}
    return {"benchmark": named["benchmark"], "model": named["model"], "methods": [named["method"]], "recipe": recipe,
            "scenario": [given["scenario", "name"]], "weights": given["weights", "name"],
            "validation": given["validation", "share"],
            "arrival": {name: given["arrival", name] for name in Arrival.model_fields}}


def factors(parts: Sequence[Part], refusal: Callable[[frozenset[Place]], str]) -> list[Factor]:
    """Return the parts as factors: each part is a factor of its own unless mixtures are refused.

    For up to 10 factors, all mixtures are checked. For more factors, only mixtures with one or two factors from A or
    from B are checked. While a mixture is refused, two factors are merged: the pair whose union leaves the fewest
    mixtures refused.

    Args:
        parts: the parts that differ.
        refusal: returns why the mixture with the parts at these places from B is refused; empty if it is not.
    """
    groups = [Factor((part,)) for part in parts]
    while refused := [(chosen, why) for chosen in _mixtures(len(groups))
                      if (why := refusal(frozenset().union(*(groups[i].places for i in chosen))))]:
        first, second = min(itertools.combinations(range(len(groups)), 2), key=lambda pair: (
            sum((pair[0] in chosen) == (pair[1] in chosen) for chosen, _ in refused), pair))
        why = next(why for chosen, why in refused if (first in chosen) != (second in chosen))
        merged = Factor((*groups[first].parts, *groups[second].parts),
                        groups[first].why or groups[second].why or why)
        groups = [merged if i == first else factor for i, factor in enumerate(groups) if i != second]
    return groups


def _mixtures(count: int) -> list[frozenset[int]]:
    """Return the factors that are from B in each checked mixture, without the two experiments themselves."""
    sizes = range(1, count) if count <= EVERY_UP_TO else sorted({1, 2, count - 2, count - 1})
    by_size = [itertools.combinations(range(count), size) for size in sizes]
    return list(map(frozenset, itertools.chain.from_iterable(by_size)))
