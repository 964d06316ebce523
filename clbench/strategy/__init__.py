"""The interface of methods and base classes for them; `clbench.strategy.base` says when each method is called.

Names are imported when they are first used, because modules that declare options are in this package and must not
import torch.
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
