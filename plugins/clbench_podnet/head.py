"""The head of PODNet with several weight vectors per class, and the k-means that initializes these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def clustered(features: Tensor, draws: Tensor, count: int) -> Tensor:
    """Return the centers [K, D] of K clusters of features [N, D], by k-means.

    Centers start at the K features with the largest random numbers `draws` [N]; fewer features repeat one. A cluster
    without features keeps its center.
    """
    starts = draws.topk(min(count, len(features))).indices
    centers = features[torch.cat([starts, starts[:1].expand(count - len(starts))])]
    for _ in range(ROUNDS):
        nearness = features @ centers.T - centers.square().sum(1) / 2
        belongs = F.one_hot(nearness.argmax(1), count).to(features.dtype)
        sizes = belongs.sum(0)[:, None]
        centers = torch.where(sizes > 0, belongs.T @ features / sizes.clamp(min=1), centers)
    return centers
