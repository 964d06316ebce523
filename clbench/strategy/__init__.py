"""What authors of methods read and build on; `clbench.strategy.base` says when each method is called.

The names are imported when first used: options of strategies are declared in this package too and need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.data.samples import Samples
    from clbench.strategy.base import Batch, Prediction, Strategy, Task, World
    from clbench.strategy.granted import Budget, Phase

__all__ = ["Batch", "Budget", "Phase", "Prediction", "Samples", "Strategy", "Task", "World"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.data.samples": ("Samples",),
    "clbench.strategy.base": ("Batch", "Prediction", "Strategy", "Task", "World"),
    "clbench.strategy.granted": ("Budget", "Phase"),
})
