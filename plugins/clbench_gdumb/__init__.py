"""`gdumb`: a greedy memory, and a network trained on it from scratch (Prabhu et al. 2020, ECCV)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import FixedOutputsOptions


class GDumbOptions(FixedOutputsOptions):
    """Options of `gdumb`."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all classes together")

    fixed_outputs: ClassVar[Outputs] = "seen"  # there are no new samples, only a memory of all classes so far


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("gdumb", "clbench_gdumb.strategy:GDumb",
                         "trains from scratch after every task, on a class-balanced buffer alone",
                         GDumbOptions, "Prabhu et al. 2020, ECCV (drimpossible/GDumb)",
                         display_name="GDumb ({capacity})", family="replay"),)
