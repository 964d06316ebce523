"""LoRA-Mean, the simplest form of model merging: each task trains as in `lora`, and the mean of all adapters predicts.

Each task trains its own A_t, B_t and head on the frozen W alone, exactly as in `lora`. No task starts from another
task's adapters. One network predicts, whose change of W is the mean of the changes by the T tasks learned so far:

    W + 1/T sum_t s B_t A_t

This is uniform averaging of models that were fine-tuned from one start (Wortsman et al. 2022, arXiv 2203.05482), or
task arithmetic (Ilharco et al. 2023, arXiv 2212.04089) with the factor 1/T. Chitale et al. 2023 (arXiv 2311.02428) do
it with LoRA in continual learning. They also fine-tune the result on a memory of samples, which is left out here. No
task is inferred: the logits of all heads are used together, or those of the task's own head if the task is given. If
tasks share a class (scenario `domain`), its logit is the mean over the heads of these tasks. `clbench adapters combine`
does the same with the adapters of `lora` and weights 1/T.

The products B_t A_t are averaged. The mean of the A's times the mean of the B's would be another matrix, with products
B_i A_j of different tasks. PEFT's `add_weighted_adapter` computes that matrix for `combination_type = linear`, with
square roots of the weights. Its type `cat` does what is done here, and `svd` reduces that to a given rank.

Every task's adapter is stored, and the change of W has rank T r. The contribution of a task to it shrinks as 1/T, but
the task's head stays the same. With many tasks, predictions therefore approach those of W. A language model keeps its
own head. With `base = task1`, W itself has learned the first task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.strategy.per_task import TaskHead
from clbench_lora import LoRAMeanOptions
from clbench_lora.activation import activated
from clbench_lora.shared_adapters import SummedLoRA


class LoRAMean(SummedLoRA):
    """A frozen backbone W, with adapters and a head for each task; the mean of the learned adapters predicts."""

    method = "lora-mean"
    heads_named = "heads.*"
    inputs_only_through_model = loss_is_mean = True
    roles = (("heads.*", "heads"), *SummedLoRA.roles)
    options: LoRAMeanOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: LoRAMeanOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else LoRAMeanOptions())
        self.heads = nn.ModuleList()
        self.learned = 0  # number of learned tasks; while a task is trained, there is one more head

    def before_task(self, task: Task) -> None:
        """Add the task's head, then its adapters. The head is created first, so that all methods get the same head."""
        head = self.model.head
        if not self.stream_info.predicts_tokens:
            self.heads.append(TaskHead(head.in_features, task.classes, self.stream_info.classes, head.weight))
        super().before_task(task)

    def heads_for(self, task: Task) -> Iterable[nn.Module]:
        """Return the task's head."""
        return () if self.stream_info.predicts_tokens else (self.heads[task.index],)

    def _learn(self, base: bool) -> None:
        """Train either W without adapters, or the newest adapters, which are then the only active ones."""
        super()._learn(base)
        for layer in self.adapted.values():
            layer.active = () if base else (len(layer.lora_A) - 1,)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the task's own adapters and head."""
        with self.known_first_layer(batch):
            features = self.model.features(batch.x)
            head = self.model.from_features if self.stream_info.predicts_tokens else self.heads[batch.task]
            return self.cross_entropy(head(features), batch)

    def after_task(self, task: Task) -> None:
        """Use the task's adapters and head for predictions from now on."""
        self.learned = task.index + 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Activate all learned adapters inside the `with` block, each with 1/T of its scale."""
        previous_scalings = [(layer, layer.scaling) for layer in self.adapted.values()]
        try:
            for layer, scaling in previous_scalings:
                layer.scaling = scaling / max(1, self.learned)
            with activated(self.adapted.values(), tuple(range(self.learned))):
                yield
        finally:
            for layer, scaling in previous_scalings:
                layer.scaling = scaling

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the logits [N, C] of the given task's head if it is learned, else of all learned heads.

        In the second case, classes without a head get the logits of the original head.
        """
        with self.averaged():
            features = self.model.features(x)
        logits = self.model.from_features(features)
        if task is not None and task < self.learned and not self.stream_info.predicts_tokens:
            logits = self.heads[task](features)
        elif self.learned and not self.stream_info.predicts_tokens:
            task_logits = torch.stack([head(features) for head in self.heads[:self.learned]])
            is_finite = ~task_logits.isneginf()
            mean = task_logits.masked_fill(~is_finite, 0.0).sum(0) / is_finite.sum(0).clamp(min=1)
            logits = torch.where(is_finite.any(0), mean, logits)
        return logits
