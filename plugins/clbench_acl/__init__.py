"""`acl`: adversarial continual learning (Ebrahimi et al. 2020, arXiv 2003.09553)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class ACLOptions(InferOptions):
    """Options of `acl`; the weights are the authors' for Split-CIFAR-100.

    Theirs for Split-MNIST have no orthogonality.
    """

    adversarial: Scalar = Field(0.05, ge=0, description="factor of the task discriminator's gradient, which enters the "
                                "shared module with reversed sign")
    orthogonality: Scalar = Field(0.1, ge=0, description="weight of the loss that makes private features orthogonal to "
                                  "shared features")
    private_width: int = Field(64, ge=1, description="number of features that each task's private module computes")
    memory: int = Field(0, ge=0, description="buffer size per task: stored samples are replayed, so that the "
                        "discriminator sees all tasks; the paper stores samples on miniImageNet only")
    infer: Literal["entropy", "max-logit"] = Field(
        "entropy", description="how the task of a test sample is inferred if its ID is not given. entropy: the learned "
        "task whose head has the lowest entropy; max-logit: the learned task with the largest logit")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("acl", "clbench_acl.strategy:ACL",
                         "trains shared features adversarially, and private features for each task",
                         ACLOptions, "Ebrahimi et al. 2020, arXiv 2003.09553",
                         recipe={"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01},
                         parts_per_task=True, display_name="ACL", family="parameter isolation"),)
