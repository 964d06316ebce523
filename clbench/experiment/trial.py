"""A trial: all that defines its result and its key, its label in tables, and its progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from clbench.core import options as opt
from clbench.core.objective import ACCURACY
from clbench.core.options import Strict
from clbench.core.pretrained import Preprocessing
from clbench.core.scenario import Scenario
from clbench.experiment.arrival import Arrival
from clbench.experiment.recipe import Recipe
from clbench.experiment.search import Searched
from clbench.experiment.until import UntilDecided


class Resolved(BaseModel):
    """A name with all of its options, defaults included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(description="Name of the benchmark, model or method.")
    options: dict[str, Any] = Field({}, description="All options, including defaults.")

    def __str__(self) -> str:
        """Return `name:option=value` with every option."""
        return ":".join([self.name, *(f"{k}={opt.format_value(v)}" for k, v in self.options.items())])


class Weights(BaseModel):
    """Pretrained weights: a file, whose content and not its path is part of a trial's key, or a published name."""

    DESCRIPTION: ClassVar[set[str]] = {"path", "licence", "training_data"}  # fields that are not part of a trial's key

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(
        description="Path of the file, or name with source and revision, such as hf-hub:OWNER/NAME@COMMIT.")
    sha256: str = Field(description="SHA-256 of the file's content, or of the name.")
    licence: str = Field("", description="License as the publisher states it; empty if unknown.")
    training_data: str = Field("", description="Training data as the publisher states it; empty if unknown.")

    @property
    def named(self) -> bool:
        """Return whether these are published weights by name."""
        return self.sha256 == hash_of_name(self.path)

    @property
    def short_path(self) -> str:
        """Return the path, or the last folder and file name of an absolute path, which other machines do not have.

        >>> Weights(path="/data/models/all-MiniLM-L6-v2/model.safetensors", sha256="").short_path
        'all-MiniLM-L6-v2/model.safetensors'
        >>> Weights(path="weights/vit_s14.safetensors", sha256="").short_path
        'weights/vit_s14.safetensors'
        """
        path = PureWindowsPath(self.path)  # it reads slashes too
        return "/".join(path.parts[1:][-2:]) if path.anchor else self.path


def hash_of_name(name: str) -> str:
    """Return the hash that represents published weights in a trial's key; a name without source is torchvision's."""
    return hashlib.sha256((name if ":" in name else f"torchvision {name}").encode()).hexdigest()


class Continued(Strict):
    """The finished trial, on other tasks, that a trial continues."""

    LATER = ("same_classes",)

    parent: str = Field(description="Key of the trial that is continued.")
    benchmarks: list[Resolved] = Field(description="Benchmarks that were learned before, in order.")
    tasks: int = Field(description="Number of tasks of these benchmarks.")
    outputs: int = Field(description="Number of outputs of the model before training continued.")
    same_classes: bool = Field(False, description="Whether a class with the name of an earlier class uses its output.")


