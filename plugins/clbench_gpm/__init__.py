"""`gpm`: gradient projection memory (Saha et al. 2021, arXiv 2103.09762)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from clbench import SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, OutputsOptions


class GPMOptions(OutputsOptions):
    """Options of `gpm`; the default thresholds are those of the authors' CIFAR-100 runs."""

    outputs: Outputs = Field("own", description=MEANING)
    threshold: Annotated[float, SearchValues(0.9, 0.95, 0.97, 0.99)] = Field(
        0.97, gt=0, le=1, description="fraction of the energy (squared norm) of a layer's inputs that the stored "
        "subspace has to capture after the first task")
    increase: float = Field(0.003, ge=0, le=1, description="increase of the threshold with each task, up to a "
                            "threshold of 1")
    samples: int = Field(300, ge=1, description="number of random samples per task whose inputs to each layer extend "
                         "the subspace (the authors: 300 on permuted MNIST, at most 125 on CIFAR-100)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("gpm", "clbench_gpm.strategy:GPM",
                         "takes steps orthogonal to each layer's inputs in earlier tasks (for SGD)", GPMOptions,
                         "Saha et al. 2021, arXiv 2103.09762", display_name="GPM", family="regularization",
                         objectives=("classification", "causal-lm")),)
