"""`osf`: orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from clbench_lora import LowRankOptions
from pydantic import Field, field_validator

from clbench import SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions, StartOptions


class OSFOptions(OutputsOptions, StartOptions):
    """Options of `osf`; the default share is PEFT's."""

    LATER: ClassVar[tuple[str, ...]] = ("convolutions",)

    preserved: Annotated[float, SearchValues(0.25, 0.5, 0.75)] = Field(
        0.5, ge=0, lt=1, description="share of each layer's singular directions, the largest ones, that the first task "
        "keeps fixed; the others are trained")
    final_preserved: float | None = Field(None, ge=0, lt=1, description="value of preserved in the last task, reached "
                                          "in equal steps from task to task; none: the same in every task")
    layers: str = Field("all", min_length=1, description="which layers of the blocks are trained, as in lora: all | "
                        "last | last:N | blocks:N | attention | a regular expression that matches whole layer names")
    convolutions: bool | None = Field(None, description="train convolutions among these layers too; none: only if "
                                      "there is no Linear layer among them")

    @field_validator("layers")
    @classmethod
    def _compiles(cls, layers: str) -> str:
        """Reject strings that are not regular expressions."""
        return LowRankOptions._compiles(layers)

    def share(self, task: int, tasks: int) -> float:
        """Return the share of directions that task `task` (from 0) of `tasks` tasks preserves."""
        if self.final_preserved is None or tasks < 2:
            return self.preserved
        return self.preserved + (self.final_preserved - self.preserved) * task / (tasks - 1)


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("osf", "clbench_osf.strategy:OSF",
                         "fine-tunes weights orthogonally to their largest singular directions", OSFOptions,
                         "Nayak et al. 2025, arXiv 2504.07097", display_name="OSF", family="regularization",
                         objectives=("classification", "causal-lm")),)
