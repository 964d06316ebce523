"""`lucir`: learning a unified classifier incrementally via rebalancing (Hou et al. 2019, CVPR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clbench import OnlyWith, Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class LUCIROptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `lucir`; the defaults are the paper's."""

    lambda_base: Scalar = Field(5.0, ge=0, description="weight of the less-forget loss; it is multiplied by sqrt(old "
                                "classes / new classes) (10 on ImageNet in the paper)")
    ranking: Scalar = Field(1.0, ge=0, description="weight of the margin ranking loss")
    margin: Annotated[Scalar, OnlyWith("ranking")] = Field(
        0.5, ge=0, description="m: margin by which the cosine of a replayed sample's own class should exceed the "
        "cosines of new classes")
    negatives: Annotated[int, OnlyWith("ranking")] = Field(
        2, ge=1, description="K: number of new classes, chosen by the largest cosines, that the ranking loss compares "
        "a sample with")
    eta: float = Field(1.0, gt=0, description="initial value of the learned scale eta of the cosines")
    eta_lr: float = Field(0.1, gt=0, description="learning rate of eta, in place of the configured learning rate, "
                          "because the size of eta does not depend on the network")
    imprint: bool = Field(True, description="initialize the weights of a new class with its mean features (the "
                          "authors' code)")
    last_relu: Literal["remove", "keep"] = Field("remove", description="the last ReLU before the head. remove: "
                                                 "features have both signs; keep: features are not negative")

    fixed_outputs: ClassVar[Outputs] = "seen"  # labels compete among all classes so far


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lucir", "clbench_lucir.strategy:LUCIR",
                         "replays with a cosine head; keeps feature directions and class margins", LUCIROptions,
                         "Hou et al. 2019, CVPR (Learning a Unified Classifier Incrementally via Rebalancing)",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "steps", "milestones": [0.5, 0.75], "head_decay": "learning"},
                         budget={"epochs": 160, "batch_size": 128, "samples": 5000}, from_scratch=True,
                         display_name="LUCIR ({capacity})", family="distillation"),)
