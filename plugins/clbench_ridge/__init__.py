"""`ridge`: an analytic ridge classifier on the features of a frozen network, with which heads are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from clbench_prototypes import AdaptOptions
from pydantic import Field

from clbench import SearchValues, StrategyInfo, hookimpl


class RidgeOptions(AdaptOptions):
    """Options of `ridge`."""

    strength: Annotated[float, SearchValues(1.0, 1e2, 1e4, 1e6)] = Field(
        1.0, gt=0, description="lambda: strength of the ridge penalty, as alpha of scikit-learn's RidgeClassifier; it "
        "is added to the diagonal of the features' centered second moment (a sum over samples)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("ridge", "clbench_ridge.strategy:Ridge",
                         "fits ridge regression of one-hot labels on frozen features",
                         RidgeOptions, "Hoerl & Kennard 1970, Technometrics 12(1)", task_free=True,
                         display_name="Ridge", family="analytic classifiers"),)
