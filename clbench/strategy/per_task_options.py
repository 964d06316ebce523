"""Options that strategies with a part per task have in common; no torch, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from clbench.core.options import Options

Infer = Literal["entropy", "max-logit", "prototype"]
Base = Literal["auto", "task1", "random", "pretrained"]


class InferOptions(Options):
    """How a task is inferred if the scenario does not give it (class, domain)."""

    infer: Infer = Field("entropy", description="without a task id: the learned task with the lowest entropy, the "
                         "largest logit, or the nearest class mean in shared features")


class StartOptions(Options):
    """Where the frozen part that all tasks share comes from."""

    base: Base = Field("auto", description="shared weights: trained on the first task and then frozen, left as they "
                       "were initialised, or those of --weights as they are; auto: pretrained with --weights, else "
                       "task1")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced: pretrained weights are frozen, others learn the first task."""
        chosen: Base = "pretrained" if pretrained else "task1"
        return self.model_copy(update={"base": chosen}) if self.base == "auto" else self

    def phases(self, task: int) -> int:
        """Return the number of phases of a task: two for the first with `task1` (the shared part first), else one."""
        return 2 if self.base == "task1" and task == 0 else 1


class BaseOptions(StartOptions, InferOptions):
    """Where the frozen part comes from, and how a task is inferred."""
