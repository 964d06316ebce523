"""`mir`: maximally interfered retrieval (Aljundi et al. 2019, arXiv 1908.04742)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from clbench_er import ReplayOptions
from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class MIROptions(OutputsOptions, ReplayOptions):
    """Options of `mir`."""

    update: Literal["step", "task"] = Field("task", description="when samples are offered to the buffer. step: as soon "
                                            "as they are trained on; task: all samples of a task after the task, so "
                                            "that samples of the current task are not replayed")
    replayed: int | None = Field(None, ge=1, description="number of samples replayed in each step; none: as many as "
                                 "new samples")
    candidates: int = Field(5, ge=1, description="number of candidates drawn from the buffer for each replayed sample "
                            "(fewer if the buffer has fewer)")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("mir", "clbench_mir.strategy:MIR",
                         "replays the stored samples whose loss the next step would raise most", MIROptions,
                         "Aljundi et al. 2019, arXiv 1908.04742", task_free=True, display_name="MIR ({capacity})",
                         family="replay"),)
