"""`slca`: a slow learner with classifier alignment (Zhang et al. 2023, arXiv 2303.05118)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ALIGN, MEANING, AlignOptions, OutputsOptions


class SLCAOptions(OutputsOptions, AlignOptions):
    """Options of `slca`; the defaults are those of the authors' code."""

    slow: float = Field(0.01, gt=0, le=1, description="what multiplies the recipe's learning rate for all but the head")
    outputs: Outputs = Field("own", description=MEANING)
    align: bool = Field(True, description=ALIGN)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("slca", "clbench_slca.strategy:SLCA",
                         "fine-tunes the backbone slowly; realigns the head on Gaussians of all classes",
                         SLCAOptions, "Zhang et al. 2023, arXiv 2303.05118",
                         recipe={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "steps", "milestones": (0.9,), "schedule_by": "epoch",
                                 "head_decay": "learning"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 5000},
                         display_name="SLCA"),)
