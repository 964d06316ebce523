"""The head of PODNet with several weight vectors per class, and the k-means that initializes these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.device import send
from clbench.models.network import SHORTEST, CosineHead

ROUNDS = 20  # iterations of k-means


class ProxyHead(CosineHead):
    """Logits [N, C] of features [N, D]: `scale` times the average of a sample's cosines with a class's K proxies.

    The average is weighted by the softmax of the cosines. The weights are [C, K, D]. The first proxy of each class
    starts as its weights in a linear head. The others are drawn as torch draws the weights of linear layers.

    Args:
        head: the linear head.
        scale: the initial value of the learned scale.
        proxies: K.
    """

    def __init__(self, head: nn.Linear, scale: float, proxies: int) -> None:
        """Copy the linear head's weights to the first proxies, and draw the others."""
        super().__init__(head, scale, learned=True)
        first = head.weight.detach()
        others = torch.empty(len(first), proxies - 1, head.in_features, dtype=first.dtype, device=first.device)
        bound = head.in_features**-0.5
        self.weight = nn.Parameter(torch.cat([first[:, None], others.uniform_(-bound, bound)], 1))

    def cosines(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return averages [N, C] of cosines of features [N, D] with weights [C, K, D], by default the head's own."""
        weight = self.weight if weight is None else weight
        proxies = F.normalize(weight, dim=2, eps=SHORTEST).flatten(0, 1)
        cosines = torch.unflatten(F.linear(F.normalize(x, eps=SHORTEST), proxies), 1, weight.shape[:2])
        averages: Tensor = (cosines.softmax(2) * cosines).sum(2)
        return averages


def clustered(features: Tensor, groups: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the centers [G, K, D] of K clusters in each of G groups of features, by k-means.

    Centers start at K random features of the group; a group with fewer features repeats one. A cluster without features
    keeps its center. No value is read back from the device.

    Args:
        features: [N, D].
        groups: whether each feature is in each group, bool [N, G].
        count: K.
        generator: draws the first centers.
    """
    draws = send(torch.rand(len(features), generator=generator, dtype=torch.float64), features.device)
    order = draws.expand(groups.shape[1], -1).masked_fill(~groups.T, -1.0)
    top_draws, starts = order.topk(min(count, len(features)), 1)
    starts = torch.where(top_draws < 0, starts[:, :1], starts)
    centers = features[torch.cat([starts, starts[:, :1].expand(-1, count - starts.shape[1])], 1)]
    for _ in range(ROUNDS):
        flat = centers.flatten(0, 1)
        nearness = torch.unflatten(features @ flat.T - flat.square().sum(1) / 2, 1, centers.shape[:2])
        belongs = F.one_hot(nearness.argmax(2), count) * groups[:, :, None]
        sizes = belongs.sum(0)
        sums = torch.einsum("ngk,nd->gkd", belongs.to(features.dtype), features)
        centers = torch.where(sizes[:, :, None] > 0, sums / sizes.clamp(min=1)[:, :, None], centers)
    return centers
