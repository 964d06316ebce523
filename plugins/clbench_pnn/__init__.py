"""`pnn`: progressive neural networks, a new column per task with lateral adapters from all earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class PNNOptions(InferOptions):
    """Options of `pnn`."""

    LATER: ClassVar[tuple[str, ...]] = ("start",)

    start: Literal["random", "base"] = Field("random", description="later columns start from random weights (the "
                                             "paper's), or from a kept copy of what the first one started from: those "
                                             "of --weights, which random columns do without")
    reduction: int = Field(1, ge=1, description="lateral adapters reduce earlier columns to the width of one column's "
                           "layer divided by this (1: the paper's); at least one unit")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("pnn", "clbench_pnn.strategy:PNN",
                         "adds a network column per task, with lateral connections from the old ones",
                         PNNOptions, paper="Rusu et al. 2016, arXiv 1606.04671", parts_per_task=True,
                         display_name="PNN", family="parts per task"),)
