"""What authors of methods read and build on; `clbench.strategy.base` says when each method is called.

The names are imported when first used: options of strategies are declared in this package too and need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.data.samples import Samples
    from clbench.strategy.base import Batch, Prediction, Strategy, StreamInfo, Task
    from clbench.strategy.granted import Budget, PhaseSpec

__all__ = ["Batch", "Budget", "PhaseSpec", "Prediction", "Samples", "Strategy", "StreamInfo", "Task"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.data.samples": ("Samples",),
    "clbench.strategy.base": ("Batch", "Prediction", "Strategy", "StreamInfo", "Task"),
    "clbench.strategy.granted": ("Budget", "PhaseSpec"),
}, old={"Phase": "clbench.strategy.granted", "World": "clbench.strategy.granted"})
