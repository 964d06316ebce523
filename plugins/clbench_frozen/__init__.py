"""`frozen`: a frozen base and a head per task (linear probing), what adapters are measured against from below."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import BaseOptions


class FrozenOptions(BaseOptions):
    """Options of `frozen`."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy, a bound: lora at rank 0."""
    return (StrategyInfo("frozen", "clbench_frozen.strategy:Frozen",
                         "trains only a head for each task, on the frozen backbone (linear probe)",
                         FrozenOptions, reference=True, layer_rows=(("frozen", "base=pretrained"),),
                         parts_per_task=True, display_name="Linear probe", family="references"),)
