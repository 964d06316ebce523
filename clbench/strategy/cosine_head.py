"""A head whose logits are cosines, so that the lengths of a class's weights and of the features say nothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SHORTEST = 1e-5  # length that a vector is divided by at least


class CosineHead(nn.Linear):
    """Logits [N, C] of features [N, D]: `scale` times the cosine of each sample with each class's weights; no bias.

    The weights begin as those of a linear head.

    Args:
        head: the linear head; its weights [C, D] are taken over.
        scale: what cosines are multiplied by.
        learned: whether the scale is a parameter that begins there, and not a constant.
    """

    scale: float | nn.Parameter

    def __init__(self, head: nn.Linear, scale: float, learned: bool = False) -> None:
        """Take over the weights."""
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")  # so it draws nothing
        self.weight = head.weight
        self.scale = nn.Parameter(head.weight.new_tensor(scale)) if learned else scale

    def cosines(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the cosines [N, C] of features [N, D] with weights [C, D], by default the head's own."""
        weight = self.weight if weight is None else weight
        return F.linear(F.normalize(x, eps=SHORTEST), F.normalize(weight, eps=SHORTEST))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.scale * self.cosines(x)
