"""Full fine-tuning per task: each task has its own copy of the whole network, and all copies start from the same W.

Nothing is forgotten, nothing is shared except the start, and each task costs a whole network. LoRA (Hu et al. 2021,
arXiv 2106.09685) replaces this method. `clbench lora spectrum` measures the changes of the weights.

W is that of `lora`, bit for bit. With `base = task1`, the first half of the first task's steps trains W, and the second
half trains the first copy; the head is trained in both. (A language model's head that is not tied to the embedding is
trained in the second half only.) With `base = random` or `pretrained`, the tasks have nothing in common except weights
that no task trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from clbench import Network, Record, StreamInfo, Task
from clbench.core.artifacts import BASE, save_tensors, task_folder
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.core.registry import Registry
from clbench.models.weights import load_weights
from clbench.strategy.per_task import FrozenBase, PerTaskStrategy, TaskHead, check_base
from clbench.training.building import build_model
from clbench_independent import IndependentOptions

MODEL = "model.safetensors"  # in a task's folder: all weights, by the names of the plain model


class Independent(FrozenBase, PerTaskStrategy):
    """The starting network W, frozen, and for each task a fine-tuned copy of its blocks and a head.

    A copy of a language model has a copy of W's head, tied to its embedding if W's is.
    """

    roles = (("copies.*", "copies"), ("copied_heads.*", "copies"), *PerTaskStrategy.roles)
    head_parameters = ("model.head.*", "heads.*", "copied_heads.*")
    parts_final = True
    options: IndependentOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: IndependentOptions | None = None) -> None:
        """Start with no copies.

        Raises:
            SpecError: the model is a language model, and the scenario gives no task IDs.
        """
        options = options if options is not None else IndependentOptions()
        if stream_info.predicts_tokens and not stream_info.task_given:
            raise SpecError("independent: each copy of a language model has its own head, and no head is chosen by the "
                            "prompt; choose --scenario task, or lora:infer=gaussian")
        super().__init__(model, stream_info, options)
        self.notes += check_base("independent", self.options, stream_info, model)
        if not stream_info.has_classes:
            self.notes.append("the copies are not exported; only those of classifiers are")
        self.copies = nn.ModuleList()
        self.copied_heads = nn.ModuleList()  # heads of the copies of a language model
        self.base_learns = False
        self.train(self.training)

    def before_task(self, task: Task) -> None:
        """Add the task's head and copy; train the copy, or W if the first task is to train it."""
        super().before_task(task)
        memo: dict[int, object] = {}  # memo of deepcopy, so that tied weights stay tied
        self.copies.append(copy.deepcopy(self.model.blocks, memo))
        if self.stream_info.predicts_tokens:
            self.copied_heads.append(copy.deepcopy(self.model.head, memo))
        self._learn(base=self.phases(task) == 2)

    def base_learned(self, task: Task) -> None:
        """Freeze W, and train the copy, which starts from W."""
        self.copies[-1].load_state_dict(self.model.blocks.state_dict())
        for head in self.copied_heads[-1:]:
            head.load_state_dict(self.model.head.state_dict())
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either W or the newest copy; the newest head is trained with both."""
        self.base_learns = base
        self.model.blocks.requires_grad_(base)
        self.copies[-1].requires_grad_(not base)
        self.copied_heads[-1:].requires_grad_(not base)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return W once it is frozen, and the copies of learned tasks."""
        return [*self.copies[:self.learned], *(() if self.base_learns else (self.model.blocks,))]

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the task's copy and head; while W is trained, those of W and the head."""
        if self.base_learns:
            features = self.model.features(x)
        else:
            blocks = self.copies[task]
            assert isinstance(blocks, nn.ModuleList)
            features = x
            for block in blocks:
                features = block(features)
        logits: Tensor = self.heads[task](features)
        return logits

    def head_of_task(self, task: int | None) -> nn.Module:
        """Return the head of a language model's copy for a task, or W's head if no copy is used."""
        if self.base_learns or task is None or task >= len(self.copied_heads):
            return self.model.head
        return self.copied_heads[task]

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of W."""
        return self.model.features(x)

    def export(self, folder: Path, task: Task) -> None:
        """Write the task's network under the names of the plain model; for the first task, also write W.

        The head has the task's rows in their places, and a bias of -inf elsewhere. The plain model then predicts the
        same as this strategy does for the task. Nothing is written if there are no classes.
        """
        if not self.stream_info.has_classes:
            return
        tensors = {f"blocks.{name}": tensor for name, tensor in self.copies[task.index].state_dict().items()}
        head, full_head = self.heads[task.index], self.model.head
        assert isinstance(head, TaskHead)
        weight, bias = (full_head.weight.new_zeros(full_head.weight.shape),
                        full_head.bias.new_full(full_head.bias.shape, -math.inf))
        weight[list(task.classes)], bias[list(task.classes)] = head.weight.detach(), head.bias.detach()
        tensors |= {"head.weight": weight, "head.bias": bias}
        if task.index == 0:
            save_tensors(folder / BASE, self.model.state_dict(), {"format": "pt"})
        save_tensors(task_folder(folder, task.index) / MODEL, tensors, {"format": "pt"})


def load_model(record: Record, folder: Path, task: int, registry: Registry) -> Network:
    """Return a task's network.

    Raises:
        StoreError: the trial is not a classification, or the task's file is missing or does not fit.
    """
    assert record.stream is not None
    if not any(record.stream.classes):
        raise StoreError("independent saves its copies only for classification; use lora, or save the strategy with "
                         "--keep")
    outputs = len(set(chain.from_iterable(record.stream.classes)))
    model, _ = build_model(record.trial.model, None, tuple(record.stream.input_shape), outputs, registry)
    try:
        load_weights(model, task_folder(folder, task) / MODEL)
    except DataError as error:
        raise StoreError(str(error)) from None
    return model
