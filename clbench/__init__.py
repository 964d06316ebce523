"""clbench: compare continual-learning methods fairly, and see what each costs.

The public names are imported when first used, so that `import clbench` loads neither torch nor Avalanche.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.core.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, StrategyInfo, TrackerInfo, hookimpl
    from clbench.core.option_marks import OnlyWith, SearchValues
    from clbench.core.options import Options, Scalar
    from clbench.data.samples import Samples
    from clbench.execution.api import load, run
    from clbench.execution.loading import load_model
    from clbench.models.network import Block, Network
    from clbench.report.results import Results
    from clbench.results.records import Record
    from clbench.strategy.base import Batch, Prediction, Strategy, StreamInfo, Task
    from clbench.strategy.granted import PhaseSpec

__all__ = [
    "Batch", "BenchmarkInfo", "Block", "ModelInfo", "Network", "OnlyWith", "Options", "PhaseSpec", "Prediction",
    "Record", "ReportFormat", "Results", "Samples", "Scalar", "SearchValues", "Strategy", "StrategyInfo", "StreamInfo",
    "Task", "TrackerInfo", "hookimpl", "load", "load_model", "run",
]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.core.hookspecs": ("BenchmarkInfo", "ModelInfo", "ReportFormat", "StrategyInfo", "TrackerInfo", "hookimpl"),
    "clbench.core.options": ("Options", "Scalar"),
    "clbench.core.option_marks": ("OnlyWith", "SearchValues"),
    "clbench.data.samples": ("Samples",),
    "clbench.execution.api": ("load", "run"),
    "clbench.execution.loading": ("load_model",),
    "clbench.models.network": ("Block", "Network"),
    "clbench.report.results": ("Results",),
    "clbench.results.records": ("Record",),
    "clbench.strategy.base": ("Batch", "Prediction", "Strategy", "StreamInfo", "Task"),
    "clbench.strategy.granted": ("PhaseSpec",),
}, old={"Phase": "clbench.strategy.granted", "World": "clbench.strategy.granted"})
