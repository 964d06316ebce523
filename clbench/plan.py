"""Spec -> Trials: names resolved, options validated and completed, and a key for each trial."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from clbench import digests
from clbench import options as opt
from clbench.errors import ClbenchError, SpecError
from clbench.hookspecs import BenchmarkInfo, ModelInfo, StrategyInfo
from clbench.plugins import Registry
from clbench.spec import MethodSpec, Named, Recipe, Scenario, Spec
from clbench.sweeps import expand


class Resolved(BaseModel):
    """A name with all of its options, defaults included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        """Return `name:option=value` with every option."""
        return ":".join([self.name, *(f"{k}={opt.format_value(v)}" for k, v in self.options.items())])


class Weights(BaseModel):
    """A file of weights; its content, not its place, defines a trial. Or weights that torchvision has by a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str  # or the name, such as IMAGENET1K_V1
    sha256: str  # of the content, or of the name

    @property
    def named(self) -> bool:
        """Tell whether torchvision has these by name."""
        return self.sha256 == _of_name(self.path)


def _of_name(name: str) -> str:
    return hashlib.sha256(f"torchvision {name}".encode()).hexdigest()


class Trial(BaseModel):
    """One training to be done: everything that defines its result."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # in its key, too
    benchmark: Resolved
    scenario: Literal["task", "class", "domain"]
    model: Resolved
    weights: Weights | None = None
    recipe: Recipe
    method: Resolved
    seed: int
    validation: float = 0.0  # share of the training samples held out and evaluated on; 0: the test set is

    @property
    def key(self) -> str:
        """Return the trial's name in the store: a hash of what defines it, 16 hexadecimal digits."""
        left_out: dict[str, Any] = {"weights": {"path"}}
        if not self.validation:  # records from before there was such a thing keep their keys
            left_out["validation"] = True
        text = json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def seedless(self) -> str:
        """Return a key that trials share which differ in nothing but the seed."""
        return self.model_copy(update={"seed": 0}).key

    @property
    def setting(self) -> tuple[str, ...]:
        """Return what must agree for two trials' methods to be compared: all but method and seed."""
        return (str(self.benchmark), self.scenario, str(self.model), self.weights.sha256 if self.weights else "",
                self.recipe.model_dump_json(), f"validation={self.validation:g}")


@dataclass(frozen=True)
class Planned:
    """A trial and how its method is called in tables."""

    trial: Trial
    label: str
    reference: bool
    family: str = ""  # trials of a setting that have the same one, not empty, may train as one stack: see `Scalar`


def plan(spec: Spec, registry: Registry) -> list[Planned]:
    """Return the trials of an experiment: seeds outermost, so that early results compare all methods.

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
        problems += [f"benchmark {info.name!r} has no scenario {s!r}, only {', '.join(info.scenarios)}"
                     for s in spec.scenario if s not in info.scenarios]
    weights = _weights(spec.weights, problems)
    rows = [(m, m.label or opt.label(m.name, found[1], swept)) for m, swept, found in methods if found]
    scenarios: tuple[Scenario, ...] = spec.scenario or (benchmark[0].scenarios[:1] if benchmark else ())
    problems += _rows(scenarios, rows)
    if problems or benchmark is None or model is None:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    resolved = [(m, label, found[0], Resolved(name=m.name, options=found[1].model_dump()))
                for (m, label), (_, _, found) in zip(rows, methods, strict=True) if found]
    return [
        Planned(Trial(benchmark=Resolved(name=spec.benchmark.name, options=benchmark[1].model_dump()),
                      scenario=scenario, model=Resolved(name=spec.model.name, options=model[1].model_dump()),
                      weights=weights, recipe=spec.recipe, method=method, seed=seed, validation=spec.validation),
                label, isinstance(info, StrategyInfo) and info.reference, _family(info, method))
        for scenario in scenarios
        for seed in spec.seeds
        for row, label, info, method in resolved if row.runs_in(scenario)
    ]


def refuse_doubles(planned: Sequence[Planned]) -> None:
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
        raise SpecError("\n".join(f"methods {labels} have the same options; leave one of them out" for labels in same))


def _family(info: Any, method: Resolved) -> str:
    """Return a method's name and options without those that are numbers in its loss."""
    free = opt.scalars(info.options)
    return str(Resolved(name=method.name, options={k: v for k, v in method.options.items() if k not in free}))


def _rows(scenarios: Sequence[Scenario], rows: Sequence[tuple[MethodSpec, str]]) -> list[str]:
    """Return what is wrong with the rows of the tables: two of one label in a scenario, and methods without any."""
    labels = [[label for m, label in rows if m.runs_in(s)] for s in scenarios]
    twice = {label for here in labels for label in here if here.count(label) > 1}
    met = {m.name for m, _ in rows if any(map(m.runs_in, scenarios))}
    return [*(f"two methods have the label {name!r}; give one of them another (label = ...) or other options"
              for name in sorted(twice)),
            *(f"method {m.name!r} is for scenario {' and '.join(m.scenario)}, the experiment has "
              f"{' and '.join(scenarios)}; give the method's options for that one, or leave it out"
              for m, _ in rows if scenarios and m.name not in met)]


def _resolve(named: Named, kind: str, find: Any, problems: list[str]) -> tuple[Any, opt.Options] | None:
    """Find a declaration by name and validate its options; mistakes are added to `problems`."""
    try:
        info: StrategyInfo | BenchmarkInfo | ModelInfo = find(named.name)
        return info, opt.validate(info.options, named.options, named.name, f"clbench {kind}s")
    except ClbenchError as error:
        problems.extend(str(error).splitlines())
        return None


def _weights(path: str | None, problems: list[str]) -> Weights | None:
    """Hash the file of weights; a mistake is added to `problems`. What looks like a name is taken for torchvision's."""
    if path in (None, "none"):
        return None
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", path) and not Path(path).exists():
        return Weights(path=path, sha256=_of_name(path))
    try:
        return Weights(path=path, sha256=digests.of_file(path))
    except OSError as error:
        problems.append(f"cannot read weights {path}: {error.strerror}")
        return None
