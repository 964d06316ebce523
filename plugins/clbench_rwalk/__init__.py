"""`rwalk`: Riemannian walk (Chaudhry et al. 2018, arXiv 1801.10112)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class RWalkOptions(OutputsOptions):
    """Options of `rwalk`; the defaults are those of the first author's code for permuted MNIST."""

    strength: Annotated[Scalar, SearchValues(0.1, 1.0, 10.0, 100.0, 1000.0)] = Field(
        1.0, ge=0, description="lambda: weight of the penalty lambda sum (F + s) (theta - theta*)^2, with Fisher "
        "information F and path scores s")
    alpha: float = Field(0.9, gt=0, le=1, description="weight of the newest squared gradient in the moving average F")
    interval: int = Field(10, ge=1, description="number of steps after which the decrease of the loss is divided by "
                          "the distance covered and added to the path scores")
    damping: float = Field(1e-3, gt=0, description="epsilon: keeps the scores of weights that hardly move finite")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("rwalk", "clbench_rwalk.strategy:RWalk",
                         "penalizes parameter changes by Fisher information plus path scores",
                         RWalkOptions, "Chaudhry et al. 2018, arXiv 1801.10112", display_name="RWalk",
                         recipe={"optimizer": "sgd", "lr": 0.1},
                         budget={"epochs": 1, "batch_size": 10, "samples": 55000}, from_scratch=True,  # Permuted MNIST
                         family="regularization"),)
