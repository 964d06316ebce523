"""`coda-prompt`: a weighted sum of prompt components in attention (Smith et al. 2023, arXiv 2211.13218)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, OutputsOptions, StartOptions


class CodaPromptOptions(OutputsOptions, StartOptions):
    """Options of `coda-prompt`; the defaults are the paper's, except `ortho`, which is that of its code."""

    components: int = Field(100, ge=1, description="M: number of prompt components of all T tasks together; each task "
                            "adds M / T components, rounded down")
    length: int = Field(8, ge=2, multiple_of=2, description="L_p: tokens per component; the first half is prepended to "
                        "the keys of a block's attention, the second half to its values")
    blocks: int | None = Field(None, ge=1, description="number of transformer blocks with prompts, from the first on; "
                               "none: 5, or fewer in proportion (at least 1) if the network has fewer than 12 blocks")
    ortho: Scalar = Field(0.0, ge=0, description="lambda: weight of the loss that keeps components orthogonal; 0: as "
                          "in the authors' code, whose components start orthogonal; 0.1: as in the paper")
    outputs: Outputs = Field("own", description=MEANING)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("coda-prompt", "clbench_coda_prompt.strategy:CodaPrompt",
                         "adds weighted sums of prompt components to a frozen vision transformer", CodaPromptOptions,
                         "Smith et al. 2023, arXiv 2211.13218", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 1e-3, "schedule": "quarter-cosine", "schedule_by": "epoch"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 5000},
                         parts_per_task=True,
                         display_name="CODA-Prompt", family="adapters and prompts"),)
