"""`fetril`: feature translation for exemplar-free incremental learning (Petit et al. 2023, arXiv 2211.13131)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions, StartOptions


class FeTrILOptions(OutputsOptions, StartOptions):
    """Options of `fetril`."""

    nearest: Literal["cosine", "euclidean"] = Field(
        "cosine", description="how the new class whose features replace an old class's features is chosen. cosine: "
        "largest cosine similarity of the class means; euclidean: smallest Euclidean distance")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("fetril", "clbench_fetril.strategy:FeTrIL",
                         "trains the head on new features and on copies shifted to old class means",
                         FeTrILOptions, "Petit et al. 2023, arXiv 2211.13131", display_name="FeTrIL",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "cosine", "schedule_by": "epoch", "head_decay": "learning"},
                         # of the first task, the only one that trains the network: 40 classes of CIFAR-100 in PyCIL
                         budget={"epochs": 200, "batch_size": 128, "samples": 20000}, from_scratch=True,
                         family="other"),)
