"""`dualprompt`: prompts for all tasks and prompts of each task in attention (Wang et al. 2022, arXiv 2204.04799)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, OutputsOptions, StartOptions


class DualPromptOptions(OutputsOptions, StartOptions):
    """Options of `dualprompt`; the defaults are the paper's, which are the authors' for ImageNet-R."""

    g_length: int = Field(5, ge=1, description="L_g: keys that the prompt of all tasks adds to a block's attention, "
                          "and as many values")
    g_blocks: int | None = Field(None, ge=0, description="first transformer blocks with the prompt of all tasks; "
                                 "none: 2, in proportion (at least 1) in networks of fewer than 12 blocks")
    e_length: int = Field(20, ge=1, description="L_e: keys that a task's own prompt adds to a block's attention, and "
                          "as many values")
    e_blocks: int | None = Field(None, ge=1, description="transformer blocks after those with a task's own prompt; "
                                 "none: 3, in proportion (at least 1) in networks of fewer than 12 blocks")
    start: Literal["last", "new"] = Field("last", description="a task's own prompt starts as the last task's ended "
                                          "(last: the authors' code), or is drawn (new)")
    outputs: Outputs = Field("own", description=MEANING)
    pull: Scalar = Field(1.0, ge=0, description="lambda: weight of the loss that draws a task's key to its samples")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("dualprompt", "clbench_dualprompt.strategy:DualPrompt",
                         "adds prompts to a frozen vision transformer, shared ones and ones per task",
                         DualPromptOptions,
                         "Wang et al. 2022, arXiv 2204.04799", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 0.005, "lr_per": 256, "max_grad_norm": 1.0},
                         budget={"epochs": 50, "batch_size": 192, "samples": 2400},  # ImageNet-R, 24 on 8 devices
                         parts_per_task=True,
                         display_name="DualPrompt", family="adapters and prompts"),)