class Trial(BaseModel):
    """One training run: everything that defines its result."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")  # also in the key
    benchmark: Resolved = Field(description="Benchmark with all options.")
    scenario: Scenario = Field(description="Scenario: task, class or domain.")
    model: Resolved = Field(description="Model with all options.")
    weights: Weights | None = Field(None, description="Pretrained weights.")
    preprocessing: Preprocessing | None = Field(
        None, description="Preprocessing of images with which the weights were trained.")
    recipe: Recipe = Field(description="Training configuration of the experiment.")
    own_recipe: dict[str, Any] = Field(
        {}, description="Parts of the training configuration that differ for this method.")
    method: Resolved = Field(description="Method with all options.")
    seed: int = Field(description="Random seed of the trial.")
    validation: float = Field(
        0.0, description="Share of the training samples that was held out and replaces the test set; 0: none.")
    arrival: Arrival = Field(Arrival(), description="How training samples arrive.")
    continues: Continued | None = Field(None, description="Finished trial that this trial continues.")

    @field_validator("own_recipe")
    @classmethod
    def _restore_tuples(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Turn lists, as JSON has them, into tuples, as a recipe has them."""
        return {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}

    @model_serializer(mode="wrap")
    def _without_later(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields that were added later and have their defaults, so that keys and records stay the same."""
        written: dict[str, Any] = write(self)
        if self.arrival == Arrival():
            written.pop("arrival", None)
        if self.continues is None:
            written.pop("continues", None)
        return written

    @property
    def key(self) -> str:
        """Return the trial's name in the store: 16 hexadecimal digits, a hash of everything that defines its result."""
        left_out: dict[str, Any] = {"weights": Weights.DESCRIPTION}
        if not self.validation:  # keeps the keys of records that are older than the field
            left_out["validation"] = True
        if self.preprocessing is None:
            left_out["preprocessing"] = True
        if not self.own_recipe:
            left_out["own_recipe"] = True
        text = json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def trained_by(self) -> Recipe:
        """Return the recipe that the trial is trained with: the experiment's recipe, updated by the method's own."""
        return self.recipe.model_copy(update=self.own_recipe)

    @property
    def method_config(self) -> str:
        """Return the identity of a row within a setting: the method with every option and its own recipe."""
        options = {**self.method.options, **opt.recipe_options(self.own_recipe)}
        return str(Resolved(name=self.method.name, options=options))

    @property
    def seedless(self) -> str:
        """Return a key that is the same for trials that differ only in their seed."""
        return self.model_copy(update={"seed": 0}).key

    @property
    def environment(self) -> tuple[str, ...]:
        """Return the parts that must agree for two trials' methods to be compared: all except method and seed."""
        return (str(self.benchmark), self.scenario, str(self.model), self.weights.sha256 if self.weights else "",
                self.recipe.model_dump_json(), f"validation={self.validation:g}", str(self.preprocessing or ""),
                str(self.arrival), *([f"continues {', '.join(map(str, self.continues.benchmarks))}"
                                      + ", same classes" * self.continues.same_classes] if self.continues else []))


@dataclass(frozen=True)
class PlannedTrial:
    """A trial and the label of its method in tables."""

    trial: Trial
    label: str
    reference: bool
    family: str = ""  # trials of a setting with the same family, not empty, may train as one stack (see `Scalar`)
    searched: Searched | None = None  # the search that its method's options come from
    until: UntilDecided | None = None  # the rule by which its seed was added
    seen: tuple[int, ...] = ()  # seeds that a report had shown before this seed was requested
    metric: str = ACCURACY.name  # metric of R
    default_scenario: bool = False  # whether the experiment names no scenario


@dataclass(frozen=True)
class Progress:
    """An event of a running trial: the task it trains on and the mean of R's metric over the earlier tasks."""

    key: str
    task: int  # 0-based; equal to `tasks` when the trial is over
    tasks: int
    score: float | None  # a fraction, or a value of another metric; None before the first task is learned


SLOW_HEADS = 0.02  # most that Adam can move a weight of a head in a task; heads begin with weights of about 0.05


def has_one_rate(trial: Trial) -> bool:
    """Return whether a trial has pretrained weights and trains its heads with Adam at the backbone's learning rate."""
    recipe = trial.trained_by
    return (trial.weights is not None and not trial.continues and recipe.optimizer != "sgd"
            and recipe.head_lr is None)


def has_slow_heads(trial: Trial, trainable: Sequence[int], parameters: Sequence[Mapping[str, int]],
                   steps: Sequence[int]) -> bool:
    """Return whether a trial trains a pretrained backbone and heads with one learning rate that is low for new heads.

    With Adam, a step changes a weight by about the learning rate at most. The rate is called low if all steps of a task
    change a weight by less than `SLOW_HEADS`. Fine-tuning with 64 steps and a rate of 1e-5 reaches 48% in
    `reports/lora_question/vision_task`. In the candidates of `benchmarks/lora_question/answer_tuning`, a head rate of
    0.001 gives 64%, and one of 0.01 gives 77%.

    Args:
        trial: the trial.
        trainable: the number of values that it trains in each task.
        parameters: the number of parameters that it stores after each task, by role.
        steps: the number of its steps in each task.
    """
    backbone = parameters[0].get("base", 0) if parameters else 0
    return (has_one_rate(trial) and 0 < backbone <= 2 * max(trainable, default=0)
            and 0 < trial.trained_by.lr * max(steps, default=0) < SLOW_HEADS)
