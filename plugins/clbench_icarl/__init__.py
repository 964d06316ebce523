"""`icarl`: incremental classifier and representation learning (Rebuffi et al. 2017, arXiv 1611.07725)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Options, StrategyInfo, hookimpl


class ICaRLOptions(Options):
    """Options of `icarl`."""

    capacity: int = Field(200, ge=1, description="K: exemplars for all classes together, at least one for each class")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("icarl", "clbench_icarl.strategy:ICaRL",
                         "keeps herded exemplars, distils old outputs, answers by the nearest mean of exemplars",
                         ICaRLOptions, "Rebuffi et al. 2017, arXiv 1611.07725"),)
