"""clbench: compare continual-learning methods fairly, and see what each costs.

The public names are imported when first used, so that `import clbench` loads neither torch nor Avalanche.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clbench.api import run
    from clbench.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, StrategyInfo, TrackerInfo, hookimpl
    from clbench.models.network import Block, Network
    from clbench.options import Options, Scalar
    from clbench.records import Record
    from clbench.strategy import Batch, Prediction, Samples, Strategy, Task, World

_HOME = {
    "run": "clbench.api",
    **dict.fromkeys(("BenchmarkInfo", "ModelInfo", "ReportFormat", "StrategyInfo", "TrackerInfo", "hookimpl"),
                    "clbench.hookspecs"),
    **dict.fromkeys(("Block", "Network"), "clbench.models.network"),
    **dict.fromkeys(("Options", "Scalar"), "clbench.options"),
    "Record": "clbench.records",
    **dict.fromkeys(("Batch", "Prediction", "Samples", "Strategy", "Task", "World"), "clbench.strategy"),
}

__all__ = [
    "Batch", "BenchmarkInfo", "Block", "ModelInfo", "Network", "Options", "Prediction", "Record", "ReportFormat",
    "Samples", "Scalar", "Strategy", "StrategyInfo", "Task", "TrackerInfo", "World", "hookimpl", "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'clbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
