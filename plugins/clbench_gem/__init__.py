"""`gem`: gradient episodic memory (Lopez-Paz & Ranzato 2017, arXiv 1706.08840)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from clbench import SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class GEMOptions(OutputsOptions):
    """Options of `gem`; the default margin is that of the authors' experiments."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all tasks together")
    balance: Literal["reservoir", "class"] = Field(
        "class", description="which samples the buffer keeps. reservoir: every sample of the stream with equal "
        "probability; class: equally many samples of each class")
    margin: Annotated[float, SearchValues(0.0, 0.1, 0.5, 1.0)] = Field(
        0.5, ge=0, description="smallest weight of an old task's gradient in a projected step; a value above 0 favors "
        "steps that also improve old tasks")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("gem", "clbench_gem.strategy:GEM",
                         "projects gradients so that no old task's loss on stored samples rises", GEMOptions,
                         "Lopez-Paz & Ranzato 2017, arXiv 1706.08840", display_name="GEM ({capacity})",
                         recipe={"optimizer": "sgd", "lr": 0.1},
                         budget={"epochs": 1, "batch_size": 10, "samples": 1000}, from_scratch=True,  # Permuted MNIST
                         family="replay"),)
