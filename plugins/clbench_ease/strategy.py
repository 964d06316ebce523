"""Expandable subspace ensemble (Zhou et al. 2024, arXiv 2403.12030): adapters per task, one classifier on all of them.

Task t trains adapters of its own on a frozen network. Its head sigma cos(f, w) for its own classes is not used
afterward, and the next task's head replaces it. Then each of its classes gets a prototype: its mean features in the
subspace of each task so far, concatenated. The prototypes of old classes in new subspaces are combined from those of
similar classes (`prototypes`), so no old samples are needed. With f_j the features by the adapters of task j, the logit
of a class c of task i after T tasks is

    cos(f_i, P_c[i]) + alpha / (T - 1) sum over j != i of cos(f_j, P_c[j])  (+ beta cos(f, P_c) without adapters)

Adapters do not change after their task. The task is neither needed nor inferred, and each prediction takes T forward
passes.

The paper, its code (sun-hailong/CVPR24-Ease; LAMDA-PILOT has the same) and clbench differ:

- As we understand the paper, the missing prototype of an old class is combined once, from the newest task's classes
  (`donors = next`). The code can do that (`recalc_sim = false`). The configurations that we saw combine it from the
  classes of all later tasks, and recompute it after each task (`donors = later`, the default here).
- The code divides alpha by the number of other subspaces, as here.
- The network's own features (`beta`, there `use_init_ptm`) are left out for CIFAR-100, with alpha = 0.1; the code's
  configurations for CUB have beta = 1 and alpha = 0.005.
- Their adapters are for vision transformers (`bottleneck`). `adapter = lora` is an addition of clbench for other
  networks.
- Their training configuration is SGD with momentum 0.9, weight decay 5e-4, lr 0.025 (CUB: 0.005) with a cosine
  schedule, 20 epochs and batches of 48 (16).
- In the paper, every class belongs to one task. Here, a class that returns (scenario `domain`) has a prototype from
  each of its tasks, and its logit is the largest of theirs.

The paper's network is pretrained (`base = pretrained`). With `base = task1`, the first half of the first task's steps
trains the network and its own head on the task's classes, as sequential fine-tuning does. The second half trains
adapters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.device import send
from clbench.strategy.gaussians import class_means
from clbench.strategy.per_task import output_places, placed
from clbench_ease import WIDTHS, EASEOptions
from clbench_ease.adapted import TaskAdapters
from clbench_ease.prototypes import completed, cosines, subspace_weights


class CosineHead(nn.Module):
    """Logits sigma cos(f, w) of one task's classes, -inf for all other outputs.

    Args:
        features: width D of its input.
        classes: the task's outputs.
        outputs: number of all outputs, C.
        like: a parameter whose device and dtype the head takes.
    """

    place: Tensor

    def __init__(self, features: int, classes: tuple[int, ...], outputs: int, like: Tensor) -> None:
        """Draw the weights, uniform within 1/√D; sigma starts at 1, as in the code."""
        super().__init__()
        bound = 1 / math.sqrt(features)
        self.weight = nn.Parameter(like.new_empty(len(classes), features).uniform_(-bound, bound))
        self.sigma = nn.Parameter(like.new_ones(1))
        # A buffer, not an attribute: stacked seeds may have their classes in different orders.
        self.register_buffer("place", output_places(classes, outputs).to(like.device), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [N, C] of features [N, D]."""
        logits = self.sigma * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))
        return placed(logits, self.place)


