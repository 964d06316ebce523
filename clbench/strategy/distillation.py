"""Base class of strategies that distill from a copy of the network after the last task."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench.core.options import Options
from clbench.models.network import Network
from clbench.strategy.base import Batch, Strategy, StreamInfo, Task


class Distilled(Strategy):
    """Base of strategies that store a copy of the network after the last task (`old`) and its outputs (`known`).

    A subclass that overrides `before_task` calls super's, which sets `taught`.
    """

    roles: tuple[tuple[str, str], ...] = (("old.*", "old network"), ("known", "counters"))
    known: Tensor
    taught: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with a copy of the initial network."""
        super().__init__(model, stream_info, options)
        self.old = frozen_copy(model)  # from the start, so that checkpoints can restore it
        self.register_buffer("known", torch.zeros_like(self.class_mask))  # [T, C]: outputs active after each task
        # [C]: outputs of the current task's classes
        self.register_buffer("taught", torch.zeros_like(self.class_mask[0]), persistent=False)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the old network."""
        return (self.old,)

    def before_task(self, task: Task) -> None:
        """Mark the outputs of the task's classes in `taught`."""
        self.taught.zero_()
        self.taught[list(task.classes)] = True

    def after_task(self, task: Task) -> None:
        """Store a copy of the network and its active outputs."""
        self.old = frozen_copy(self.model)
        self.known[task.index] = self.class_mask[task.index]

    @torch.no_grad()
    def old_logits(self, x: Tensor) -> Tensor:
        """Return the old network's logits [N, C]."""
        logits: Tensor = self.old(x)
        return logits

    def old_outputs(self, task: int) -> list[Tensor]:
        """Return the groups of outputs, bool [C], over which the old network's softmax is computed in `task`.

        If the task is given, there is a group for each earlier task, else one group of all outputs known before `task`.
        """
        known = self.known[:task]
        return list(known) if self.stream_info.task_given else [known.any(0)]

    def class_counts(self) -> tuple[Tensor, Tensor]:
        """Return n_old and n_new, scalars: the numbers of outputs known before the task and of outputs of its classes.

        The numbers are valid during the training of the task. An output that is old and new counts in both.
        """
        dtype = self.model.head.weight.dtype
        return self.known.any(0).sum().to(dtype), self.taught.sum().to(dtype)

    def old_share(self) -> Tensor:
        """Return n_old / (n_old + n_new), a scalar."""
        old_count, new_count = self.class_counts()
        return old_count / (old_count + new_count)

    def balanced(self, logits: Tensor, old: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Return (1 - s) cross-entropy + s distillation, with s = `old_share()`; in the first task, cross-entropy only.

        The distillation loss is the sum over the groups of old outputs (`old_outputs`).

        Args:
            logits: logits of the new network, [N, C].
            old: logits of the old network, [N, C].
            batch: the samples.
            temperature: the temperature of the distillation.
        """
        labels = self.cross_entropy(logits, batch)
        if not batch.task:
            return labels
        share = self.old_share()
        losses = [distillation(logits, old, outputs, temperature) for outputs in self.old_outputs(batch.task)]
        return (1 - share) * labels + share * torch.stack(losses).sum()


def frozen_copy(model: Network) -> Network:
    """Return a frozen copy of a network, in eval mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def distillation(logits: Tensor, old: Tensor, outputs: Tensor, temperature: float, among: Tensor | None = None
                 ) -> Tensor:
    """Return the mean cross-entropy between the softmax of old and new logits, both at a temperature; a scalar.

    Args:
        logits: logits of the new network, [N, C].
        old: logits of the old network, [N, C]; their softmax is the target.
        outputs: the outputs of the old softmax, bool [C].
        temperature: divides the logits.
        among: the outputs of the new softmax, bool [C] or [N, C], which include `outputs`. The targets of additional
            outputs are 0. None means `outputs`.
    """
    new_logits = (logits / temperature).masked_fill(~(outputs if among is None else among), float("-inf"))
    target = (old / temperature).masked_fill(~outputs, float("-inf"))
    log_q = new_logits.log_softmax(1).masked_fill(~outputs, 0.0)
    return -(target.softmax(1) * log_q).sum(1).mean()
