"""`si`: synaptic intelligence (Zenke, Poole & Ganguli 2017, arXiv 1703.04200)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class SIOptions(OutputsOptions):
    """Options of `si`; the defaults are those of the paper's Split-MNIST."""

    strength: Annotated[Scalar, SearchValues(0.1, 1.0, 10.0, 100.0, 1000.0)] = Field(
        1.0, ge=0, description="c: weight of the penalty c sum Omega (theta - theta*)^2, with importance Omega")
    LATER: ClassVar[tuple[str, ...]] = ("gradient",)

    damping: Scalar = Field(1e-3, gt=0, description="xi: keeps the importance of weights that hardly move finite")
    gradient: Literal["loss", "total"] = Field(
        "loss", description="gradient that is summed along the path of the parameters. loss: the gradient of the "
        "cross-entropy alone, with importance clipped at 0 (the authors' code); total: the gradient of the loss with "
        "the penalty, without clipping, so importance may be negative (van de Ven's code)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("si", "clbench_si.strategy:SI",
                         "penalizes changes of parameters, weighted by how much each lowered the loss", SIOptions,
                         "Zenke et al. 2017, arXiv 1703.04200", display_name="SI", family="regularization",
                         objectives=("classification", "causal-lm", "regression")),)
