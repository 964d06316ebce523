"""LoRA-Sub, or LoRA-DRS (Liu & Chang 2025, arXiv 2503.18985): adapters that change in a drift-resistant space.

Before task t > 1, its samples are passed through W - sum_{i < t} B_i A_i, the network with the earlier adapters
subtracted. The strongest directions of a layer's inputs in this network span the space that the task may use: the
fewest directions that hold a share of the inputs' energy (`threshold`). P is the projector onto this space. Each step
dA of the optimizer becomes dA P, so that

    h = W x + sum_{i <= t} B_i A_i x,    A_t = A_start + (sum of steps) P

The loss is the cross-entropy over the task's own classes (`outputs`) plus `strength` times the augmented triplet loss
of the unit features f of a batch:

    mean of max(0, |f - farthest of its class| - |f - nearest of another class| + margin)

The mean features of earlier tasks' classes, scaled to length 1, count as features of other classes too. The class whose
mean is nearest among unit features is predicted. Means are computed after their task and are not updated later.

This follows LibContinual's `lora_sub.py` (RL-VIG), which is adapted from the authors' code (scarlet0703/LoRA-Sub-DRS).
Of the latter, only copies of its main file, triplet loss and attention were available. They agree, except that in the
copy of the attention, B starts with one random number per column (standard deviation 0.01). In LibContinual and here, B
starts at 0. If these codes go beyond the paper, the defaults here follow the codes:

- P is divided by its Frobenius norm, the square root of the dimension of its space (`scaled`). The paper's P P^T g has
  no such factor.
- B is projected as well, by the P of the inputs (`project_b`). In k and v, there are as many outputs as inputs. If the
  numbers differ, no projection is possible, and B is trained without one.
- The step that Adam computes is projected, not the gradient. Here this holds for any optimizer. During training, the
  parameters take unprojected steps, and the network uses their projection. After the task, the parameters are set to
  their projection.

The codes adapt k and v with rank 10. They train with Adam at learning rate 5e-4, and the heads at 2e-3 (ImageNet-R:
5e-4, with margin 2 and strength 0.2). The rates fall along a quarter of a cosine, once per epoch. `recipe=published` is
the configuration for CIFAR-100. The codes have a head per task. Here it is the model's head, in which the rows of other
classes are not trained; predictions need no head. The codes compute the space from augmented samples; here samples are
not augmented.

Beyond the paper: the mean of a class that returns is that of all its samples, each with its features after its own
task. In the triplet loss, this mean does not count as another class for the class's own samples. Until the first task
ends, the head predicts.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, StreamInfo, Task
from clbench.strategy.gaussians import class_means
from clbench.strategy.regularization import slot
from clbench.strategy.subspace import grown
from clbench_lora import LoRASubOptions
from clbench_lora.layers import LoRALayer
from clbench_lora.shared_adapters import SummedLoRA, adapter_moments

TINY = 1e-12  # lower bound of squared distances, because a square root has no finite gradient at 0


class LoRASub(SummedLoRA):
    """A frozen backbone W with adapters for each task. A head is used in training, and class means predict.

    `means` [C, D] are the mean features of classes, and `counts` [C] the number of their samples. While a task is
    trained, the buffers `space__*` and `start__*` are a layer's P and A_start. They are recomputed for each task and
    not stored.
    """

    method = "lora-sub"
    inputs_only_through_model = True
    roles = (("means", "prototypes"), ("counts", "prototypes"), *SummedLoRA.roles)
    options: LoRASubOptions
    means: Tensor
    counts: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: LoRASubOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else LoRASubOptions())
        like = model.head.weight
        self.projecting = False  # whether the newest adapters are projected onto their spaces
        self.learned = 0  # number of learned tasks
        self.register_buffer("means", like.new_zeros(stream_info.classes, model.head.in_features))
        self.register_buffer("counts", torch.zeros(stream_info.classes, dtype=torch.int64, device=like.device))
        for name, layer in self.adapted.items():
            size = layer.base_layer.weight[0].numel()
            self.register_buffer(f"space__{slot(name)}", like.new_zeros(size, size), persistent=False)
            self.register_buffer(f"start__{slot(name)}", like.new_zeros(layer.rank, size), persistent=False)

    @torch.no_grad()
    def begin(self, task: Task) -> None:
        """Train A_t and B_t from now on; from the second task on, compute the spaces that they are projected onto."""
        super().begin(task)
        self.projecting = task.index > 0
        if not self.projecting:
            return
        subtracted = {}
        for name, layer in self.adapted.items():
            for i, b in enumerate(layer.lora_B):
                subtracted[f"{name}.lora_B.{i}.weight"] = -b.get_parameter("weight")
        moments = adapter_moments(self, task.train, lambda x: self.model.features(x, subtracted))
        for name, moment in moments.items():
            space = grown(moment, torch.zeros_like(moment), self.options.threshold)
            if self.options.scaled:
                space = space / space.norm().clamp(min=1)  # the norm is 0 if all inputs are 0
            start = self.adapted[name].parameters_of(-1)["lora_A.weight"].flatten(1)
            self.get_buffer(f"space__{slot(name)}").copy_(space)
            self.get_buffer(f"start__{slot(name)}").copy_(start)

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Set the newest adapters to their projections, and update the means of the task's classes."""
        for name, weight in self.projected().items():
            self.model.get_parameter(name).copy_(weight)
        self.projecting = False
        self.learned = task.index + 1
        means, counts = class_means(self, task.train, self.model.features)
        total = (self.counts + counts).clamp(min=1)
        added = (means.nan_to_num() - self.means) * (counts / total)[:, None]
        self.means += added.to(self.means.dtype)
        self.counts += counts

    def projected(self) -> dict[str, Tensor]:
        """Return the newest A and B after projection, by name in the model; empty if nothing is projected.

        Gradients reach the parameters unprojected, so the optimizer computes its step before the projection.
        """
        tensors: dict[str, Tensor] = {}
        for name, layer in self.adapted.items() if self.projecting else ():
            space, start = getattr(self, f"space__{slot(name)}"), getattr(self, f"start__{slot(name)}")
            a, b = (cast(Tensor, part[-1].weight) for part in (layer.lora_A, layer.lora_B))
            tensors[f"{name}.lora_A.{len(layer.lora_A) - 1}.weight"] = _seen(
                a, (start + (a.flatten(1) - start) @ space).view_as(a))
            if self.options.project_b and _is_square(layer):
                tensors[f"{name}.lora_B.{len(layer.lora_B) - 1}.weight"] = _seen(b, (space @ b.flatten(1)).view_as(b))
        return tensors

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy over the active outputs, plus the triplet loss once W is frozen."""
        with self.known_first_layer(batch):
            features = self.model.features(batch.x, self.projected())
        loss = self.cross_entropy(self.model.head(features), batch)
        return loss if self.base_learns else loss + self.options.strength * self.triplet(features, batch.y)

    def triplet(self, features: Tensor, y: Tensor) -> Tensor:
        """Return the augmented triplet loss, a scalar, of features [N, D] with labels [N].

        It is computed in float32 at least, because differences of bfloat16 products are mostly rounding errors.
        """
        device = features.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.triplet(features.float(), y)
        unit, means = F.normalize(features), F.normalize(self.means)
        batch_distances = _distances(unit, unit)
        same_class = y[:, None] == y
        farthest = batch_distances.masked_fill(~same_class, 0).amax(1)
        nearest = batch_distances.masked_fill(same_class, math.inf).amin(1)
        other_classes = (self.counts > 0) & (torch.arange(len(means), device=y.device) != y[:, None])
        nearest = torch.minimum(nearest, _distances(unit, means).masked_fill(~other_classes, math.inf).amin(1))
        return F.relu(farthest - nearest + self.options.margin).mean()

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the negative distances [N, C] to unit means, -inf for classes without one.

        For a given task that is not learned yet, and before the first one, return the head's logits.
        """
        features = self.model.features(x, self.projected())
        logits: Tensor = self.model.head(features)
        if task is not None and task >= self.learned:
            return logits
        # Without matrix products, the distances of a sample do not depend on the batch that it is in.
        far = torch.cdist(F.normalize(features), F.normalize(self.means), compute_mode="donot_use_mm_for_euclid_dist")
        near = (-far).masked_fill(self.counts == 0, -math.inf)
        return torch.where(self.counts.any(), near, logits)


def _is_square(layer: LoRALayer) -> bool:
    """Return whether a layer's weight is square as a matrix [out, all other dimensions]."""
    weight = layer.base_layer.weight
    return len(weight) == weight[0].numel()


def _seen(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value`, whose gradient is passed to `parameter` unchanged, as in a straight-through estimator."""
    return value.detach() + (parameter - parameter.detach())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances [N, M] of rows [N, D] and [M, D], at least 1e-6."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp(min=TINY).sqrt()
