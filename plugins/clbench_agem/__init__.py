"""`a-gem`: averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions, QuotaOptions


class AGEMOptions(OutputsOptions, QuotaOptions):
    """Options of `a-gem`."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all tasks together")
    balance: Literal["reservoir", "class"] = Field(
        "class", description="which samples the buffer keeps. reservoir: every sample of the stream with equal "
        "probability; class: equally many samples of each class")
    samples: int = Field(256, ge=1, description="number of stored samples drawn in each step to compute the reference "
                         "gradient")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("a-gem", "clbench_agem.strategy:AGEM",
                         "projects gradients so that the mean loss on stored samples does not rise", AGEMOptions,
                         "Chaudhry et al. 2019, arXiv 1812.00420", task_free=True, display_name="A-GEM ({capacity})",
                         family="replay",
                         objectives=("classification", "causal-lm", "regression")),)
