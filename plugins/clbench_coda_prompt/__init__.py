"""`coda-prompt`: a weighted sum of prompt components in attention (Smith et al. 2023, arXiv 2211.13218)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, OutputsOptions, StartOptions


class CodaPromptOptions(OutputsOptions, StartOptions):
    """Options of `coda-prompt`; the defaults are the paper's, except `ortho`, which is that of its code."""

    components: int = Field(100, ge=1, description="M: prompt components of all tasks together; each of T tasks adds "
                            "the whole part of M / T")
    length: int = Field(8, ge=2, multiple_of=2, description="L_p: tokens of a component; the first half are keys, the "
                        "second values of a block's attention")
    blocks: int | None = Field(None, ge=1, description="first transformer blocks with prompts; none: 5, in proportion "
                               "(at least 1) in networks of fewer than 12 blocks")
    ortho: Scalar = Field(0.0, ge=0, description="lambda: weight of the loss that keeps components orthogonal; 0: the "
                          "authors' code, where they start so; 0.1: the paper")
    outputs: Outputs = Field("own", description=MEANING)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("coda-prompt", "clbench_coda_prompt.strategy:CodaPrompt",
                         "adds prompts to a frozen vision transformer: a weighted sum of components", CodaPromptOptions,
                         "Smith et al. 2023, arXiv 2211.13218", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 1e-3, "schedule": "quarter-cosine", "schedule_by": "epoch"},
                         budget={"epochs": 20, "batch_size": 128, "samples": 5000},
                         parts_per_task=True,
                         display_name="CODA-Prompt", family="adapters and prompts"),)
