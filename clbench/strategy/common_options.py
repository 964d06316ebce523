"""Options that several strategies share. This module does not import torch, so that options are listed quickly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.option_marks import OnlyWith
from clbench.core.options import Options
from clbench.core.scenario import Outputs, Scenario

Criterion = Literal["moment", "inputs"]  # matrix whose squared singular values are called energy


class QuotaOptions(Options):
    """Options for a fixed number of stored samples per class, instead of a capacity that all classes share."""

    LATER: ClassVar[tuple[str, ...]] = ("per_class", "quota")

    per_class: int | None = Field(None, ge=1, description="number of samples stored for each class, instead of "
                                  "capacity; none: all classes share capacity")
    quota: Annotated[Literal["class", "class-and-task"], OnlyWith("per_class")] = Field(
        "class", description="what per_class counts if classes return, as all do in scenario domain. class: all stored "
        "samples of a class; class-and-task: the samples of a class from each task separately")

    @property
    def needs_boundaries(self) -> str:
        """Return the reason if `quota` counts the samples of each task separately."""
        return ("quota = class-and-task counts the samples of each task; choose quota = class"
                if self.quota == "class-and-task" else super().needs_boundaries)

    @model_validator(mode="after")
    def _one_size(self) -> QuotaOptions:
        """Reject `per_class` together with `capacity` or `balance`."""
        if self.per_class is None:
            return self
        for name in ("capacity", "balance"):
            field = type(self).model_fields.get(name)
            if field is not None and getattr(self, name) != field.default:
                raise ValueError(f"give per_class or {name}, not both")
        return self


class ExemplarOptions(QuotaOptions):
    """Options for the number of exemplars."""

    capacity: int = Field(200, ge=1, description="K: buffer size, the number of exemplars of all classes together; at "
                          "least one for each class")


ALIGN = ("retrain only the head after each task except the first, on features drawn from a Gaussian of each class so "
         "far (classifier alignment); it has no effect in scenarios task and domain")


class AlignOptions(Options):
    """Options for whether and how the head is realigned.

    If the paper of a strategy realigns the head, its options redeclare `align` with default True. The other defaults
    are from the authors' code (SLCA).
    """

    LATER: ClassVar[tuple[str, ...]] = ("align", "align_epochs", "align_samples", "align_lr", "align_temperature",
                                        "align_shrink")

    align: bool = Field(False, description=ALIGN)
    align_epochs: Annotated[int, OnlyWith("align")] = Field(
        5, ge=1, description="number of epochs of the alignment; each draws new features and takes one step for each "
        "class so far")
    align_samples: Annotated[int, OnlyWith("align")] = Field(
        256, ge=1, description="number of features drawn for each class in each epoch of the alignment; also its batch "
        "size")
    align_lr: Annotated[float, OnlyWith("align")] = Field(
        0.01, gt=0, description="initial learning rate of the alignment (SGD), which falls along a cosine")
    align_temperature: Annotated[float | None, OnlyWith("align")] = Field(
        0.1, gt=0, description="temperature by which normalized logits are divided in the alignment; none: logits are "
        "not normalized")
    align_shrink: Annotated[float, OnlyWith("align")] = Field(
        0.9, gt=0, le=1, description="scale of the class means in the alignment: after t tasks, the means of task i "
        "are multiplied by align_shrink + (1 - align_shrink) i / t")

    @property
    def needs_boundaries(self) -> str:
        """Return the reason if the head is realigned after each task."""
        return "align = true realigns the head after each task" if self.align else super().needs_boundaries


Infer = Literal["entropy", "max-logit", "prototype", "gaussian"]
Base = Literal["auto", "task1", "random", "pretrained"]


class InferOptions(Options):
    """Options for task-ID inference, if the scenario does not give the task ID (class, domain)."""

    LATER: ClassVar[tuple[str, ...]] = ("infer_normalize",)

    infer: Infer = Field("entropy", description="how the task of a test sample is inferred if its ID is not given. "
                         "entropy: the task whose head has the lowest entropy; max-logit: the task with the largest "
                         "logit; prototype: the task of the nearest class mean in shared features; gaussian: the task "
                         "of the most likely class, with a Gaussian for each class and one covariance matrix for all")
    infer_normalize: bool = Field(False, description="scale the features to length 1 if infer = prototype or gaussian; "
                                  "with prototype, the class means too (as in ncm)")

    @property
    def from_features(self) -> bool:
        """Return whether the task is inferred from shared features."""
        return self.infer in ("prototype", "gaussian")

    @model_validator(mode="after")
    def _is_used(self) -> InferOptions:
        """Reject `infer_normalize` if the task is not inferred from features."""
        if self.infer_normalize and not self.from_features:
            raise ValueError(f"infer_normalize = true scales shared features, which infer = {self.infer} does not "
                             "read; leave it out, or infer by prototype or gaussian where the method can")
        return self


class StartOptions(Options):
    """Options for the source of the frozen weights that all tasks share."""

    base: Base = Field("auto", description="source of the frozen weights that all tasks share. task1: trained on the "
                       "first task, then frozen; random: left as initialized; pretrained: loaded with --weights and "
                       "not trained; auto: pretrained if the model is pretrained, else task1")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced by `pretrained` if the model is pretrained, else by `task1`."""
        chosen: Base = "pretrained" if pretrained else "task1"
        return self.model_copy(update={"base": chosen}) if self.base == "auto" else self

    @property
    def needs_boundaries(self) -> str:
        """Return the reason if the base trains on the first task only, so that the end of this task must be known."""
        reason = "base = task1 trains the base on the first task; choose base = pretrained or random"
        return reason if self.base == "task1" else super().needs_boundaries

    def phases(self, task: int) -> int:
        """Return the number of phases of a task: 2 for the first task with `base = task1`, else 1.

        The shared weights are trained in the first of two phases.
        """
        return 2 if self.base == "task1" and task == 0 else 1


