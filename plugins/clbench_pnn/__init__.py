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

    start: Literal["random", "base"] = Field("random", description="initial weights of later columns. random: drawn at "
                                             "random as in the paper, even with --weights; base: a stored copy of "
                                             "the first column's initial weights (with --weights, the pretrained ones)")
    reduction: int = Field(1, ge=1, description="factor by which lateral adapters are narrower than the column's "
                           "layer: they have width / reduction units, at least one. The paper uses 1")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("pnn", "clbench_pnn.strategy:PNN",
                         "adds a network column per task, with lateral connections from the old ones",
                         PNNOptions, paper="Rusu et al. 2016, arXiv 1606.04671", parts_per_task=True,
                         display_name="PNN", family="parameter isolation"),)
