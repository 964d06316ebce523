"""`ewc`: elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) and its online form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from clbench import OnlyWith, Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class EWCOptions(OutputsOptions):
    """Options of `ewc`.

    The default strength is that of van de Ven's code (its version of 2022, with the exact Fisher) for Split-MNIST,
    scenario `task`; it was not tuned here. The best value differs by orders of magnitude between benchmarks and
    scenarios.
    """

    strength: Annotated[Scalar, SearchValues(1e1, 1e3, 1e5, 1e7, 1e9)] = Field(
        1e5, ge=0, description="lambda: weight of the penalty strength/2 sum F (theta - theta*)^2")
    mode: Literal["separate", "online"] = Field(
        "separate", description="separate: one quadratic penalty per task (Kirkpatrick 2017); online: one running "
        "penalty (Schwarz 2018)")
    gamma: Annotated[Scalar, OnlyWith("mode", "online")] = Field(
        1.0, ge=0, le=1, description="factor of the old Fisher information at each new task (mode=online)")
    fisher: Literal["exact", "sampled", "empirical", "predicted"] = Field(
        "exact", description="labels for the Fisher information. exact: all labels, weighted by the model's "
        "probabilities; sampled: one label drawn by these probabilities; empirical: the true label; predicted: the "
        "most probable label")
    fisher_samples: int | None = Field(None, ge=1, description="samples per task to estimate the Fisher information; "
                                       "none: all")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("ewc", "clbench_ewc.strategy:EWC",
                         "penalizes changes of parameters, each weighted by its Fisher information", EWCOptions,
                         "Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al. 2018, arXiv 1805.06370",
                         display_name="EWC", family="regularization",
                         objectives=("classification", "causal-lm", "regression")),)
