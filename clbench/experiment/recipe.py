"""Recipe: the training configuration of an experiment or of one method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from clbench.core.options import Strict

Optimizer = Literal["adam", "adamw", "sgd"]
OPTIMIZER_TITLES: dict[Optimizer, str] = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
Schedule = Literal["constant", "cosine", "quarter-cosine", "steps"]
DECAY = 0.1  # default factor of the learning rate at milestones
DEFAULT_EPOCHS = 10
FEATURE_EPOCHS = 300
"""Epochs of a linear model on stored features, if an experiment gives no budget.

The usual 10 epochs are tens of steps on a few hundred samples per task, after which a linear model is underfit. With
240 samples per task in three tasks, scenario class, lr 1e-3 and one seed, experience replay had an ACC of

    epochs                              10    30   100   300  1000
    MNIST, randomly projected (256)    24.4  52.3  80.7  85.3  87.7
    Gaussian clusters (128)            74.3  99.3 100.0 100.0 100.0

The training loss at the end of a task, divided by the chance loss, was at most 0.78, 0.55, 0.27, 0.13, 0.03 on the
first and 0.93, 0.79, 0.45, 0.14, 0.02 on the second. A step of such a model costs almost nothing.
"""


class Recipe(Strict):
    """How every method is trained on each task."""

    LATER: ClassVar[tuple[str, ...]] = (
        "warmup_ratio", "max_grad_norm", "milestones", "decay", "repeats", "head_lr", "accumulate",
        "lr_per", "schedule_by", "head_decay", "group_by_length")
    model_config = ConfigDict(allow_inf_nan=False)
    optimizer: Optimizer = Field("adam", description="optimizer: adam, adamw or sgd")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    lr_per: int | None = Field(
        None, ge=1, description="reference batch size of lr: the learning rate is lr * batch_size / lr_per")
    head_lr: float | None = Field(None, gt=0, description="learning rate of the heads; lr if not given")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty added to the gradient (adam, sgd), or decoupled weight decay (adamw)")
    head_decay: Literal["all", "learning"] = Field(
        "all", description="rows of the heads that optimizer steps change, including their weight decay. all: all "
        "rows; learning: only rows with a nonzero gradient")
    schedule: Schedule = Field(
        "constant", description="learning rate schedule over the steps of each phase of a task (most methods have one "
        "phase). constant: no change; cosine: falls to 0; quarter-cosine: along the first quarter of a cosine; steps: "
        "falls at milestones")
    schedule_by: Literal["step", "epoch"] = Field(
        "step", description="whether the schedule changes the learning rate after each step or each epoch")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="shares of a phase's steps at which the learning rate is multiplied by decay (schedule = "
        "steps)")
    decay: float | None = Field(
        None, gt=0, lt=1, description=f"factor of the learning rate at each milestone; {DECAY} if not given")
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of a phase's steps in which the learning rate rises linearly from 0")
    max_grad_norm: float | None = Field(
        None, gt=0, description="norm to which gradients are clipped; no clipping if not given")
    epochs: int | None = Field(
        None, ge=1, description="passes over a task's training samples; 10 if neither epochs nor iterations is given, "
        "and 300 for the model linear on stored features")
    iterations: int | None = Field(None, ge=1, description="optimizer steps per task, instead of epochs")
    repeats: int | None = Field(
        None, ge=1, description="consecutive optimizer steps on each batch; 1 if not given")
    batch_size: int = Field(128, ge=1, description="new samples per step; replayed samples are added to them")
    group_by_length: bool = Field(
        False, description="for language models: whether the items of a batch have similar lengths, which needs less "
        "padding")
    accumulate: int = Field(1, ge=1, description="number of parts of each batch, for gradient accumulation: their "
                            "gradients are computed one by one and summed")
    optimizer_state: Literal["reset", "keep"] = Field(
        "reset", description="reset or keep the optimizer's state when a new task or phase begins")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="numerical precision. fp32: float32; tf32: TensorFloat-32, on CUDA only; bf16: mixed "
        "precision with float32 weights")

    @field_validator("*", mode="before")
    @classmethod
    def _read_label(cls, value: Any, info: ValidationInfo) -> Any:
        """Read what labels of rows have: `none`, and milestones as text. One number is a list of milestones, too."""
        if info.field_name == "milestones" and isinstance(value, int | float) and not isinstance(value, bool):
            return [value]
        if info.field_name == "milestones" and isinstance(value, str):
            return [part for part in value.strip("()[] ").replace("+", ",").split(",") if part.strip()]
        return None if value == "none" and cls.model_fields[info.field_name or ""].default is None else value

    @field_validator("repeats")
    @classmethod
    def _drop_single_repeat(cls, value: int | None) -> int | None:
        """Replace 1 by None, so that the key is the same as without `repeats`."""
        return None if value == 1 else value

    @model_validator(mode="after")
    def _check_budget(self) -> Recipe:
        """Reject two budgets and options that would have no effect, and fill in the default number of epochs."""
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("epochs and iterations both set the budget: give only one of them")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of sgd, which {self.optimizer} does not use: leave it out, or "
                             "choose sgd")
        if bool(self.milestones) != (self.schedule == "steps") or (self.decay and not self.milestones):
            raise ValueError("milestones and decay apply only to schedule = \"steps\", which needs milestones: give "
                             "both, or neither")
        if self.schedule_by == "epoch" and self.schedule == "constant":
            raise ValueError("schedule_by = epoch applies only to a schedule that changes the learning rate: leave it "
                             "out, or choose a schedule")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise, as in 0.5,0.8")
        if self.epochs is None and self.iterations is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        return self


# Parts of a recipe that belong to the value of another part
DEPENDENT = {"optimizer": ("momentum",), "schedule": ("milestones", "decay", "schedule_by"), "lr": ("lr_per",)}

BUDGET = ("epochs", "iterations", "batch_size")  # parts that determine the number of steps

# Parts of the experiment's recipe that a row with a published recipe takes over unless that recipe names them
INHERITED = (*BUDGET, "repeats", "accumulate", "precision")


def combine(parts: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a recipe with changes. What belonged to a replaced part is removed unless it is given.

    Another optimizer removes momentum, another schedule removes milestones, decay and schedule_by, and a learning rate
    removes the lr_per of the old one. A budget in epochs replaces one in iterations, and vice versa.
    """
    removed = {dependent for name, dependents in DEPENDENT.items() for dependent in dependents
               if name in changes and (name == "lr" or changes[name] != parts.get(name, changes[name]))}
    if {"epochs", "iterations"} & changes.keys():
        removed |= {"epochs", "iterations"}
    return {**{name: value for name, value in parts.items() if name not in removed}, **changes}


