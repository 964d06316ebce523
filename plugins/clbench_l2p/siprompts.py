"""S-iPrompts (Wang et al. 2022, arXiv 2207.12819): a prompt and a head for each task, chosen by the nearest centroid.

    logits of task t = head_t(class token of the frozen network on [class token; prompt_t; tokens of x])
    after task t: K centroids of the frozen network's features of its samples, scaled to length 1, by k-means
    test: the part of the given task, else of the learned task with the centroid nearest to the features of x

The paper learns domains one after another (scenario `domain`), where each task has all classes and there is a head of
all classes for each. Nothing is shared between tasks but the frozen network, and the loss is the cross-entropy alone.
It also works in the other scenarios. The paper's other method, S-liPrompts, needs CLIP and is left out.

The authors' code (iamwangyabin/S-Prompts) was read; of the paper, its abstract and figures. Details and differences:

- The nearest centroid has the smallest sum of absolute differences in the code, while its k-means minimizes squared
  ones: `distance`.
- The code computes the features for k-means on augmented images; here they are computed on plain ones. The code uses
  scikit-learn's k-means. As there, k-means starts ten times by k-means++ and the best result counts.
- A prompt is initialized like the weights of a linear layer from D to L, uniform within 1/sqrt(D). Prompts have no
  position embedding. Both are as in the code.
- The code predicts with one pass for the inferred task. Here, the parts of all tasks are computed. The parts never
  change, so clbench can store their predictions. The other ways to infer a task need all predictions.
- Weight decay is 5e-4 in the first task and 2e-4 later. `recipe=published` has 2e-4 for all tasks, and the budget is
  that for CORe50. The repository's configurations are for S-liPrompts; only that for CDDB has the name of S-iPrompts,
  with 10 epochs.
- The network in the code is timm's ViT-B/16 (`vit_base_patch16_224`).

With `base = task1`, the first half of the first task's steps trains the network and the task's head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from clbench import Batch, Network, Samples, StreamInfo, Task
from clbench.strategy.gaussians import features_of
from clbench.strategy.per_task import PerTaskStrategy
from clbench.strategy.prompts import PromptedStrategy
from clbench_l2p import SIPromptsOptions

STARTS = 10  # runs of k-means, of which the best is used, as in scikit-learn when the authors' code was written
ROUNDS = 300


class SIPrompts(PromptedStrategy, PerTaskStrategy):
    """A frozen transformer, and for each task a prompt [L, D], a head and centroids [K, D] (`prototype_t`)."""

    method = "s-iprompts"
    roles = (("prompts.*", "prompts"), *PerTaskStrategy.roles)
    parts_final = loss_is_mean = True
    options: SIPromptsOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SIPromptsOptions | None = None) -> None:
        """Start with no prompts; SpecError if the model has no tokens."""
        options = options if options is not None else SIPromptsOptions()
        super().__init__(model, stream_info, options)
        self.prompts = nn.ParameterList()
        self.distance_order = {"l1": 1.0, "l2": 2.0}[options.distance]

    def grow(self, task: Task) -> None:
        """Add the task's head and prompt."""
        PerTaskStrategy.before_task(self, task)
        prompt = self.parameter(self.options.length, self.model.head.in_features)
        bound = 1 / math.sqrt(prompt.shape[1])
        self.prompts.append(nn.init.uniform_(prompt, -bound, bound))

    def current_head(self) -> nn.Module:
        """Return the newest head."""
        return self.heads[-1]

    def learning(self) -> Iterable[nn.Parameter]:
        """Return the newest prompt."""
        return (self.prompts[-1],)

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return nothing: training needs no features without prompts."""
        return {}

    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the newest part."""
        return self.cross_entropy(self.forward_task(batch.x, batch.task), batch)

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] with the task's prompt and head; while the network is trained, without prompts."""
        logits: Tensor = self.heads[task](self.prompted_features(x, task) if self.prompted else self.model.features(x))
        return logits

    def prompted_features(self, x: Tensor, task: int) -> Tensor:
        """Return features [N, D] with the prompt of a task after the class token."""
        tokens = self.model.embed(x)
        prompt = self.prompts[task].expand(len(tokens), -1, -1)
        return self.model.pooled(self.model.encode(torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], 1)))

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] without prompts."""
        return self.model.features(x)

    def class_means(self, samples: Samples) -> Tensor:
        """Return the centroids [K, D] of raw samples, which replace class means here."""
        features = torch.cat([part for _, part in features_of(self, samples, self.inference_features)])
        return k_means(features, self.options.clusters, self.stream_info.generator)


def k_means(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return centroids [min(K, N), D] of points [N, D] with a small sum of squared distances, in the points' dtype.

    Each of `STARTS` starts chooses points by k-means++ and takes up to `ROUNDS` rounds, in float64. A centroid without
    points stays where it is. Random numbers are drawn on the CPU.

    Args:
        points: at least one. On the meta device, where only shapes are counted, there are no rounds.
        clusters: K.
        generator: of the CPU.
    """
    count = min(clusters, len(points))
    if points.is_meta:
        return points[:count]
    doubles = points.double()
    best, lowest = doubles[:count], math.inf
    for _ in range(STARTS):
        centroids = first_centroids(doubles, count, generator)
        nearest = squared_distances(doubles, centroids).argmin(1)
        for _ in range(ROUNDS):
            members = torch.nn.functional.one_hot(nearest, count).to(doubles)
            sizes = members.sum(0)[:, None]
            centroids = torch.where(sizes > 0, members.T @ doubles / sizes.clamp_min(1), centroids)
            previous, nearest = nearest, squared_distances(doubles, centroids).argmin(1)
            if torch.equal(previous, nearest):
                break
        total = float(squared_distances(doubles, centroids).amin(1).sum())
        if total < lowest:
            best, lowest = centroids, total
    return best.to(points.dtype)


def first_centroids(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return K of the points [N, D], drawn in turn in proportion to squared distance to earlier ones (k-means++)."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        distances = squared_distances(points, points[chosen]).amin(1).cpu()
        weights = distances if bool(distances.any()) else torch.ones_like(distances)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return points[chosen]


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the squared distances [N, K] between points [N, D] and centroids [K, D]."""
    return torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist").square()