class BaseOptions(StartOptions, InferOptions):
    """Options for the source of the frozen weights and for task-ID inference."""


MEANING = ("which outputs compete with the label of a new sample in training, in scenario class. seen: all classes so "
           "far; own: the classes of the current task; all: all classes of the stream. With own, replayed samples "
           "compete among all classes so far")


class OutputsOptions(Options):
    """Options for which outputs compete in training. If a paper differs, redeclare the field with its default."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs = Field("seen", description=MEANING)

    @property
    def needs_boundaries(self) -> str:
        """Return the reason if only the classes of the current task compete, or also classes without samples so far."""
        if self.outputs == "own":
            return "outputs = own are those of the task at hand; choose outputs = seen"
        if self.outputs == "all":
            return "outputs = all has classes of tasks that are still to come; choose outputs = seen"
        return super().needs_boundaries


class OwnOutputsOptions(OutputsOptions):
    """As `OutputsOptions`, with default `own`; earlier records, which do not have the field, used `seen`."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"outputs": "seen"}

    outputs: Outputs = Field("own", description=MEANING)

    def in_scenario(self, scenario: Scenario, boundaries: bool) -> Options:
        """Return these options with `own` replaced by `seen` if both are equivalent.

        `own` is also replaced if boundaries are hidden and the user did not choose `own`.
        """
        uses_seen = scenario != "class" or (not boundaries and "outputs" not in self.model_fields_set)
        return self.model_copy(update={"outputs": "seen"}) if uses_seen and self.outputs == "own" else self


class FixedOutputsOptions(Options):
    """The option `outputs` of a method whose loss determines which outputs compete; any other value is an error."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs | None = Field(None, description="which outputs compete in training; none: the value that the "
                                    "method's loss fixes, and any other is an error (docs/fair-comparison.md)")

    @property
    def fixed_outputs(self) -> Outputs:
        """Return which outputs compete for new samples."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_fixed(self) -> FixedOutputsOptions:
        """Reject any other value, and store None if the user gives the value of the loss."""
        if self.outputs not in (None, self.fixed_outputs):
            raise ValueError(f"outputs = {self.outputs}, but the loss fixes outputs = {self.fixed_outputs}; leave it "
                             "out")
        object.__setattr__(self, "outputs", None)  # so that the key of the trial does not depend on it
        return self
