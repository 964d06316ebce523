"""`mas`: memory aware synapses (Aljundi et al. 2018, arXiv 1711.09601)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class MASOptions(OutputsOptions):
    """Options of `mas`."""

    LATER: ClassVar[tuple[str, ...]] = ("batch",)

    strength: Annotated[Scalar, SearchValues(0.01, 0.1, 1.0, 10.0, 100.0)] = Field(
        1.0, ge=0, description="lambda: weight of the penalty lambda sum Omega (theta - theta*)^2, with importance "
        "Omega")
    samples: int | None = Field(None, ge=1, description="number of samples per task for the importance; none: all")
    batch: int = Field(1, ge=1, description="number of samples whose gradients are averaged before the magnitude is "
                       "taken: 1 as in the paper, a batch in reference codes (128 in Hsu et al.)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("mas", "clbench_mas.strategy:MAS",
                         "penalizes changes of parameters, weighted by their effect on the outputs", MASOptions,
                         "Aljundi et al. 2018, arXiv 1711.09601", display_name="MAS", family="regularization"),)
