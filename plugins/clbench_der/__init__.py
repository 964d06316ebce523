"""`der`, `der++`: dark experience replay (Buzzega et al. 2020, arXiv 2004.07211)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class DEROptions(OutputsOptions):
    """Options of `der`; the default weight is what the authors chose for Split-CIFAR-10 with 200 samples."""

    capacity: int = Field(200, ge=1, description="buffer size: number of stored samples of all tasks together")
    alpha: Annotated[Scalar, SearchValues(0.1, 0.2, 0.5, 1.0)] = Field(
        0.3, ge=0, description="weight of the squared error between current and stored logits")


class DERPPOptions(DEROptions):
    """Options of `der++`; the default weights are what the authors chose for the same setting."""

    alpha: Annotated[Scalar, SearchValues(0.1, 0.5)] = Field(
        0.1, ge=0, description="weight of the squared error between current and stored logits")
    beta: Annotated[Scalar, SearchValues(0.5, 1.0)] = Field(
        0.5, ge=0, description="weight of the cross-entropy on a second batch of replayed samples")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare both strategies."""
    paper = "Buzzega et al. 2020, arXiv 2004.07211"
    return (StrategyInfo("der", "clbench_der.strategy:DER",
                         "replays stored samples with the logits they had when they were stored", DEROptions, paper,
                         task_free=True, display_name="DER ({capacity})", family="replay"),
            StrategyInfo("der++", "clbench_der.strategy:DERPP",
                         "replays stored samples with their stored logits and with their labels",
                         DERPPOptions, paper, task_free=True, display_name="DER++ ({capacity})", family="replay"))
