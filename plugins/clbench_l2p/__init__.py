"""`l2p`: learning to prompt (Wang et al. 2022, arXiv 2112.08654); `s-iprompts`: prompts of each domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from clbench import OnlyWith, Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, BaseOptions, Infer, OutputsOptions, StartOptions


class L2POptions(OutputsOptions, StartOptions):
    """Options of `l2p`; the defaults are the paper's for Split-CIFAR-100."""

    pool: int = Field(10, ge=1, description="M: number of prompts in the pool")
    length: int = Field(5, ge=1, description="L_p: number of tokens per prompt")
    top: int = Field(5, ge=1, description="N: number of prompts selected for each sample, by the similarity of their "
                     "keys to its features")
    outputs: Outputs = Field("own", description=MEANING)
    pull: Scalar = Field(0.5, ge=0, description="lambda: weight of the loss that pulls selected keys toward the "
                         "features of their samples")

    @model_validator(mode="after")
    def _enough(self) -> L2POptions:
        """Raise an error if more prompts are to be chosen than there are."""
        if self.top > self.pool:
            raise ValueError(f"top = {self.top} prompts cannot be chosen from a pool of {self.pool}")
        return self


class SIPromptsOptions(BaseOptions):
    """Options of `s-iprompts`; the defaults are those of the authors' code."""

    length: int = Field(10, ge=1, description="number of tokens in each task's prompt")
    clusters: Annotated[int, OnlyWith("infer", "prototype")] = Field(
        5, ge=1, description="K: number of k-means centroids of each task's features")
    distance: Annotated[Literal["l1", "l2"], OnlyWith("infer", "prototype")] = Field(
        "l1", description="distance to a centroid. l1: sum of absolute differences (the authors' code); l2: Euclidean "
        "distance, as in k-means")
    infer: Infer = Field(
        "prototype", description="how the task of a test sample is inferred if its ID is not given. prototype: the "
        "learned task with the nearest centroid; entropy: the task whose head has the lowest entropy; max-logit: the "
        "task with the largest logit; gaussian: the task of the most likely class, with classes modeled as Gaussians "
        "that share a covariance matrix")
    infer_normalize: bool = Field(True, description="scale shared features, but not the centroids, to length 1 (infer "
                                  "= prototype or gaussian)")

    @model_validator(mode="after")
    def _is_used(self) -> SIPromptsOptions:
        """Refuse to scale features that nothing reads; by default they are scaled only if something reads them."""
        if "infer_normalize" not in self.model_fields_set and not self.from_features:
            object.__setattr__(self, "infer_normalize", False)
        super()._is_used()  # type: ignore[operator]  # pydantic leaves a method that can be called
        return self


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (StrategyInfo("l2p", "clbench_l2p.strategy:L2P",
                         "selects prompts for each sample from a pool, in a frozen vision transformer", L2POptions,
                         "Wang et al. 2022, arXiv 2112.08654", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 0.03, "lr_per": 256, "max_grad_norm": 1.0},
                         budget={"epochs": 5, "batch_size": 128, "samples": 5000}, task_free=True,
                         display_name="L2P", family="adapters and prompts"),
            StrategyInfo("s-iprompts", "clbench_l2p.siprompts:SIPrompts",
                         "trains a prompt and a head per task; infers the task by nearest centroid",
                         SIPromptsOptions, "Wang et al. 2022, arXiv 2207.12819", check_model="vit",
                         recipe={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 2e-4,
                                 "schedule": "cosine", "schedule_by": "epoch"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 15000},  # CORe50
                         parts_per_task=True, display_name="S-iPrompts", family="adapters and prompts"))
