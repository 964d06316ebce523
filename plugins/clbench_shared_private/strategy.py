"""Shared encoder, private heads: learn features on the first task (or load them), and train only heads afterward.

This is feature extraction as CL papers use it as a baseline (Li & Hoiem 2016, arXiv 1606.09282, use this name). There
is no forgetting, and only the private layers are plastic. Adversarial Continual Learning (Ebrahimi et al. 2020, arXiv
2003.09553) is the trained variant of this division, available as `acl`. There, every task trains the shared module,
which an adversarial loss and an orthogonality loss keep task-invariant. Private modules read the input in parallel.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.strategy.per_task import PerTaskStrategy, check_base
from clbench_shared_private import SharedPrivateOptions


class SharedPrivate(PerTaskStrategy):
    """The model's blocks as a shared encoder; each task has a private head, and with `private_width` a hidden layer.

    With `base = task1`, the first task trains encoder, private layer and head together, as fine-tuning does.
    """

    roles = (("private.*", "heads"), *PerTaskStrategy.roles)
    inputs_only_through_model = parts_final = True
    options: SharedPrivateOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SharedPrivateOptions | None = None) -> None:
        """Start with the encoder frozen and no heads."""
        options = options if options is not None else SharedPrivateOptions()
        super().__init__(model, stream_info, options)
        self.notes += check_base("shared-private", self.options, stream_info, model)
        self.private = nn.ModuleList()
        self.encoder_learns = False
        self.train(self.training)

    @property
    def head_inputs(self) -> int:
        """Return the width of the private hidden layer, or of the encoder's features."""
        return self.options.private_width or super().head_inputs

    def before_task(self, task: Task) -> None:
        """Add the task's private layers. Make the encoder trainable if this task trains it."""
        super().before_task(task)
        width, like = self.options.private_width, self.model.head.weight
        hidden: nn.Module = nn.Identity()
        if width is not None:
            hidden = nn.Sequential(nn.Linear(self.model.head.in_features, width, device=like.device, dtype=like.dtype),
                                   nn.ReLU())
        self.private.append(hidden)
        self._learn(encoder=self.options.base == "task1" and task.index == 0)

    def after_task(self, task: Task) -> None:
        """Freeze the encoder permanently, and count the task as learned."""
        self._learn(encoder=False)
        super().after_task(task)

    def _learn(self, encoder: bool) -> None:
        self.encoder_learns = encoder
        self.model.blocks.requires_grad_(encoder)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the encoder once it is frozen."""
        return () if self.encoder_learns else (self.model.blocks,)

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the encoder and the task's private layers."""
        logits: Tensor = self.heads[task](self.private[task](self.model.features(x)))
        return logits

    def learned_logits(self, x: Tensor) -> Tensor:
        """Return the logits [learned tasks, N, C] of all private parts on features computed once."""
        features = self.model.features(x)
        return torch.stack([self.heads[t](self.private[t](features)) for t in range(self.learned)])

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the encoder's features [N, D]."""
        return self.model.features(x)
