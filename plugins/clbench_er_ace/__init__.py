"""`er-ace`: experience replay with asymmetric cross-entropy (Caccia et al. 2022, arXiv 2104.05025)."""

from __future__ import annotations

from collections.abc import Sequence

from clbench_er import EROptions

from clbench import StrategyInfo, hookimpl


class ERACEOptions(EROptions):
    """Options of `er-ace`."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("er-ace", "clbench_er_ace.strategy:ERACE",
                         "er whose new samples do not push old classes down", ERACEOptions,
                         "Caccia et al. 2022, arXiv 2104.05025"),)
