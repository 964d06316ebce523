"""`podnet`: pooled outputs distillation (Douillard et al. 2020, arXiv 2004.13513)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clbench import OnlyWith, Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class PODNetOptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `podnet`; the defaults are those of the authors' code for CIFAR-100."""

    spatial: Annotated[Scalar, SearchValues(1.0, 3.0, 8.0)] = Field(
        3.0, ge=0, description="lambda_c: weight of the distillation of feature maps; it is multiplied by sqrt(classes "
        "so far / new classes) (8 on ImageNet)")
    flat: Scalar = Field(1.0, ge=0, description="lambda_f: weight of the distillation of features; it is multiplied by "
                         "the same factor (10 on ImageNet)")
    proxies: int = Field(10, ge=1, description="K: number of weight vectors per class")
    nca: Literal["code", "paper"] = Field("code", description="outputs that compete with the label in the NCA loss. "
                                          "paper: the other classes, with a margin, and the loss is clipped at 0; "
                                          "code: the other classes and the largest similarity, without a margin (the "
                                          "authors' code)")
    margin: Annotated[Scalar, OnlyWith("nca", "paper")] = Field(
        0.6, ge=0, description="delta: margin of the NCA loss with nca = paper")
    eta: float = Field(1.0, gt=0, description="initial value of the learned scale eta of the similarities")
    eta_lr: float = Field(0.1, gt=0, description="learning rate of eta, in place of the configured learning rate, "
                          "because the size of eta does not depend on the network")
    imprint: bool = Field(True, description="initialize the weights of a new class with the centers of clusters of its "
                          "features (the authors' code)")
    last_relu: Literal["remove", "keep"] = Field("remove", description="the last ReLU before the head. remove: "
                                                 "features have both signs; keep: features are not negative")
    finetune_steps: float = Field(0.1, ge=0, lt=1, description="share of a task's steps, from the second task on, that "
                                  "train only the head, on equally many exemplars of each class")
    finetune_rate: Annotated[float, OnlyWith("finetune_steps")] = Field(
        0.5, gt=0, description="learning rate during finetune_steps, as a multiple of the configured learning rate")

    fixed_outputs: ClassVar[Outputs] = "seen"  # labels compete among all classes so far


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("podnet", "clbench_podnet.strategy:PODNet",
                         "replays with several weight vectors per class; distills pooled feature maps", PODNetOptions,
                         "Douillard et al. 2020, arXiv 2004.13513",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "cosine", "schedule_by": "epoch", "head_decay": "learning"},
                         budget={"epochs": 160, "batch_size": 128, "samples": 5000}, from_scratch=True,
                         display_name="PODNet ({capacity})", family="distillation"),)