def complete_recipe(published: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a published recipe with changes. What it does not name has its default, so that nothing is inherited.

    Only the parts `INHERITED` stay the experiment's: budget, batch size and numerical precision.
    """
    defaults = {name: field.default for name, field in Recipe.model_fields.items() if name not in INHERITED}
    return {**defaults, **combine(published, changes)}


def with_final_rate(recipe: Recipe) -> Recipe:
    """Return a recipe without lr_per, with the learning rate scaled to its batch size."""
    if recipe.lr_per is None:
        return recipe
    return recipe.model_copy(update={"lr": recipe.lr * recipe.batch_size / recipe.lr_per, "lr_per": None})


def settle_epochs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's plain values; the recipe gets `FEATURE_EPOCHS` for the model `linear` on `arrays:FILE`.

    A given budget takes precedence. The recipe stores the number as if the user had given it, so the key contains it.
    """
    out = dict(values)
    recipe = out.get("recipe") or {}
    if not isinstance(recipe, Mapping) or any(recipe.get(name) is not None for name in ("epochs", "iterations")):
        return out
    if _name(out.get("benchmark")).startswith("arrays:") and _name(out.get("model")).partition(":")[0] == "linear":
        out["recipe"] = {**recipe, "epochs": FEATURE_EPOCHS}
    return out


def _name(given: Any) -> str:
    """Return the name of a benchmark or model that is given as text, as a table, or as an object with a name."""
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", given)
    return name if isinstance(name, str) else ""
