"""PackNet: one network in which every weight belongs to a task, or is free for later tasks.

A task trains all free weights of the dense and convolution layers; the weights of earlier tasks do not change. Then the
smallest of the trained weights are pruned, a share of each layer. The remaining ones are trained again, with the pruned
weights at 0, and belong to the task from then on. Predictions for a task use its own weights and those of earlier
tasks, so they never change. The head is the task's own. The first task trains all parameters that have no such weight,
and then they are fixed: biases, normalization layers with their statistics, and others (a vision transformer's position
embeddings).

The method stores one byte per weight, the number of its task. The task must be known at test time. If it is not known,
it is inferred as in the other methods that have a part per task (`infer`), which the paper does not do.

As in the authors' code, shares are counted in each layer, free weights start at 0 in the next task, and the last task
is pruned too. There are differences. The two training phases have half of the task's steps each (the paper: 20 epochs,
then 10). The authors zero the gradients of fixed weights, which weight decay and momentum can still change; here, fixed
weights are not in the loss at all. Avalanche ranks biases together with the weights of a layer.

Ties in magnitude: the number of weights kept is exactly the share. Among equal weights, `torch.topk` chooses; torch
does not specify its choice, which may differ between devices. The authors prune all weights that are not larger than
the weight at that rank (arunmallya/packnet). Among equal weights they keep none, so more than the share may become
free. This matters if the rank falls among weights that are still 0, mainly those of inputs that are always 0. It does
not happen at `prune = 0.75` on Split-MNIST, but at 0.1 in every task from the second on. Later tasks cannot use a
weight of 0 that was kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.core.torch_private import NormWithStatistics
from clbench.strategy.per_task import PerTaskStrategy
from clbench.strategy.regularization import slot
from clbench_packnet import PackNetOptions

FREE = 255  # the owner of free weights; tasks have smaller numbers


class PackNet(PerTaskStrategy):
    """The model's blocks, whose weights are divided among tasks; `owner__*` (uint8) are the task of each weight.

    While a task is trained, `learning__*` mark the weights that are trained, and `fixed__*` hold the values of all
    other weights.
    """

    roles = (("owner__*", "masks"), *PerTaskStrategy.roles)
    parts_final = True
    options: PackNetOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: PackNetOptions | None = None) -> None:
        """Make all weights free. Raise a SpecError if there are none, or more tasks than a byte can number."""
        super().__init__(model, stream_info, options if options is not None else PackNetOptions())
        if stream_info.tasks > FREE:
            raise SpecError(f"packnet: a byte per weight names at most {FREE} tasks, and there are {stream_info.tasks}")
        model.require_body("packnet shares out weights before the head")
        self.phase = 0
        for name, weight in self.packed().items():
            self.register_buffer(f"owner__{slot(name)}", torch.full_like(weight, FREE, dtype=torch.uint8))
            for part in ("learning", "fixed"):
                self.register_buffer(f"{part}__{slot(name)}", None, persistent=False)

    def packed(self) -> dict[str, Tensor]:
        """Return the weights that are divided among tasks, by name in the model."""
        return {f"blocks.{name}.weight": module.weight for name, module in self.model.blocks.named_modules()
                if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}

    def before_task(self, task: Task) -> None:
        """Add the task's head, and make the weights trainable; in the first task, all parameters."""
        super().before_task(task)
        if task.index == 0:
            self.model.blocks.requires_grad_(True)
        for weight in self.packed().values():
            weight.requires_grad_(True)
        self.train(self.training)

    def phases(self, task: Task) -> int:
        """Return 2: the first phase trains all free weights, the second those that pruning leaves."""
        return 2

    @torch.no_grad()
    def before_phase(self, task: Task, phase: int) -> None:
        """Select the weights to train: all free weights in the first phase, the largest of them in the second."""
        self.phase = phase
        for name, weight in self.packed().items():
            owner = self._part("owner", name)
            if phase == 0:
                learning = owner == FREE
                setattr(self, f"fixed__{slot(name)}", weight.masked_fill(learning, 0.0))
            else:
                size = weight.abs().masked_fill(~self._part("learning", name), -1.0).flatten()
                count = free(size.numel(), task.index, self.options.prune) - free(
                    size.numel(), task.index + 1, self.options.prune)
                chosen = torch.zeros_like(size, dtype=torch.bool)
                chosen[size.topk(count).indices] = True
                owner.masked_fill_(chosen.view(owner.shape), task.index)
                learning = owner == task.index
            setattr(self, f"learning__{slot(name)}", learning)

    def trainable(self) -> int:
        """Return the number of values that the phase trains; of divided weights, only those that it can change."""
        count = super().trainable()
        task = len(self.heads) - 1
        for weight in self.packed().values():
            size, prune = weight.numel(), self.options.prune
            free_count = free(size, task, prune) - (free(size, task + 1, prune) if self.phase else 0)
            count -= size - free_count
        return count

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Fix the task's weights, and set the pruned weights to 0."""
        for name, weight in self._weights(task.index).items():
            self.packed()[name].copy_(weight)
        super().after_task(task)
        for name in self.packed():
            for part in ("learning", "fixed"):
                setattr(self, f"{part}__{slot(name)}", None)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the layers with running statistics, after the first task."""
        if len(self.heads) < 2:
            return ()
        return [module for module in self.model.blocks.modules() if isinstance(module, NormWithStatistics)]

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the task's weights and its head."""
        logits: Tensor = self.heads[task](self.model.features(x, self._weights(task)))
        return logits

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of the first task's weights."""
        return self.model.features(x, self._weights(0))

    def _weights(self, task: int) -> dict[str, Tensor]:
        """Return the weights that predictions for a task use, by name in the model."""
        if task >= self.learned:
            return {name: torch.where(self._part("learning", name), weight, self._part("fixed", name))
                    for name, weight in self.packed().items()}
        return {name: weight.masked_fill(self._part("owner", name) > task, 0.0)
                for name, weight in self.packed().items()}

    def _part(self, part: str, name: str) -> Tensor:
        """Return a buffer that belongs to a weight."""
        return self.get_buffer(f"{part}__{slot(name)}")


def free(size: int, tasks: int, prune: float) -> int:
    """Return how many of a layer's `size` weights are free after `tasks` tasks."""
    for _ in range(tasks):
        size = round(prune * size)
    return size
