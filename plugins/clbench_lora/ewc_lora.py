"""EWC-LoRA (Zheng et al. 2026, arXiv 2602.17559): one low-rank adapter, with a penalty by the Fisher information of W.

While task t is trained, W is frozen as the last task left it, and A and B are trained on

    cross-entropy + strength/2 sum_ij F_ij (s B A)_ij^2      (summed over the adapted layers)

where s B A is the change of W that the task makes. F is the diagonal Fisher information of W, not of A and B. A and B
have no importance of their own, because many pairs make the same change. After the task, F <- gamma F + F_t, with F_t
computed at the task's final weights, and W <- W + s B A. The next task starts with a new A, and B = 0. There is thus
one adapter for any number of tasks, and the anchor of EWC is W. The cost is F: as many numbers as the adapted weights
have, [out, in] for each of these layers. `clbench params` and records count it as `importance`. Each task has a head
for its new classes, trained on the cross-entropy over the task's own classes (`outputs`). No penalty protects heads.

F_t does not need the gradient with respect to the product s B A, which is not stored. F_t is the Fisher information of
the frozen W with the adapter merged into it, whose gradient is the same (`clbench.strategy.fisher`).

Differences to the authors' code (yaoyz96/low-rank-cl, methods/ewclora.py):

- Its F_t squares the mean gradient of each batch of 128, with the true labels, and takes the mean over batches. Here
  gradients are squared sample by sample. If the mean gradient over all samples vanishes, as at the end of training, the
  square of a mean of 128 is 1/128 of the mean of squares. Its lambda of 1e7 thus corresponds to 1e7 / 128 here, the
  default of `strength`. The labels are the true ones here too (`fisher = empirical`); other labels are options.
- After a task, it adds the new A to the sum of the A's and the new B to the sum of the B's. (B1 + B2)(A1 + A2) also
  contains B1 A2 and B2 A1, which no task trained. From the second task on, the network's function therefore jumps, and
  the next task starts from there. (It tests before that.) Its rank stays r. Here, the product is added to W, and the
  network's outputs do not change.
- It augments the inputs for F_t as in training.

The code adapts k and v of every block with rank 10 (30 on DomainNet), s = 1, gamma = 1 and Kaiming-uniform A. Except
for DomainNet's rank, these are the defaults here. It trains with Adam at learning rate 5e-4, and the heads at 5e-3
(ImageNet-R: 5e-4 for both, with weight decay 5e-3), in batches of 128. The rate falls along half a cosine within each
task, once per epoch. `recipe=published` is the configuration for CIFAR-100; otherwise, the run's configuration applies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clbench import Batch, Network, StreamInfo, Task
from clbench.strategy.fisher import check_kind, diagonal_fisher
from clbench.strategy.regularization import quadratic_penalty, slot
from clbench_lora import EWCLoRAOptions
from clbench_lora.activation import activated
from clbench_lora.joined_heads import JoinedHeadsLoRA
from clbench_lora.layers import LoRALayer
from clbench_lora.rows import Rows


class EWCLoRA(JoinedHeadsLoRA):
    """A frozen backbone W into which each task's adapter is merged, and a Fisher penalty on the change of W.

    The buffers `importance__*` are F of each adapted layer, in the shape of its W.
    """

    method = "ewc-lora"
    inputs_only_through_model = loss_is_mean = True
    roles = (("importance__*", "importance"), *JoinedHeadsLoRA.roles)
    options: EWCLoRAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: EWCLoRAOptions | None = None) -> None:
        """Install the adapted layers, with F = 0.

        Raises:
            SpecError: they do not fit the model, or the model's objective does not allow this `fisher`.
        """
        super().__init__(model, stream_info, options if options is not None else EWCLoRAOptions())
        check_kind(stream_info, self.options.fisher)
        for name, layer in self.adapted.items():
            self.register_buffer(f"importance__{slot(name)}", torch.zeros_like(layer.base_layer.weight,
                                                                               requires_grad=False))

    def grows(self, task: Task) -> bool:
        """Return whether it is the first task."""
        return task.index == 0

    def before_task(self, task: Task) -> None:
        """Add a head for new classes, then initialize the adapters again."""
        super().before_task(task)
        for layer in self.adapted.values() if task.index else ():
            layer.restart()

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy over the active outputs plus the penalty."""
        return super().loss(batch) + self.penalty()

    def penalty(self) -> Tensor:
        """Return strength/2 sum F (s B A)^2, a scalar."""
        return quadratic_penalty(self.options.strength, torch.zeros_like(self.model.head.weight[0, 0]), (
            (self.importance(name), layer.delta_weight(-1)) for name, layer in self.adapted.items()))

    def importance(self, name: str) -> Tensor:
        """Return F of an adapted layer, in the shape of its W."""
        return self.get_buffer(f"importance__{slot(name)}")

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Add the adapters to W, which changes no output, and the task's Fisher information to F; realign the heads."""
        for layer in self.adapted.values():
            layer.merge()
        for name, task_fisher in self.fisher(task).items():
            self.importance(name).mul_(self.options.gamma).add_(task_fisher)
        super().after_task(task)

    def fisher(self, task: Task) -> dict[str, Tensor]:
        """Return the diagonal Fisher information of W on a task's samples, by adapted layer."""
        with self._weights_only():
            fisher = diagonal_fisher(self, task.train, task.index, generator=self.stream_info.generator,
                                     kind=self.options.fisher, limit=self.options.fisher_samples)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return {name: fisher[names[id(weight)]][rows]
                for name, (weight, rows) in ((name, _place(layer)) for name, layer in self.adapted.items())}

    @contextmanager
    def _weights_only(self) -> Iterator[None]:
        """Let only the weights of adapted layers require gradients, and no adapter be active, inside the block."""
        previous_flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        self.requires_grad_(False)
        try:
            for layer in self.adapted.values():
                _place(layer)[0].requires_grad_(True)
            with activated(self.adapted.values(), ()):
                yield
        finally:
            for parameter, required in previous_flags:
                parameter.requires_grad_(required)


def _place(layer: LoRALayer) -> tuple[Tensor, slice]:
    """Return the parameter that contains an adapted layer's W, and the slice of the rows that are W."""
    base = layer.base_layer
    if isinstance(base, Rows):
        return base.layer.weight, base.rows
    return base.weight, slice(None)
