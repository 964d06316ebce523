"""Options that several strategies share; no torch, so that listing them is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.options import Options
from clbench.core.scenario import Outputs, Scenario


class QuotaOptions(Options):
    """How many samples of each class are stored, if the classes do not share a capacity."""

    LATER: ClassVar[tuple[str, ...]] = ("per_class", "quota")

    per_class: int | None = Field(None, ge=1, description="samples that are stored of each class, instead of capacity; "
                                  "none: the classes share capacity")
    quota: Literal["class", "class-and-task"] = Field(
        "class", description="what per_class counts if classes return, as all do in scenario domain: samples of a "
        "class, or of a class in each task")

    @property
    def needs_boundaries(self) -> str:
        """Return that the samples of each task are counted apart."""
        return ("quota = class-and-task counts the samples of each task; choose quota = class"
                if self.quota == "class-and-task" else super().needs_boundaries)

    @model_validator(mode="after")
    def _one_size(self) -> QuotaOptions:
        """Refuse two sizes of a memory, a way to share a capacity that is not used, and a quota of nothing."""
        if self.per_class is None:
            if self.quota != "class":
                raise ValueError(f"quota = {self.quota} says what per_class counts; give per_class too")
            return self
        for name in ("capacity", "balance"):
            field = type(self).model_fields.get(name)
            if field is not None and getattr(self, name) != field.default:
                raise ValueError(f"give per_class or {name}, not both")
        return self


class ExemplarOptions(QuotaOptions):
    """How many exemplars there are."""

    capacity: int = Field(200, ge=1, description="K: exemplars for all classes together, at least one for each class")


ALIGN = ("in scenario class, train the head alone after each task but the first, on features drawn from a Gaussian of "
         "each class so far; in task and domain it changes nothing")


class AlignOptions(Options):
    """Whether and how the head is realigned; a strategy whose paper does so redeclares `align` with that default.

    The other defaults are those of the authors' code (SLCA).
    """

    LATER: ClassVar[tuple[str, ...]] = ("align", "align_epochs", "align_samples", "align_lr", "align_temperature",
                                        "align_shrink")

    align: bool = Field(False, description=ALIGN)
    align_epochs: int = Field(5, ge=1, description="how often features are drawn; each time there is a step for each "
                              "class so far")
    align_samples: int = Field(256, ge=1, description="features drawn for each class each time; also those in a step's "
                               "batch")
    align_lr: float = Field(0.01, gt=0, description="learning rate of these steps (SGD), which falls along a cosine")
    align_temperature: float | None = Field(0.1, gt=0, description="what normalized logits are divided by; none: "
                                            "logits are not normalized")
    align_shrink: float = Field(0.9, gt=0, le=1, description="factor of class means where the past is infinitely long; "
                                "after t tasks those of task i have shrink + (1 - shrink) i / t")

    @property
    def needs_boundaries(self) -> str:
        """Return that the head is realigned after each task."""
        return "align = true realigns the head after each task" if self.align else super().needs_boundaries


Infer = Literal["entropy", "max-logit", "prototype", "gaussian"]
Base = Literal["auto", "task1", "random", "pretrained"]


class InferOptions(Options):
    """How a task is inferred if the scenario does not give it (class, domain)."""

    LATER: ClassVar[tuple[str, ...]] = ("infer_normalize",)

    infer: Infer = Field("entropy", description="without a task id: the learned task with the lowest entropy, the "
                         "largest logit, the nearest class mean in shared features, or there the likeliest class, "
                         "where classes are Gaussians of one covariance (as in slda)")
    infer_normalize: bool = Field(False, description="with infer = prototype or gaussian: scale shared features to "
                                  "length 1 (prototype: their means too, as in ncm)")

    @property
    def from_features(self) -> bool:
        """Tell whether the task is inferred from shared features."""
        return self.infer in ("prototype", "gaussian")

    @model_validator(mode="after")
    def _is_used(self) -> InferOptions:
        """Refuse to scale features that nothing reads."""
        if self.infer_normalize and not self.from_features:
            raise ValueError(f"infer_normalize = true scales shared features, which infer = {self.infer} does not "
                             "read; leave it out, or infer by prototype or gaussian where the method can")
        return self


class StartOptions(Options):
    """Where the frozen part that all tasks share comes from."""

    base: Base = Field("auto", description="shared weights: trained on the first task and then frozen, left as they "
                       "were initialized, or those of --weights as they are; auto: pretrained with --weights, else "
                       "task1")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced: pretrained weights are frozen, others learn the first task."""
        chosen: Base = "pretrained" if pretrained else "task1"
        return self.model_copy(update={"base": chosen}) if self.base == "auto" else self

    @property
    def needs_boundaries(self) -> str:
        """Return why the end of the first task must be known: otherwise the base would be trained on all tasks."""
        reason = "base = task1 trains the base on the first task; choose base = pretrained or random"
        return reason if self.base == "task1" else super().needs_boundaries

    def phases(self, task: int) -> int:
        """Return the number of phases of a task: two for the first with `task1` (the shared part first), else one."""
        return 2 if self.base == "task1" and task == 0 else 1


class BaseOptions(StartOptions, InferOptions):
    """Where the frozen part comes from, and how a task is inferred."""


MEANING = ("in scenario class, the outputs among which the label of a new sample competes in training: of all classes "
           "so far (seen), of the task at hand (own), or of the whole stream (all). With own, replayed samples compete "
           "among all so far")


class OutputsOptions(Options):
    """The choice of outputs; a strategy whose paper has another one redeclares the field with that default."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs = Field("seen", description=MEANING)

    @property
    def needs_boundaries(self) -> str:
        """Return that the classes of the task at hand are those of a task."""
        return ("outputs = own are those of the task at hand; choose outputs = seen" if self.outputs == "own"
                else super().needs_boundaries)


class OwnOutputsOptions(OutputsOptions):
    """The choice of a method that trains new classes alone in scenario class, where earlier records have `seen`."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"outputs": "seen"}

    outputs: Outputs = Field("own", description=MEANING)

    def in_scenario(self, scenario: Scenario, boundaries: bool) -> Options:
        """Return `seen` in place of `own` if both mean the same, or if nobody chose `own` and boundaries are hidden."""
        same = scenario != "class" or (not boundaries and "outputs" not in self.model_fields_set)
        return self.model_copy(update={"outputs": "seen"}) if same and self.outputs == "own" else self


class FixedOutputsOptions(Options):
    """The same for a method whose loss says itself what competes: another value is an error."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs | None = Field(
        None, description="what the method's loss fixes, or none; see docs/fair-comparison.md")

    @property
    def fixed_outputs(self) -> Outputs:
        """Return the outputs among which new samples compete."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_fixed(self) -> FixedOutputsOptions:
        """Refuse another choice."""
        if self.outputs not in (None, self.fixed_outputs):
            raise ValueError(f"outputs = {self.outputs}, but the loss fixes outputs = {self.fixed_outputs}; leave it "
                             "out")
        object.__setattr__(self, "outputs", None)  # so that it is the same trial
        return self
