"""`independent`: a fully fine-tuned copy of one starting network per task, which LoRA replaces."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import BaseOptions


class IndependentOptions(BaseOptions):
    """Options of `independent`; every copy starts from W."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy, a reference: it is `lora` at full rank."""
    return (StrategyInfo("independent", "clbench_independent.strategy:Independent",
                         "fine-tunes a full copy of the starting network for each task",
                         IndependentOptions, reference=True, load_model="clbench_independent.strategy:load_model",
                         parts_per_task=True, display_name="One model per task", family="references",
                         objectives=("classification", "causal-lm", "regression")),)
