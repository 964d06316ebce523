"""`joint`: at task t, training on all data of tasks <= t, the upper reference."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class JointOptions(OutputsOptions):
    """Options of `joint`; the samples of earlier tasks count as replayed."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("joint", "clbench_joint.strategy:Joint",
                         "trains on the data of all tasks so far, which it stores (upper bound)", JointOptions,
                         reference=True, display_name="Joint training", family="references",
                         objectives=("classification", "causal-lm", "regression")),)
