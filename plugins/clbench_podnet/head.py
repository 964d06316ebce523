"""The head of PODNet, several weight vectors per class, and the clusters of features that these begin with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.device import send
from clbench.models.network import SHORTEST, CosineHead

ROUNDS = 20  # of k-means


class ProxyHead(CosineHead):
    """Logits [N, C] of features [N, D]: `scale` times the average of a sample's cosines with a class's K proxies.

    The average is weighted by the softmax of the cosines. The weights are [C, K, D]; the first proxies begin as the
    weights of a linear head, the others are drawn as torch draws these.

    Args:
        head: the linear head.
        scale: what the learned scale begins with.
        proxies: K.
    """

    def __init__(self, head: nn.Linear, scale: float, proxies: int) -> None:
        """Take over the weights, and draw the others."""
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

    Centers begin at K random features of the group; a group with fewer features repeats one. A cluster without features
    keeps its center. Nothing is read back from the device.

    Args:
        features: [N, D].
        groups: whether each feature is in each group, bool [N, G].
        count: K.
        generator: draws the first centers.
    """
    draws = send(torch.rand(len(features), generator=generator, dtype=torch.float64), features.device)
    order = draws.expand(groups.shape[1], -1).masked_fill(~groups.T, -1.0)
    best, first = order.topk(min(count, len(features)), 1)
    first = torch.where(best < 0, first[:, :1], first)
    centers = features[torch.cat([first, first[:, :1].expand(-1, count - first.shape[1])], 1)]
    for _ in range(ROUNDS):
        flat = centers.flatten(0, 1)
        nearness = torch.unflatten(features @ flat.T - flat.square().sum(1) / 2, 1, centers.shape[:2])
        belongs = F.one_hot(nearness.argmax(2), count) * groups[:, :, None]
        sizes = belongs.sum(0)
        sums = torch.einsum("ngk,nd->gkd", belongs.to(features.dtype), features)
        centers = torch.where(sizes[:, :, None] > 0, sums / sizes.clamp(min=1)[:, :, None], centers)
    return centers
