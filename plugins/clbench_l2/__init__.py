"""`l2`: every parameter is pulled to its value after the last task (the L2 baseline of Kirkpatrick et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class L2Options(OutputsOptions):
    """Options of `l2`; the default is what Hsu et al. 2018 have for Split-MNIST, scenario `task`."""

    strength: Annotated[Scalar, SearchValues(1e-4, 1e-3, 1e-2, 1e-1, 1.0)] = Field(
        0.01, ge=0, description="weight of the penalty strength sum (theta - theta*)^2")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("l2", "clbench_l2.strategy:L2",
                         "penalizes changes of all parameters equally since the last task", L2Options,
                         "Kirkpatrick et al. 2017, arXiv 1612.00796 (their L2 baseline); Hsu et al. 2018, "
                         "arXiv 1810.12488", display_name="L2", family="regularization",
                         objectives=("classification", "causal-lm", "regression")),)
