"""`er`: experience replay from a small memory (Rolnick et al. 2019; Chaudhry et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions, QuotaOptions


class ReplayOptions(QuotaOptions):
    """Options of a replay memory: its size, its balance, and when samples are offered to it."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all tasks together")
    balance: Literal["reservoir", "class"] = Field(
        "reservoir", description="which samples the buffer keeps. reservoir: every sample of the stream with equal "
        "probability; class: equally many samples of each class")
    update: Literal["step", "task"] = Field(
        "step", description="when samples are offered to the buffer. step: when they are trained on; task: all samples "
        "of a task after the task")


class EROptions(OutputsOptions, ReplayOptions):
    """Options of `er`."""

    LATER: ClassVar[tuple[str, ...]] = ("share", "weights")

    share: float = Field(1.0, gt=0, description="number of replayed samples added per new sample: with batches of B "
                         "new samples, step i (from 0) replays floor((i + 1) B share) - floor(i B share) samples")
    weights: Literal["constant", "by-task"] = Field(
        "constant", description="how the loss of task t weights samples. constant: one mean over new and replayed "
        "samples; by-task: 1 / t times the mean over new samples plus (1 - 1 / t) times the mean over replayed "
        "samples, as in van de Ven's code")

    @property
    def needs_boundaries(self) -> str:
        """Return why boundaries are needed: weights by task count the tasks."""
        return ("weights = by-task counts the tasks; choose weights = constant" if self.weights == "by-task"
                else super().needs_boundaries)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("er", "clbench_er.strategy:ER", "replays stored samples, as many as new ones in each step",
                         EROptions, "Rolnick et al. 2019, arXiv 1811.11682; Chaudhry et al. 2019, arXiv 1902.10486",
                         task_free=True, display_name="ER ({capacity})", family="replay",
                         objectives=("classification", "causal-lm", "regression")),)
