"""SLCA++ (Zhang et al. 2024, arXiv 2408.08295): SLCA with low-rank adapters and a symmetric cross-entropy.

    loss = cross * cross-entropy + reverse * (-log 1e-4) * mean(1 - p(label))

The second term is the reverse cross-entropy: the roles of prediction and label are exchanged, and the logarithm of 0 is
that of 1e-4. Both are over the task's own classes (`outputs`). One set of adapters learns all tasks (the hybrid slow
learner), together with biases, norms and the class token. Learning rates are relative to that of the head:

    adapters   `first_slow` in the first task, later `slow`
    biases, norms and class token   `slow`

After each task, the head is realigned as by `slca`, with another correction for classes that were learned longer ago.
With t - i the number of tasks since a class was learned, a drawn feature is divided by 1 + (s + u) (t - i), where s is
`align_growth` and u is uniform in [-0.01, 0.01). To predict, the class's weights are multiplied by 1 + s (t - i).

The authors' code (GengDavid/SLCA, models/slca_pp.py, convs/vits.py) was read; of the paper, its abstract and the
README's summary. Details and differences:

- Adapters of rank 4 are on queries, keys, values and both layers of the MLP, and their output is multiplied by 0.8. A
  starts as the first right singular vectors of the layer's weights, B at 0. The code has one adapter for a layer of
  queries, keys and values together. Here, each of the three has one.
- `cross` and `reverse` are 1 and 0.1 for CIFAR-100 and CUB, 0.5 and 0.5 for ImageNet-R and Cars.
- The code keeps probabilities above 1e-7 in the second term, which is left out here.
- The learning rate falls along a cosine to a hundredth of that of the head. In `recipe=published` it falls to 0.
- The code assumes that all tasks have equally many classes. Here, the actual task of each class is used.
- The code trains the class token of a vision transformer. A network without one has none to train, and one without
  attention has adapters on all layers. The latter is an addition of clbench.

The paper starts from pretrained weights. With `base = task1`, the first half of the first task's steps trains the
network and the head, all at the rate of the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from clbench_lora.shared_adapters import SummedLoRA
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.strategy.alignment import Aligned
from clbench_slca import SLCAPlusOptions

LOG_ZERO = math.log(1e-4)  # what stands for the logarithm of 0
SPREAD = 0.02  # width of the interval of u
CLASS_TOKENS = ("token", "cls_token", "class_token")  # names of the parameter in clbench, timm and torchvision


class SLCAPlus(Aligned, SummedLoRA):
    """A frozen network with one trained adapter on each selected layer, and a head that is realigned."""

    method = "slca++"
    inputs_only_through_model = loss_is_mean = True
    roles = (*Aligned.roles, *SummedLoRA.roles)
    options: SLCAPlusOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SLCAPlusOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        self.later = False  # whether the task is not the first
        super().__init__(model, stream_info, options if options is not None else SLCAPlusOptions())

    def grows(self, task: Task) -> bool:
        """Return whether it is the first task."""
        return task.index == 0

    def before_task(self, task: Task) -> None:
        """Store whether this is the first task, on which the learning rates depend."""
        self.later = task.index > 0
        super().before_task(task)

    def begin(self, task: Task) -> None:
        """Train adapters from now on. In the first task, A starts as the main directions of the layer's weight."""
        for layer in () if self.later else self.adapted.values():
            a = layer.parameters_of(0)["lora_A.weight"]
            directions = torch.linalg.svd(layer.base_layer.weight.detach().flatten(1), full_matrices=False).Vh
            a.data.copy_(directions[:len(a)].view_as(a))
        super().begin(task)

    def _learn(self, base: bool) -> None:
        """Train W and the head, or adapters, biases, norms, the class token and the head."""
        super()._learn(base)
        for parameter in () if base else tuned_parameters(self.model.blocks):
            parameter.requires_grad_(True)

    def learning_rates(self) -> Mapping[str, float]:
        """Return factors for the head, the adapters and all other parameters; only the head's while W is trained."""
        head, slow = {"model.head.*": self.options.head_rate}, self.options.slow
        if self.base_learns:
            return head
        return {**head, "*.lora_*": slow if self.later else self.options.first_slow, "model.*": slow}

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return nothing, because biases and norms before the first adapted layer are trained too."""
        return {}

    def loss(self, batch: Batch) -> Tensor:
        """Return the symmetric cross-entropy; the plain one while W is trained."""
        logits = self(batch.x, batch.task)
        loss = self.cross_entropy(logits, batch)
        if self.base_learns:
            return loss
        probability = self.mask(logits, batch.tasks).softmax(1).gather(1, batch.y[:, None])
        return self.options.cross * loss - self.options.reverse * LOG_ZERO * (1 - probability).mean()

    @property
    def ages(self) -> Tensor:
        """Return for each class so far the number of tasks from that of its Gaussian to the latest with one, [K]."""
        return max(self.met_in) - torch.tensor(self.met_in)

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Draw features [K n, D] of all classes so far, scaled down for older classes, and the row of each feature."""
        features, rows = super()._draw()
        noise = torch.rand(len(features), generator=self.stream_info.generator) - 0.5
        growth = self.options.align_growth + SPREAD * noise
        lengths = 1 + growth * self.ages.repeat_interleave(self.options.align_samples)
        return features / lengths.to(features)[:, None], rows

    def predicting_weight(self, weight: Tensor) -> Tensor:
        """Return realigned weights [K, D], scaled up for older classes."""
        return weight * (1 + self.options.align_growth * self.ages).to(weight)[:, None]


def tuned_parameters(blocks: nn.Module) -> Iterable[nn.Parameter]:
    """Return the biases, the parameters of norms and the class token."""
    for module in blocks.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or "bias" in name or name in CLASS_TOKENS:
                yield parameter
