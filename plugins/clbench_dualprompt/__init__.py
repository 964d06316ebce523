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

    g_length: int = Field(5, ge=1, description="L_g: length of the prompt that all tasks share (G-Prompt): it adds "
                          "this many keys and as many values to a block's attention")
    g_blocks: int | None = Field(
        None, ge=0, description="number of transformer blocks with the shared prompt, from the first on; none: 2, or "
        "fewer in proportion (at least 1) if the network has fewer than 12 blocks")
    e_length: int = Field(20, ge=1, description="L_e: length of a task's own prompt (E-Prompt): it adds this many keys "
                          "and as many values to a block's attention")
    e_blocks: int | None = Field(
        None, ge=1, description="number of transformer blocks with a task's own prompt, after the blocks with the "
        "shared prompt; none: 3, or fewer in proportion (at least 1) if the network has fewer than 12 blocks")
    start: Literal["last", "new"] = Field("last", description="initial values of a task's own prompt. last: the "
                                          "trained prompt of the last task (the authors' code); new: random values")
    outputs: Outputs = Field("own", description=MEANING)
    pull: Scalar = Field(1.0, ge=0, description="lambda: weight of the loss that pulls a task's key toward the "
                         "features of its samples")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("dualprompt", "clbench_dualprompt.strategy:DualPrompt",
                         "adds a shared prompt and a prompt per task to a frozen vision transformer",
                         DualPromptOptions,
                         "Wang et al. 2022, arXiv 2204.04799", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 0.005, "lr_per": 256, "max_grad_norm": 1.0},
                         budget={"epochs": 50, "batch_size": 192, "samples": 2400},  # ImageNet-R, 24 on 8 devices
                         parts_per_task=True,
                         display_name="DualPrompt", family="adapters and prompts"),)
