"""Base of the LoRA variants with summed adapters and a head for each task's new classes; all heads predict together.

With `align = true`, the heads are realigned after each task (`clbench.strategy.alignment`).

If no class of a task is new (scenario `domain`, or classes that return), no head is added. The heads of the task's
classes are trained further, which changes their outputs for earlier tasks. A language model keeps its own head.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.strategy.alignment import Aligned
from clbench.strategy.per_task import TaskHead
from clbench_lora import SummedOptions
from clbench_lora.shared_adapters import SummedLoRA


class JoinedHeadsLoRA(Aligned, SummedLoRA):
    """A frozen backbone W with adapters, all active, and a head for each task's new classes.

    Only tasks with these classes train the head. Subclasses define `grows` and `learning`, as for `SummedLoRA`.
    """

    heads_named = "heads.*"
    inputs_only_through_model = True
    roles = (("heads.*", "heads"), *Aligned.roles, *SummedLoRA.roles)

    def __init__(self, model: Network, stream_info: StreamInfo, options: SummedOptions) -> None:
        """Install the adapted layers, without a head. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options)
        self.heads = nn.ModuleList()
        self.classes: list[tuple[int, ...]] = []  # of each head
        self.current: list[int] = []  # indices of the current task's heads

    def before_task(self, task: Task) -> None:
        """Add a head for new classes, then adapters. The head is created first, so all methods get the same head."""
        known_classes = set(chain.from_iterable(self.classes))
        if new_classes := tuple(c for c in task.classes if c not in known_classes):
            head = self.model.head
            self.heads.append(TaskHead(head.in_features, new_classes, self.stream_info.classes, head.weight))
            self.classes.append(new_classes)
        self.current = [i for i, classes in enumerate(self.classes) if set(classes) & set(task.classes)]
        super().before_task(task)

    def heads_for(self, task: Task) -> Iterable[nn.Module]:
        """Return the heads of the task's classes."""
        return [self.heads[i] for i in self.current]

    def head_of(self, output: int) -> tuple[nn.Linear, int]:
        """Return the head of the task that first had a class, and the index of the class in that head."""
        head, classes = next((head, classes) for head, classes in zip(self.heads, self.classes, strict=True)
                             if output in classes)
        assert isinstance(head, TaskHead)
        return head, classes.index(output)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the logits [N, C] of all heads. Classes without a head get the logits of the original head."""
        features = self.model.features(x)
        logits = self.model.from_features(features)
        for head in self.heads:
            task_logits = head(features)
            logits = torch.where(task_logits.isneginf(), logits, task_logits)
        return logits
