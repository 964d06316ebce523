"""`hat`: hard attention to the task (Serra et al. 2018, arXiv 1801.01423)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class HATOptions(InferOptions):
    """Options of `hat`; the defaults are the authors'."""

    strength: Annotated[Scalar, SearchValues(0.1, 0.25, 0.75, 2.5)] = Field(
        0.75, ge=0, description="c: weight of the penalty on the use of units that no earlier task uses")
    s_max: float = Field(400.0, gt=1, description="slope of the masks' sigmoids at the end of each epoch and at test "
                         "time")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("hat", "clbench_hat.strategy:HAT",
                         "learns a nearly binary mask of units per task; weights in use stay fixed", HATOptions,
                         paper="Serra et al. 2018, arXiv 1801.01423", parts_per_task=True, display_name="HAT",
                         family="parameter isolation"),)
