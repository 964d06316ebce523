"""`ncm`, `slda`, `ranpac`: classifiers fitted in closed form on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.per_task_options import StartOptions


class NCMOptions(StartOptions):
    """Options of `ncm`."""

    normalize: bool = Field(False, description="scale features, and their means, to length 1, as iCaRL does")


class SLDAOptions(StartOptions):
    """Options of `slda`; the default is the paper's."""

    shrinkage: float = Field(1e-4, gt=0, le=1, description="epsilon: share of the identity in the covariance that is "
                             "inverted")


class RanPACOptions(StartOptions):
    """Options of `ranpac`."""

    projections: int | None = Field(None, ge=1, description="M: random features; none means the paper's 10000 for a "
                                    "network with 768 features or more, else 5 for each feature")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (
        StrategyInfo("ncm", "clbench_prototypes.ncm:NCM",
                     "base frozen; the nearest class mean of its features, no training after the first task",
                     NCMOptions, "Mensink et al. 2013, TPAMI 35(11); Janson et al. 2022, arXiv 2210.04428"),
        StrategyInfo("slda", "clbench_prototypes.slda:SLDA",
                     "base frozen; linear discriminant analysis of its features, with a running covariance",
                     SLDAOptions, "Hayes & Kanan 2020, arXiv 1909.01520"),
        StrategyInfo("ranpac", "clbench_prototypes.ranpac:RanPAC",
                     "base frozen; ridge regression on random nonlinear projections of its features", RanPACOptions,
                     "McDonnell et al. 2023, arXiv 2307.02251"),
    )
