"""`acil`: analytic class-incremental learning (Zhuang et al. 2022, arXiv 2205.14922), and DS-AL as an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from clbench_prototypes import AdaptOptions
from pydantic import Field

from clbench import OnlyWith, SearchValues, StrategyInfo, hookimpl


class ACILOptions(AdaptOptions):
    """Options of `acil`; `compensation = 0.6` is DS-AL with the authors' ratio for CIFAR-100."""

    projections: int | None = Field(
        None, ge=1, description="M: number of random features; none: 8192 (the authors' value) if the network has 768 "
        "features or more, otherwise 5 per feature, as in ranpac")
    ridge: Annotated[float, SearchValues(1e-2, 1e-1, 1.0, 1e1, 1e2)] = Field(
        0.1, gt=0, description="gamma: L2 penalty of the ridge regression")
    compensation: float = Field(
        0.0, ge=0, description="C: weight of DS-AL's second regression, which fits the errors of the first; 0: no "
        "second regression (ACIL)")
    compensation_ridge: Annotated[float, OnlyWith("compensation")] = Field(
        0.1, gt=0, description="gamma: L2 penalty of the second regression")

    @property
    def needs_boundaries(self) -> str:
        """Return why boundaries are needed: the second regression is fitted to whole tasks."""
        return ("compensation fits the rest of each task" if self.compensation else super().needs_boundaries)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("acil", "clbench_acil.strategy:ACIL",
                         "updates a ridge regression on random features recursively", ACILOptions,
                         "Zhuang et al. 2022, arXiv 2205.14922; DS-AL: Zhuang et al. 2024, AAAI 38(15)",
                         task_free=True, display_name="ACIL", family="analytic classifiers"),)
