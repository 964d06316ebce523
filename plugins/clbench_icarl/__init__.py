"""`icarl`: incremental classifier and representation learning (Rebuffi et al. 2017, arXiv 1611.07725)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class ICaRLOptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `icarl`."""

    LATER: ClassVar[tuple[str, ...]] = ("temperature",)

    temperature: Scalar = Field(1.0, gt=0, description="T: divisor of the old network's outputs before the sigmoid "
                                "turns them into targets; 1 in the paper, 2 in van de Ven's code")

    fixed_outputs: ClassVar[Outputs] = "seen"  # each output of a class so far has a target of its own


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("icarl", "clbench_icarl.strategy:ICaRL",
                         "replays and distills; classifies by the nearest mean of stored exemplars",
                         ICaRLOptions, "Rebuffi et al. 2017, arXiv 1611.07725", display_name="iCaRL ({capacity})",
                         family="distillation"),)
