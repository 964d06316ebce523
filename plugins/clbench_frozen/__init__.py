"""`frozen`: a head per task on a frozen backbone (linear probing), a lower reference for adapters."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import BaseOptions


class FrozenOptions(BaseOptions):
    """Options of `frozen`."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy, a reference: it is `lora` at rank 0."""
    return (StrategyInfo("frozen", "clbench_frozen.strategy:Frozen",
                         "trains only a head for each task, on the frozen backbone (linear probe)",
                         FrozenOptions, reference=True, layer_rows=(("frozen", "base=pretrained"),),
                         parts_per_task=True, display_name="Linear probe", family="references"),)
