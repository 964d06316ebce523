"""`shared-private`: an encoder shared by all tasks and frozen after the first, a private head for each."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import StrategyInfo, hookimpl
from clbench.strategy.common_options import BaseOptions


class SharedPrivateOptions(BaseOptions):
    """Options of `shared-private`."""

    private_width: int | None = Field(None, ge=1, description="units of a private hidden ReLU layer before each head; "
                                      "none: no hidden layer")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("shared-private", "clbench_shared_private.strategy:SharedPrivate",
                         "freezes a shared encoder after the first task; trains a head per task",
                         SharedPrivateOptions, paper="compare Ebrahimi et al. 2020, arXiv 2003.09553 (ACL)",
                         parts_per_task=True, display_name="Shared-private", family="parameter isolation"),)
