"""`er`: experience replay from a small memory (Rolnick et al. 2019; Chaudhry et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions, QuotaOptions


class ReplayOptions(QuotaOptions):
    """Options of a replay memory: its size, its balance, and when samples are offered to it."""

    capacity: int = Field(200, ge=1, description="samples in the memory, for all tasks together")
    balance: Literal["reservoir", "class"] = Field(
        "reservoir", description="keep each sample of the stream with equal probability, or classes in equal numbers")
    update: Literal["step", "task"] = Field(
        "step", description="offer samples to the memory as they are trained on, or all of a task's after the task")


class EROptions(OutputsOptions, ReplayOptions):
    """Options of `er`."""

    LATER: ClassVar[tuple[str, ...]] = ("share", "weights")

    share: float = Field(1.0, gt=0, description="replayed samples for each new one: with batches of B new samples, "
                         "step i (from 0) replays floor((i + 1) B share) - floor(i B share), in addition to them")
    weights: Literal["constant", "by-task"] = Field(
        "constant", description="of the samples in task t: constant: one mean over new and replayed ones; by-task: the "
        "mean over new ones times 1 / t and that over replayed ones times 1 - 1 / t, as in van de Ven's code")

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
