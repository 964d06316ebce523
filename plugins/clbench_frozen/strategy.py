"""Linear probing: heads on features that do not change.

This is `shared-private` without private layers, but for the first task with `base = task1`: there W has the first half
of the steps and the head alone the second, as in `lora`, whose W is then the same bit for bit. So it is what `lora`
would be at rank 0.
"""

from __future__ import annotations

from clbench_shared_private import SharedPrivateOptions
from clbench_shared_private.strategy import SharedPrivate

from clbench import Network, StreamInfo, Task
from clbench.strategy.per_task import FrozenBase, check_base
from clbench_frozen import FrozenOptions


class Frozen(FrozenBase, SharedPrivate):
    """The model's blocks, frozen, and a head for each task."""

    def __init__(self, model: Network, stream_info: StreamInfo, options: FrozenOptions | None = None) -> None:
        """Start with no heads."""
        options = options if options is not None else FrozenOptions()
        check_base("frozen", options, stream_info, model)
        super().__init__(model, stream_info, SharedPrivateOptions(**options.model_dump()))

    def base_learned(self, task: Task) -> None:
        """Freeze W."""
        self._learn(encoder=False)
