"""`naive`: fine-tuning on one task after the other, the lower reference."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class NaiveOptions(OutputsOptions):
    """Options of `naive`."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy; the defaults of `Strategy` are fine-tuning."""
    return (StrategyInfo("naive", "clbench.strategy:Strategy",
                         "fine-tunes on one task after another, without preventing forgetting",
                         NaiveOptions, reference=True, baseline=True, task_free=True, display_name="Fine-tuning",
                         family="references",
                         objectives=("classification", "causal-lm", "regression")),)
