"""Options that strategies with a part per task have in common; no torch, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.options import Options

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
                       "were initialised, or those of --weights as they are; auto: pretrained with --weights, else "
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
