"""`dynamic-er`: dynamically expandable representation, DER (Yan et al. 2021, arXiv 2103.16788)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class DynamicEROptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `dynamic-er`."""

    auxiliary: Annotated[Scalar, SearchValues(0.3, 1.0, 3.0)] = Field(
        1.0, ge=0, description="lambda_a: weight of the auxiliary loss, which trains the new features to separate the "
        "task's classes from each other and from all old classes")
    align_weights: bool = Field(True, description="after each task, rescale the head's weights of new classes so that "
                                "their mean norm equals the mean norm of old classes (PyCIL)")

    fixed_outputs: ClassVar[Outputs] = "seen"  # labels compete among all classes so far


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("dynamic-er", "clbench_dynamic_er.strategy:DynamicER",
                         "replays, and adds a feature extractor per task; one head reads all of them",
                         DynamicEROptions,
                         "Yan et al. 2021, arXiv 2103.16788 (DER: Dynamically Expandable Representation)",
                         recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "steps", "milestones": [10 / 17, 12 / 17],
                                 "head_decay": "learning"},
                         budget={"epochs": 170, "batch_size": 128, "samples": 5000}, from_scratch=True,
                         display_name="Dynamic ER ({capacity})", family="parameter isolation"),)
