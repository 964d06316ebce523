"""LoRA (Hu et al. 2021, arXiv 2106.09685), with one set of adapters per task on a frozen backbone.

The paper adapts one pretrained model to one task. Here each task of the stream gets its own adapters and head. Later
tasks do not train anything that an earlier task's outputs depend on, so these outputs stay the same, bit for bit.

With `base = task1`, there is no pretrained model. The first half of the first task's steps trains W and the task's head
by plain fine-tuning. Then W is frozen, and the second half trains the first adapters and the head.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from clbench import Network, StreamInfo, Task
from clbench.strategy.per_task import FrozenBase, PerTaskStrategy, TaskHead, check_base
from clbench_lora import LoRAOptions
from clbench_lora.activation import activated
from clbench_lora.exported import ExportedAdapters
from clbench_lora.first_layer import FirstLayerOnce
from clbench_lora.layers import LoRALayer
from clbench_lora.peft_format import Adapter, Origin
from clbench_lora.selection import adapt, remarks


class LoRA(ExportedAdapters, FirstLayerOnce, FrozenBase, PerTaskStrategy):
    """A frozen backbone W; each task has one adapter on each selected layer of the blocks, and a head.

    `adapted` maps the name of each adapted layer (as in the original model) to its `LoRALayer`.
    """

    roles = (("*.lora_*", "adapters"), ("*.pissa_[AB]", "adapters"), *PerTaskStrategy.roles)
    inputs_only_through_model = parts_final = True
    options: LoRAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: LoRAOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        options = options if options is not None else LoRAOptions()
        super().__init__(model, stream_info, options)
        self.notes += check_base("lora", self.options, stream_info, model)
        self.notes += remarks(model, options)
        self.adapted = adapt(model, options)
        self.base_learns = False
        self.train(self.training)

    def before_task(self, task: Task) -> None:
        """Add the task's head and adapters. Train them, or W and the head if the first task starts with W."""
        super().before_task(task)
        for layer in self.adapted.values():
            layer.add()
        self._learn(base=self.phases(task) == 2)

    def base_learned(self, task: Task) -> None:
        """Freeze W, and train the adapters, which start from the trained W."""
        for layer in self.adapted.values():
            layer.init_from_weight()
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either W or the newest adapters; the newest head is trained with both."""
        self.base_learns = base
        self.model.blocks.requires_grad_(base)
        for layer in self.adapted.values():
            for parameter in layer.parameters_of(-1).values():
                parameter.requires_grad_(not base)
        self.train(self.training)

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of W with the task's adapters and head; without adapters while W is trained."""
        with self.using(None if self.base_learns else task):
            features = self.model.features(x)
        logits: Tensor = self.heads[task](features)
        return logits

    def learned_logits(self, x: Tensor) -> Tensor:
        """Return the logits [learned tasks, N, C] of all adapters. Blocks before the first adapted one run once."""
        first_index = self.model.first_with(LoRALayer)
        hidden = self.model.run(x, 0, first_index)
        logits = []
        for task, head in enumerate(self.heads[:self.learned]):
            with self.using(task):
                logits.append(head(self.model.run(hidden, first_index, None)))
        return torch.stack(logits)

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of W without adapters."""
        return self.model.features(x)

    def export(self, folder: Path, task: Task) -> None:
        """Write the task's adapter and head in PEFT's format; with the first task also W, which does not change later.

        For a language model, W and the head are not written if the model's own folder or repository has them. For a
        model that predicts numbers, nothing is written.
        """
        if not self.stream_info.predicts_numbers:
            self.write_task(folder, task, task.index, self.exported_head(task))

    def adapter(self, task: Task, trial: str, base: str, number: int | None = None,
                origin: Origin | None = None) -> Adapter:
        """Return a learned task's adapter and head in PEFT's form (`described`)."""
        return self.described(task, trial, base, task.index, self.exported_head(task), number, origin)

    def exported_head(self, task: Task) -> TaskHead | None:
        """Return a task's head; None for a language model."""
        head = self.heads[task.index]
        return head if isinstance(head, TaskHead) else None

    def using(self, task: int | None) -> AbstractContextManager[None]:
        """Return a context manager that activates a task's adapters (None: no adapters); outside it, none is active."""
        return activated(self.adapted.values(), () if task is None else (task,))
