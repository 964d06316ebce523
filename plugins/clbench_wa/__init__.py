"""`wa`: weight aligning (Zhao et al. 2020, arXiv 1911.07053)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class WAOptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `wa`; the defaults are the paper's."""

    temperature: Scalar = Field(2.0, gt=0, description="T: temperature of the distillation")
    clip: bool = Field(True, description="set negative weights of the head to 0 after every step (the paper; reference "
                       "codes do not)")

    # Labels compete among all classes so far, which causes the bias that WA corrects.
    fixed_outputs: ClassVar[Outputs] = "seen"


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("wa", "clbench_wa.strategy:WA",
                         "replays and distills; scales new classes' weights to the length of old ones", WAOptions,
                         "Zhao et al. 2020, arXiv 1911.07053",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4,
                                 "schedule": "steps", "milestones": [6 / 17, 10 / 17, 14 / 17],
                                 "head_decay": "learning"},
                         budget={"epochs": 170, "batch_size": 128, "samples": 5000}, from_scratch=True,
                         display_name="WA ({capacity})", family="distillation"),)
