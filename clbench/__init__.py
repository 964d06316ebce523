"""clbench: compare continual-learning methods fairly, and see what each costs.

The public names are imported when first used, so that `import clbench` loads neither torch nor Avalanche.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.core.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, StrategyInfo, TrackerInfo, hookimpl
    from clbench.core.options import Options, Scalar
    from clbench.core.search_values import SearchValues
    from clbench.data.samples import Samples
    from clbench.execution.api import load, run
    from clbench.execution.loading import load_model
    from clbench.models.network import Block, Network
    from clbench.report.results import Results
    from clbench.results.records import Record
    from clbench.strategy.base import Batch, Prediction, Strategy, Task, World
    from clbench.strategy.granted import Phase

__all__ = [
    "Batch", "BenchmarkInfo", "Block", "ModelInfo", "Network", "Options", "Phase", "Prediction", "Record",
    "ReportFormat", "Results", "Samples", "Scalar", "SearchValues", "Strategy", "StrategyInfo", "Task", "TrackerInfo",
    "World", "hookimpl", "load", "load_model", "run",
]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.core.hookspecs": ("BenchmarkInfo", "ModelInfo", "ReportFormat", "StrategyInfo", "TrackerInfo", "hookimpl"),
    "clbench.core.options": ("Options", "Scalar"),
    "clbench.core.search_values": ("SearchValues",),
    "clbench.data.samples": ("Samples",),
    "clbench.execution.api": ("load", "run"),
    "clbench.execution.loading": ("load_model",),
    "clbench.models.network": ("Block", "Network"),
    "clbench.report.results": ("Results",),
    "clbench.results.records": ("Record",),
    "clbench.strategy.base": ("Batch", "Prediction", "Strategy", "Task", "World"),
    "clbench.strategy.granted": ("Phase",),
})
