"""`slca`: a slow learner with classifier alignment (Zhang et al. 2023, arXiv 2303.05118); `slca++`: with adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from clbench_lora import LowRankOptions, SummedOptions, Target
from pydantic import Field

from clbench import OnlyWith, Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ALIGN, MEANING, AlignOptions, OutputsOptions


class SLCAOptions(OutputsOptions, AlignOptions):
    """Options of `slca`; the defaults are those of the authors' code."""

    slow: float = Field(0.01, gt=0, le=1, description="learning rate of all parameters except the head, as a multiple "
                        "of the configured learning rate")
    outputs: Outputs = Field("own", description=MEANING)
    align: bool = Field(True, description=ALIGN)


class SLCAPlusOptions(OutputsOptions, AlignOptions, SummedOptions):
    """Options of `slca++`; the defaults are those of the authors' code for Split-CIFAR-100."""

    PAPER: ClassVar[tuple[Target, ...]] = ("q", "k", "v", "mlp")

    alpha: float | None = Field(3.2, gt=0, description=LowRankOptions.model_fields["alpha"].description)
    slow: float = Field(0.1, gt=0, le=1, description="learning rate of all parameters except the head, as a multiple "
                        "of the configured learning rate (adapters in the first task: first_slow)")
    first_slow: float = Field(0.5, gt=0, le=1, description="learning rate of the adapters in the first task, as a "
                              "multiple of the configured learning rate")
    cross: Scalar = Field(1.0, ge=0, description="weight of the cross-entropy")
    reverse: Scalar = Field(0.1, ge=0, description="weight of the reverse cross-entropy")
    outputs: Outputs = Field("own", description=MEANING)
    align: bool = Field(True, description=ALIGN)
    align_shrink: Annotated[float, OnlyWith("align")] = Field(
        1.0, gt=0, le=1, description=AlignOptions.model_fields["align_shrink"].description)
    align_growth: Annotated[float, OnlyWith("align")] = Field(
        0.02, ge=0, description="s: features drawn for a class that was learned d tasks ago are divided by 1 + s d, "
        "with a little noise on s; its realigned weights are multiplied by 1 + s d")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (StrategyInfo("slca", "clbench_slca.strategy:SLCA",
                         "fine-tunes the backbone slowly; realigns the head on class Gaussians",
                         SLCAOptions, "Zhang et al. 2023, arXiv 2303.05118",
                         recipe={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "steps", "milestones": (0.9,), "schedule_by": "epoch",
                                 "head_decay": "learning"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 5000},
                         display_name="SLCA"),
            StrategyInfo("slca++", "clbench_slca.plus:SLCAPlus",
                         "trains adapters slowly with a symmetric loss; realigns the head",
                         SLCAPlusOptions, "Zhang et al. 2024, arXiv 2408.08295",
                         recipe={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "cosine", "schedule_by": "epoch", "head_decay": "learning"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 5000},
                         display_name="SLCA++ r={rank}", family="adapters and prompts"))