class EASE(TaskAdapters):
    """A frozen network, adapters per task, and the newest task's head.

    The buffers describe the K classes of T learned tasks, in the order of the tasks. `labels` [K] are their outputs,
    and `prototypes` [K, T, D] their prototypes, with missing ones filled in. With `beta`, `plain` [K, D] are the
    prototypes without adapters.
    """

    method, widths = "ease", WIDTHS
    head_parameters = ("head.*", "model.head.*")
    inputs_only_through_model = loss_is_mean = True
    roles = (("*.adapters.*", "adapters"), ("*.lora_*", "adapters"), ("head.*", "heads"), ("prototypes", "prototypes"),
             ("plain", "prototypes"), ("labels", "prototypes"))
    options: EASEOptions
    head: CosineHead
    labels: Tensor
    prototypes: Tensor
    plain: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: EASEOptions | None = None) -> None:
        """Install the adapted layers; SpecError if they do not fit the model."""
        options = options if options is not None else EASEOptions()
        super().__init__(model, stream_info, options)
        like = model.head.weight.detach()
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64, device=like.device))
        self.register_buffer("prototypes", like.new_empty(0, 0, like.shape[1]))
        self.register_buffer("plain", like.new_empty(0, like.shape[1]))
        self.sizes: list[int] = []  # number of classes of each learned task

    def before_task(self, task: Task) -> None:
        """Add adapters and replace the head by a new one; train these, or the network if task 0 is to train it."""
        self.requires_grad_(False)
        weight = self.model.head.weight
        self.head = CosineHead(weight.shape[1], task.classes, self.stream_info.classes, weight.detach())
        for layer in self.adapted.values():
            layer.add()
        self._learn(base=self.phases(task) == 2)

    def choose_head(self, base: bool) -> None:
        """Train the network's own head together with the network, and otherwise the newest adapters' head."""
        self.model.head.requires_grad_(base)
        self.head.requires_grad_(not base)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the newest adapters' head, or of the network while the network is trained."""
        if self.base_learns:
            return self.cross_entropy(self.model(batch.x), batch)
        with self.using(-1):
            features = self.model.features(batch.x)
        return self.cross_entropy(self.head(features), batch)

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Compute the task's prototypes in all subspaces, and complete those of old classes in the new subspace."""
        self.sizes.append(len(task.classes))
        tasks, old_count = len(self.sizes), len(self.labels)
        classes = send(torch.tensor(task.classes, device="cpu"), self.labels.device)
        means, _ = class_means(self, task.train, lambda x: self.subspaces(x, tasks).flatten(1))
        # The mean of a class without samples is NaN; 0 in its place gives cosines of 0.
        class_prototypes = means.to(self.prototypes)[classes].nan_to_num(nan=0.0)
        class_prototypes = class_prototypes.view(len(class_prototypes), -1, self.model.head.in_features)
        self.labels = torch.cat([self.labels, classes])
        if self.options.beta:
            self.plain = torch.cat([self.plain, class_prototypes[:, -1]])
        prototypes = class_prototypes.new_zeros(len(self.labels), tasks, class_prototypes.shape[2])
        prototypes[:old_count, :tasks - 1] = self.prototypes
        prototypes[old_count:] = class_prototypes[:, :tasks]
        self.prototypes = completed(prototypes, self.sizes, self.options.donors)

    def subspaces(self, x: Tensor, tasks: int) -> Tensor:
        """Return features [N, T, D] by the adapters of the first T tasks; with `beta`, add those without adapters."""
        hidden = self.model.run(x, self.model.start, self.first)  # layers before the adapters run only once
        features = []
        for task in [*range(tasks), *([None] if self.options.beta else [])]:
            with self.using(task):
                features.append(self.model.run(hidden, self.first, None))
        return torch.stack(features, 1)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C], -inf for classes not learned; the starting network's if no suitable task is learned."""
        if not self.sizes or (task is not None and task >= len(self.sizes)):
            return super().forward(x, task)
        # Cosines are close to each other, so they are computed in float64, which autocast does not reduce.
        features = self.subspaces(x, len(self.sizes)).double().transpose(0, 1)
        prototypes = self.prototypes.double()
        weights = subspace_weights(self.sizes, self.options.alpha, prototypes)
        scores = (cosines(features[:len(self.sizes)], prototypes) * weights.T[:, None]).sum(0)
        if self.options.beta:
            scores = scores + self.options.beta * cosines(features[-1:], self.plain.double()[:, None])[0]
        logits = scores.new_full((len(x), self.stream_info.classes), float("-inf"))
        return logits.scatter_reduce(1, self.labels.expand(len(x), -1), scores, "amax")
