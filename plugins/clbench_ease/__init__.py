"""`ease`: expandable subspace ensemble (Zhou et al. 2024, arXiv 2403.12030); `lae` and `mos`: also with adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clbench import OnlyWith, Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import (
    ALIGN,
    MEANING,
    AlignOptions,
    FixedOutputsOptions,
    OutputsOptions,
    StartOptions,
)

Kind = Literal["bottleneck", "lora"]
Donors = Literal["later", "next"]

WIDTHS: dict[Kind, int] = {"bottleneck": 64, "lora": 4}
MOS_WIDTHS: dict[Kind, int] = {"bottleneck": 16, "lora": 4}
SCALES: dict[Kind, float] = {"bottleneck": 0.1, "lora": 1.0}


class EASEOptions(FixedOutputsOptions, StartOptions):
    """Options of `ease`; the defaults are those of its authors' code for Split-CIFAR-100."""

    adapter: Kind = Field(
        "bottleneck", description="kind of adapter that each task trains. bottleneck: bottlenecks parallel to the MLPs "
        "of a vision transformer (the paper); lora: low-rank adapters on all layers of any network, as in lora")
    width: int | None = Field(None, ge=1, description="hidden width of a bottleneck, or rank of a low-rank adapter; "
                              "none: 64, or 4 with adapter = lora")
    scale: float | None = Field(None, gt=0, description="factor of an adapter's output; none: 0.1, or 1 with adapter = "
                                "lora")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of a bottleneck's hidden units (lora: of the "
                           "adapters' inputs). Trials can be vectorized (trained together) only with dropout = 0")
    alpha: float = Field(0.1, ge=0, description="weight of the mean cosine similarity in the other tasks' subspaces; "
                         "the class's own subspace has weight 1")
    beta: float = Field(0.0, ge=0, description="weight of the cosine similarity in the features of the network without "
                        "adapters; 0: these features are not used")
    donors: Donors = Field(
        "later", description="classes from which the missing prototypes of old classes in a task's subspace are "
        "combined. later: the classes of this task and of all later tasks (the authors' code); next: the classes of "
        "this task only (the paper, as we read it)")

    fixed_outputs: ClassVar[Outputs] = "own"  # each adapter is trained on its task's classes


class LAEOptions(OutputsOptions, StartOptions):
    """Options of `lae`; the defaults are those of its authors' code for Split-CIFAR-100."""

    adapter: Kind = Field(
        "lora", description="kind of adapter. lora: low-rank adapters on key and value layers, or on all layers if a "
        "network has none; bottleneck: bottlenecks parallel to the MLPs of a vision transformer")
    width: int = Field(5, ge=1, description="rank of a low-rank adapter, or hidden width of a bottleneck")
    scale: float = Field(1.0, gt=0, description="factor of an adapter's output")
    blocks: int = Field(5, ge=1, description="number of transformer blocks with adapters, from the first on; "
                        "with adapter = lora, networks without a class token have no such limit")
    decay: Annotated[float, SearchValues(0.99, 0.999, 0.9999)] = Field(
        0.9999, ge=0, lt=1, description="decay, per step, of the moving average that forms the offline adapter")
    freeze: float = Field(0.6, ge=0, lt=1, description="fraction of a task's steps, at the start of every task but the "
                          "first, in which only the head is trained")
    outputs: Outputs = Field("own", description=MEANING)


class MOSOptions(OutputsOptions, AlignOptions, StartOptions):
    """Options of `mos`; the defaults are those of its authors' code for Split-CIFAR-100."""

    adapter: Kind = Field("bottleneck", description=EASEOptions.model_fields["adapter"].description)
    width: int | None = Field(None, ge=1, description="hidden width of a bottleneck, or rank of a low-rank adapter; "
                              "none: 16, or 4 with adapter = lora")
    scale: float | None = Field(None, gt=0, description=EASEOptions.model_fields["scale"].description)
    dropout: float = Field(0.1, ge=0, lt=1, description=EASEOptions.model_fields["dropout"].description)
    merge: float = Field(0.1, ge=0, lt=1, description="alpha: after each step, the task's adapters move this fraction "
                         "of the way to the mean of earlier tasks' adapters")
    contrast: Scalar = Field(0.1, ge=0, description="weight of the contrastive loss, which separates the features of "
                             "samples from each other and from the means of earlier classes")
    head_rate: float = Field(0.1, gt=0, description="factor of the configured learning rate for the head")
    moves: int = Field(3, ge=0, description="how often, at most, a test sample may switch to the adapters of its "
                       "predicted class's task (scenario class)")
    ensemble: bool = Field(True, description="average the head's probabilities with probabilities from cosines to "
                           "class means (first task's adapters)")
    outputs: Outputs = Field("own", description=MEANING)
    align: bool = Field(True, description=ALIGN)
    align_epochs: Annotated[int, OnlyWith("align")] = Field(
        30, ge=1, description=AlignOptions.model_fields["align_epochs"].description)
    align_samples: Annotated[int, OnlyWith("align")] = Field(
        240, ge=1, description=AlignOptions.model_fields["align_samples"].description)
    align_lr: Annotated[float, OnlyWith("align")] = Field(
        0.005, gt=0, description=AlignOptions.model_fields["align_lr"].description)
    align_temperature: Annotated[float | None, OnlyWith("align")] = Field(
        None, gt=0, description=AlignOptions.model_fields["align_temperature"].description)
    align_shrink: Annotated[float, OnlyWith("align")] = Field(
        1.0, gt=0, le=1, description=AlignOptions.model_fields["align_shrink"].description)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (StrategyInfo("ease", "clbench_ease.strategy:EASE",
                         "trains adapters per task; classifies by prototypes in all their features", EASEOptions,
                         "Zhou et al. 2024, arXiv 2403.12030",
                         check_model="vit", recipe={"optimizer": "sgd", "lr": 0.025, "momentum": 0.9,
                                                    "weight_decay": 5e-4, "schedule": "cosine", "schedule_by": "epoch"},
                         budget={"epochs": 20, "batch_size": 48, "samples": 2500},
                         parts_per_task=True, display_name="EASE", family="adapters and prompts"),
            StrategyInfo("lae", "clbench_ease.lae:LAE",
                         "trains one adapter from task to task; predicts with it and its moving average",
                         LAEOptions, "Gao et al. 2023, arXiv 2303.10070",
                         recipe={"optimizer": "adam", "lr": 0.0028125},
                         budget={"epochs": 5, "batch_size": 24, "samples": 5000},
                         display_name="LAE", family="adapters and prompts"),
            StrategyInfo("mos", "clbench_ease.mos:MOS",
                         "trains merged adapters per task, chosen by class means and predictions",
                         MOSOptions, "Sun et al. 2025, arXiv 2412.09441", check_model="vit",
                         recipe={"optimizer": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4,
                                 "schedule": "cosine", "schedule_by": "epoch"},
                         budget={"epochs": 20, "batch_size": 48, "samples": 2500},
                         parts_per_task=True, display_name="MOS", family="adapters and prompts"))
