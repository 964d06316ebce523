"""Linear probing: train a head for each task, on features that do not change.

This is `shared-private` without private layers, except in the first task with `base = task1`. There, the first half of
the steps trains W as in `lora`, so that both methods have the same W, bit for bit. The second half trains the head
alone. The method is therefore what `lora` would be at rank 0.
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
