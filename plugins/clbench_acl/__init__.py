"""`acl`: adversarial continual learning (Ebrahimi et al. 2020, arXiv 2003.09553)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class ACLOptions(InferOptions):
    """Options of `acl`; the weights are the authors' for Split-MNIST and Split-CIFAR-100."""

    adversarial: Scalar = Field(0.05, ge=0, description="weight of the reversed gradient of the task discriminator")
    orthogonality: Scalar = Field(0.1, ge=0, description="weight of the loss between shared and private features")
    private_width: int = Field(64, ge=1, description="numbers that each task's private module gives")
    memory: int = Field(0, ge=0, description="samples kept of each task and replayed, so that the discriminator sees "
                        "all tasks; the paper has none but on miniImageNet")
    infer: Literal["entropy", "max-logit"] = Field(
        "entropy", description="without a task id: the learned task with the lowest entropy, or the largest logit")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("acl", "clbench_acl.strategy:ACL",
                         "adversarial continual learning: shared features, private ones per task",
                         ACLOptions, "Ebrahimi et al. 2020, arXiv 2003.09553",
                         recipe={"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01},
                         parts_per_task=True, display_name="ACL", family="parts per task"),)
