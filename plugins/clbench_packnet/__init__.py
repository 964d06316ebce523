"""`packnet`: tasks packed into one network by pruning (Mallya & Lazebnik 2018, arXiv 1711.05769)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class PackNetOptions(InferOptions):
    """Options of `packnet`."""

    prune: float = Field(0.75, gt=0, lt=1, description="share of the weights trained by a task, in each layer, that is "
                         "pruned and becomes free for the next task (the paper: 0.5 and 0.75)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("packnet", "clbench_packnet.strategy:PackNet",
                         "trains free weights, keeps the largest for the task and prunes the others",
                         PackNetOptions, paper="Mallya & Lazebnik 2018, arXiv 1711.05769", parts_per_task=True,
                         display_name="PackNet", family="parameter isolation"),)
