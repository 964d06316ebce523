"""Spec: an experiment as the user wrote it, from a TOML file or the command line, validated as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from clbench.core.compat import tomllib
from clbench.core.errors import SpecError, guess, unknown
from clbench.core.options import OWN_RECIPE, Strict, format_value, parse_named, quote, recipe_options
from clbench.core.registry import installed
from clbench.core.scenario import Scenario
from clbench.core.seeds import numbered
from clbench.experiment.arrival import Arrival, settle
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.recipe import Recipe, combine, complete_recipe, settle_epochs, with_final_rate
from clbench.experiment.search import Range, Search, Space
from clbench.experiment.until import MOST, Until

DEFAULT_BENCHMARK = "split-mnist-5k"


class Named(Strict):
    """A benchmark, model or method by name with its options; as text `name:option=value`."""

    name: str = Field(description="Name of the benchmark, model or method.")
    options: dict[str, Any] = Field({}, description="Options by name.")

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        """Accept `name:option=value` in place of the table."""
        if isinstance(value, str):
            try:
                name, options = parse_named(value)
            except SpecError as error:
                raise ValueError(str(error)) from None
            return {"name": name, "options": options}
        return value


PUBLISHED = "published"  # value of a method's `recipe` that selects the recipe of its paper (`StrategyInfo.recipe`)


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return a recipe with changes, and the parts that differ from before.

    `combine` removes what belonged to replaced parts. The results have no lr_per (`with_final_rate`).

    Raises:
        SpecError: the changes are not valid for the recipe; the message has a line for each mistake.
    """
    try:
        new_recipe = with_final_rate(Recipe.model_validate(combine(recipe.model_dump(), changes)))
    except ValidationError as error:
        lines = [_explain({**item, "loc": ("recipe", *item["loc"])}) for item in error.errors()]
        raise SpecError("\n".join(lines)) from None
    old_recipe = with_final_rate(Recipe.model_validate(recipe.model_dump()))
    return new_recipe, {name: value for name, value in new_recipe if value != getattr(old_recipe, name)}


def _seed_list(value: Any) -> Any:
    """Read `3` as 0, 1, 2 and `"0,4"` or `[0, 4]` as a list."""
    if isinstance(value, str):
        parts = value.split(",")
        if not all(p.strip().isdecimal() for p in parts):
            raise ValueError(f"expected a number of seeds or a list such as 0,1,2, got {value!r}")
        value = int(value) if len(parts) == 1 else [int(p) for p in parts]
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    if isinstance(value, int) and not isinstance(value, bool):
        return numbered(value)
    return value


