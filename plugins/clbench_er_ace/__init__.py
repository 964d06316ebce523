"""`er-ace`: experience replay with asymmetric cross-entropy (Caccia et al. 2022, arXiv 2104.05025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from clbench_er import ReplayOptions
from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import FixedOutputsOptions


class ERACEOptions(FixedOutputsOptions, ReplayOptions):
    """Options of `er-ace`."""

    LATER: ClassVar[tuple[str, ...]] = ("head",)

    head: Literal["linear", "cosine"] = Field(
        "linear", description="kind of head. linear: the model's linear head; cosine: 10 times the cosine similarity "
        "of features and weights, without bias, as in the authors' code")

    fixed_outputs: ClassVar[Outputs] = "own"  # new samples compete among the classes of their batch


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("er-ace", "clbench_er_ace.strategy:ERACE",
                         "replays stored samples; new ones do not lower the logits of old classes", ERACEOptions,
                         "Caccia et al. 2022, arXiv 2104.05025", task_free=True, display_name="ER-ACE ({capacity})",
                         family="replay"),)
