"""`lwf`: learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Options, Scalar, StrategyInfo, hookimpl


class LwFOptions(Options):
    """Options of `lwf`; the defaults are the paper's."""

    strength: Scalar = Field(1.0, ge=0, description="lambda_o: weight of the old tasks' distillation loss")
    temperature: Scalar = Field(2.0, gt=0, description="T: softens the outputs that are compared")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lwf", "clbench_lwf.strategy:LwF",
                         "keeps what the old network answered to the new task's samples", LwFOptions,
                         "Li & Hoiem 2016, arXiv 1606.09282"),)