def _device(value: str) -> str:
    """Check the name of a device."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"expected auto, cpu, mps, cuda or cuda:N, got {value!r}")
    return value


def split_names(value: Any) -> Any:
    """Return the names of a text such as `"a,b"`; other values as they are."""
    return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value


Scenarios = Annotated[tuple[Scenario, ...], BeforeValidator(split_names)]


class MethodSpec(Named):
    """A method: a strategy's name, its options, and the label of its row (made from them if not given)."""

    label: str | None = Field(None, description="Name of the row in tables; made from name and options if missing.")
    recipe: dict[str, Any] | Literal["published"] = Field(
        {}, description="Training configuration of this method: keys of [recipe] that differ from the experiment's, or "
        "\"published\" for the configuration of its paper. With published = true, keys change the latter.")
    scenario: Scenarios = Field((), description="Scenarios in which the method runs; all if empty.")

    @model_validator(mode="after")
    def _separate_recipe(self) -> MethodSpec:
        """Move options such as `recipe.lr` and `recipe` to the recipe, and check the names of its parts."""
        if any(name.startswith(OWN_RECIPE) or name == "recipe" for name in self.options):
            try:
                method = self.with_options(self.options, fresh=True)
            except SpecError as error:
                raise ValueError(str(error)) from None
            object.__setattr__(self, "options", method.options)
            object.__setattr__(self, "recipe", method.recipe)
        known_parts = {*Recipe.model_fields, PUBLISHED}
        if not isinstance(self.recipe, str) and (unknown_parts := set(self.recipe) - known_parts):
            raise ValueError(unknown("key of a recipe", min(unknown_parts), Recipe.model_fields, "docs/toml-keys.md"))
        return self

    def with_options(self, given: Mapping[str, Any], fresh: bool = False) -> MethodSpec:
        """Return the method with options set (with `fresh` only these); `recipe` and `recipe.lr` set its recipe.

        Raises:
            SpecError: `recipe` is neither "published" nor a table.
        """
        options = {} if fresh else dict(self.options)
        recipe: Any = self.recipe
        changes: dict[str, Any] = {}
        for name, value in given.items():
            if name == "recipe":
                if value != PUBLISHED and not isinstance(value, Mapping):
                    raise SpecError(f"{self.name}: recipe = {format_value(value)}: write recipe=published, or a part "
                                    "of the recipe, as in recipe.lr=0.01")
                recipe = value
            elif name.startswith(OWN_RECIPE):
                changes[name.removeprefix(OWN_RECIPE)] = value
            else:
                options[name] = value
        if changes:
            recipe = combine({PUBLISHED: True} if isinstance(recipe, str) else recipe, changes)
        return self.model_copy(update={"options": options, "recipe": recipe})

    def own_recipe(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of the method's own recipe; `published` are those of its paper."""
        return complete_recipe(published, self.changed_parts) if self.takes_published else self.changed_parts

    @property
    def changed_parts(self) -> dict[str, Any]:
        """Return the parts of a recipe that the experiment gives for this method."""
        return {} if isinstance(self.recipe, str) else {k: v for k, v in self.recipe.items() if k != PUBLISHED}

    @property
    def takes_published(self) -> bool:
        """Return whether the method's recipe is that of its paper, perhaps with changes."""
        return isinstance(self.recipe, str) or bool(self.recipe.get(PUBLISHED))

    @property
    def given(self) -> dict[str, Any]:
        """Return the options, and the parts of the recipe by names such as `recipe.lr`."""
        published = {"recipe": PUBLISHED} if not isinstance(self.recipe, str) and self.takes_published else {}
        return {**self.options, **published, **recipe_options(self.changed_parts)}

    def runs_in(self, scenario: Scenario) -> bool:
        """Return whether the method has a row in a scenario."""
        return not self.scenario or scenario in self.scenario


class Spec(Strict):
    """An experiment: every combination of its methods, scenarios and seeds is a trial."""

    benchmark: Named = Field(Named(name=DEFAULT_BENCHMARK), description="Benchmark.")
    scenario: Scenarios = Field(
        (), description="task, domain or class, or several of them; the benchmark's default if empty.")
    model: Named = Field(Named(name="mlp"), description="Model.")
    weights: str | None = Field(
        None, description="Pretrained weights: a file, or a name such as timm or hf-hub:OWNER/NAME.")
    recipe: Recipe = Field(Recipe(), description="Training configuration of all methods.")
    arrival: Arrival = Field(Arrival(), description="How training samples arrive.")
    online: bool = Field(False, strict=True, description="Train in one pass, in batches of 10 new samples.")
    execution: ExecutionSettings = Field(ExecutionSettings(), description="How trials are run.")
    methods: Annotated[tuple[MethodSpec, ...], BeforeValidator(split_names)] = Field(
        min_length=1, description="Methods; a list of values for an option makes a row for each value.")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seed_list)] = Field(
        (0, 1, 2), description="Number of seeds, or a list of seeds.")
    until: Until | None = Field(
        None, description="\"decided\" adds seeds while a comparison is inconclusive, up to max_seeds.")
    max_seeds: int = Field(
        MOST, ge=1, le=100, description="Largest number of seeds of a method with until = \"decided\".")
    baseline: str | None = Field(None, description="Method that until = \"decided\" compares with, or \"best\".")
    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto", description="Device: auto, cpu, mps, cuda or cuda:N.")
    validation: float = Field(0.0, ge=0, lt=1, description="Share of the training samples that is held out and "
                              "replaces the test set in evaluations.")
    tune: dict[str, Space] = Field({}, description="Search space of `clbench tune`: values to try, by method.")
    tuning: tuple[Search, ...] = Field(
        (), description="Searches that chose the methods' options; written by `clbench tune`.")

    @model_validator(mode="before")
    @classmethod
    def _complete_recipe(cls, values: Any) -> Any:
        """Complete the recipe for `online`, hidden boundaries, and a linear model on stored features."""
        return settle_epochs(settle(values)) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _reject_unused_seed_rules(self) -> Spec:
        """Reject settings on how seeds are added if no seeds are added."""
        if self.until is None and {"max_seeds", "baseline"} & self.model_fields_set:
            name, hint = "baseline", "; clbench compare RUN --baseline METHOD tests what there is"
            if "max_seeds" in self.model_fields_set:
                name, hint = "max_seeds", ""
            raise ValueError(f"{name} goes with until = \"decided\" (--until decided){hint}")
        return self

    @field_validator("seeds", "scenario")
    @classmethod
    def _reject_duplicates(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        """Reject duplicate seeds or scenarios, and an empty list of seeds."""
        if len(set(values)) != len(values) or (info.field_name == "seeds" and not values):
            raise ValueError(f"give at least one, and each only once; got {', '.join(map(str, values)) or 'none'}")
        return values


ELSEWHERE = {"learning_rate": "lr", "n_epochs": "epochs", "num_train_epochs": "epochs", "train_epochs": "epochs",
             "max_steps": "iterations", "train_mb_size": "batch_size", "optim": "optimizer", "dataset": "benchmark",
             "strategies": "methods"}  # names of keys in other toolkits
# Tables whose keys are on the same level as those of the experiment on the command line and in Python.
TABLES: dict[str, type[Strict]] = {"recipe": Recipe, "arrival": Arrival, "execution": ExecutionSettings}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML experiment into the plain values that `build` takes."""
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise SpecError(f"there is no experiment file {path}: check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        hint = "" if path.suffix == ".toml" else "; to train on your own data, name it with --benchmark"
        raise SpecError(f"{path} cannot be read as TOML: {getattr(error, 'strerror', None) or error}{hint}") from None


def build(values: Mapping[str, Any], source: str = "") -> Spec:
    """Validate plain values into a Spec; the error lists all mistakes, each with its place (`source: key.key`)."""
    try:
        return Spec.model_validate(dict(values))
    except ValidationError as error:
        prefix = f"{source}: " if source else ""
        # If the items of a list are invalid, pydantic also reports the list as too short.
        mistakes = [i for i in error.errors() if i["type"] != "too_short" or not i["input"]]
        raise SpecError("\n".join(dict.fromkeys(prefix + _explain(item) for item in mistakes))) from None


# pydantic's types of errors whose message speaks of Python's types
EXPECTED = {"too_short": "expected at least one value", "dict_type": "expected a table",
            "model_type": "expected a table", "tuple_type": "expected a list"}


def _explain(item: Any) -> str:
    """Return one of pydantic's errors as one line."""
    loc, value = [str(part) for part in item["loc"]], item["input"]
    key_path = ".".join(loc) or "experiment"
    if item["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {**TABLES, "benchmark": Named, "model": Named, "methods": MethodSpec,
                                             "tune": Range, "tuning": Search}
        part = parts.get(loc[0], Spec) if len(loc) > 1 else Spec
        key = ELSEWHERE.get(loc[-1], loc[-1])
        for name, table in TABLES.items():
            if part is Spec and key in table.model_fields:
                return f"{key_path}: put it under [{name}]" + (f", as {key}" if key != loc[-1] else "")
        if key != loc[-1] and key in part.model_fields:
            return f"{key_path}: it is called {key} here"
        if part in (Named, MethodSpec) and not guess(loc[-1], part.model_fields):
            in_recipe = part is MethodSpec and key in Recipe.model_fields and not any(
                loc[-1] in info.options.model_fields for info in installed().strategies.values())
            place, name = ("recipe", key) if in_recipe else ("options", loc[-1])
            text = json.dumps(value, default=str) if isinstance(value, str | list) else format_value(value)
            return f"{key_path}: write it under {place}, as in {place} = {{{name} = {text}}}"
        return f"{key_path}: " + unknown("key", loc[-1], part.model_fields, "docs/toml-keys.md")
    if item["type"] == "missing":
        return f"{key_path}: this key is missing: add it" + ', as in methods = ["lora", "ewc"]' * (loc == ["methods"])
    if item["type"] in EXPECTED:
        tagless = ".".join(part for part in loc if part not in ("range", "values"))
        text_form = {"benchmark": "a name or ", "model": "a name or ", "methods": "a name or ", "tune": "a list or "}
        alternative = text_form.get(loc[0], "") if item["type"] == "model_type" else ""
        return f"{tagless}: {EXPECTED[item['type']].replace('a table', alternative + 'a table')}, got {_quote(value)}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    shows_value = isinstance(value, str | int | float | list) and item["type"] != "value_error"
    return f"{key_path}: {message}" + (f", got {_quote(value)}" if shows_value else "")


def _quote(value: Any) -> str:
    """Return a given value as errors show it; a list in brackets, because a file has it so."""
    return str(value) if isinstance(value, list | tuple) else quote(value)
