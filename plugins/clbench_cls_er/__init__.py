"""`cls-er`: complementary learning systems with experience replay (Arani et al. 2022, arXiv 2201.12604)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class CLSEROptions(OutputsOptions):
    """Options of `cls-er`; the defaults are the authors' for Split-CIFAR-10 with 200 samples."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all tasks together")
    share: float = Field(1.0, gt=0, description="number of replayed samples per new sample, as in er")
    weight: Annotated[Scalar, SearchValues(0.1, 0.15, 0.5, 1.0, 2.0)] = Field(
        0.15, ge=0, description="lambda: weight of the squared error between the network's logits and an averaged "
        "model's logits on replayed samples")
    stable_rate: float = Field(0.1, gt=0, le=1, description="r_S: probability that a step updates the stable model")
    stable_decay: float = Field(0.999, ge=0, lt=1,
                                description="alpha_S: decay of the moving average of weights in the stable model")
    plastic_rate: float = Field(0.3, gt=0, le=1, description="r_P: probability that a step updates the plastic model")
    plastic_decay: float = Field(0.999, ge=0, lt=1,
                                 description="alpha_P: decay of the moving average of weights in the plastic model")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("cls-er", "clbench_cls_er.strategy:CLSER",
                         "replays, distills two weight averages, predicts with the slower one",
                         CLSEROptions, "Arani et al. 2022, arXiv 2201.12604", task_free=True,
                         display_name="CLS-ER ({capacity})", recipe={"optimizer": "sgd", "lr": 0.1},
                         family="replay"),)
