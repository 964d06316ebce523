"""`podnet`: pooled outputs distillation (Douillard et al. 2020, arXiv 2004.13513)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class PODNetOptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `podnet`; the defaults are those of the authors' code for CIFAR-100."""

    spatial: Annotated[Scalar, SearchValues(1.0, 3.0, 8.0)] = Field(
        3.0, ge=0, description="lambda_c: weight of the distillation of feature maps, before it is adapted to the "
        "numbers of classes (8 on ImageNet)")
    flat: Scalar = Field(1.0, ge=0, description="lambda_f: that of the distillation of features (10 on ImageNet)")
    proxies: int = Field(10, ge=1, description="K: weight vectors of each class")
    nca: Literal["code", "paper"] = Field(
        "code", description="what competes with a label in the loss. paper: the other classes, with a margin and not "
        "below 0; code: also the largest similarity, without a margin")
    margin: Scalar = Field(0.6, ge=0, description="delta: margin of nca = paper")
    eta: float = Field(1.0, gt=0, description="what the learned scale of similarities begins with")
    eta_lr: float = Field(0.1, gt=0, description="learning rate of that scale, whose size does not depend on the "
                          "network, in place of the recipe's")
    imprint: bool = Field(True, description="begin with the centers of clusters of a new class's features as its "
                          "weights (the authors' code)")
    last_relu: Literal["remove", "keep"] = Field("remove", description="the last ReLU before the head; without it "
                                                 "features have both signs")
    finetune_steps: float = Field(0.1, ge=0, lt=1, description="share of a task's steps, from the second task on, that "
                                  "train the head alone on exemplars, equally many of each class")
    finetune_rate: float = Field(0.5, gt=0, description="what multiplies the recipe's learning rate in these steps")

    @property
    def fixed_outputs(self) -> Outputs:
        """Return `seen`: labels compete among all classes so far."""
        return "seen"


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("podnet", "clbench_podnet.strategy:PODNet",
                         "replays with several weights per class; distills pooled feature maps", PODNetOptions,
                         "Douillard et al. 2020, arXiv 2004.13513",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "cosine", "head_decay": "learning"},
                         budget={"epochs": 160, "batch_size": 128, "samples": 5000},
                         display_name="PODNet ({capacity})", family="distillation"),)
