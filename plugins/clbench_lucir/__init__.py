"""`lucir`: learning a unified classifier incrementally via rebalancing (Hou et al. 2019, CVPR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class LUCIROptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `lucir`; the defaults are the paper's."""

    lambda_base: Scalar = Field(5.0, ge=0, description="weight of the less-forget loss before it is adapted to the "
                                "numbers of classes (10 on ImageNet in the paper)")
    ranking: Scalar = Field(1.0, ge=0, description="weight of the margin ranking loss")
    margin: Scalar = Field(0.5, ge=0, description="m: by how much a replayed sample's own cosine is to exceed new "
                           "classes' cosines")
    negatives: int = Field(2, ge=1, description="K: how many new classes, those nearest to a sample, it is to exceed")
    eta: float = Field(1.0, gt=0, description="what the learned scale of cosines begins with")
    eta_lr: float = Field(0.1, gt=0, description="learning rate of that scale, whose size does not depend on the "
                          "network, in place of the recipe's")
    imprint: bool = Field(True, description="begin with the mean features of a new class as its weights (the authors' "
                          "code)")
    last_relu: Literal["remove", "keep"] = Field("remove", description="the last ReLU before the head; without it "
                                                 "features have both signs")

    @property
    def fixed_outputs(self) -> Outputs:
        """Return `seen`: labels compete among all classes so far."""
        return "seen"


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lucir", "clbench_lucir.strategy:LUCIR",
                         "replays with a cosine head; keeps feature directions and class margins", LUCIROptions,
                         "Hou et al. 2019, CVPR (Learning a Unified Classifier Incrementally via Rebalancing)",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "head_decay": "learning"},
                         display_name="LUCIR ({capacity})", family="distillation"),)
