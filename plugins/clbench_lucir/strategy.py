"""LUCIR (Hou et al. 2019, CVPR, "Learning a Unified Classifier Incrementally via Rebalancing").

Logits are eta times the cosine of a sample's features f and a class's weights w_c, without bias. New classes thus
cannot dominate through longer weights. eta is learned. The loss on new samples and exemplars is as follows. Each term
is a mean over its samples.

    cross-entropy over all classes so far
    + lambda (1 - cos(f, f')), with f' the old network's features,  lambda = lambda_base sqrt(n_old / n_new)
    + for samples of old classes and each of the K new classes c with the largest cosines: max(0, m - cos_y + cos_c)

Here, lambda_base = 5, K = 2, m = 0.5, and n counts classes. The weights of old classes no longer change: while a task
is trained, they are the old network's. The last ReLU before the head is removed, so that features have both signs.

Reference codes differ:

- The authors' code, FACIL and PyCIL have lambda as above, which PyCIL says is not the paper's definition. Mammoth takes
  the root of the number of old tasks.
- The authors' code can initialize a new class's weights with its mean normalized features, at the mean length of old
  weights. Mammoth does so by default (`imprint`); FACIL and PyCIL do not.
- FACIL removes the ReLU of resnets only and warns about other models. Here, a ReLU that ends a model's last block is
  removed (`last_relu`), and a note says if there is none.
- All codes begin with eta = 1.
- The authors' code has a separate script (CBF) for fine-tuning on equally many samples of new and old classes. In
  Mammoth, such fine-tuning is on by default, of the head alone and in addition to the budget. It is not implemented
  here.
- The paper stores 20 exemplars per class (`per_class = 20`); by default, the classes so far share `capacity` here.
- Exemplars are herded in all codes but FACIL, and appended to the task's samples. Here they are mixed in
  (clbench.strategy.herding).

The published configuration for CIFAR-100 is SGD with learning rate 0.1, momentum 0.9 and weight decay 5e-4, for 160
epochs. The rate falls to a tenth after 80 and after 120 epochs. Weight decay on ImageNet is 1e-4. Here, eta always has
a learning rate of its own (`eta_lr`). Cosines are at most 1, so a softmax needs an eta of about 10, which Adam at 1e-3
would take ten thousand steps to reach. Everything else follows the training configuration.

Beyond the paper: if the task is known, labels compete within a task. No new class is then a negative of an old sample,
and the ranking loss is 0. Outputs that are both old and the task's own (scenario `domain`, classes that return) are not
fixed and count in both n, and their samples are not ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, Options, PhaseSpec, StreamInfo, Task
from clbench.models.network import Block, CosineHead
from clbench.strategy.distillation import Distilled
from clbench.strategy.gaussians import features_of
from clbench.strategy.herding import HerdedMemory
from clbench_lucir import LUCIROptions


class CosineReplay(HerdedMemory, Distilled):
    """Base of methods that replay exemplars with a cosine head, whose weights of old classes do not change.

    Subclasses define `imprint` and use `weight` in their loss. The options have the fields `eta_lr`, `imprint` and
    `last_relu` of `LUCIROptions`.
    """

    roles = (*HerdedMemory.roles, *Distilled.roles)
    options: Any

    def __init__(self, model: Network, stream_info: StreamInfo, options: Any, head: CosineHead) -> None:
        """Replace the network's head before the network is copied, and start with no exemplars."""
        model.head = head
        removed = options.last_relu == "keep" or remove_last_relu(model)
        super().__init__(model, stream_info, options)
        if not removed:
            self.notes.append(f"{self.method}: the model's last block does not end in a ReLU; its features are as they "
                              "are")
        self.met: list[int] = []  # classes of the tasks so far, including the current one
        self.fixed = 0  # number of these classes whose weights no longer change
        self.rate = 1.0  # factor of the learning rate for eta

    @property
    def head(self) -> CosineHead:
        """Return the network's head."""
        assert isinstance(self.model.head, CosineHead)
        return self.model.head

    def before_task(self, task: Task) -> None:
        """Count the fixed weights, and initialize the weights of new classes by their features if `imprint` is set."""
        super().before_task(task)
        self.fixed = len(set(self.met) - set(task.classes))
        new_classes = [c for c in task.classes if c not in self.met]
        if self.met and new_classes and self.options.imprint:
            self.imprint(task, new_classes)
        self.met = self.met + new_classes

    def imprint(self, task: Task, new: list[int]) -> None:
        """Set the weights of new classes from their features."""
        raise NotImplementedError

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Compute the factor that gives eta its own learning rate."""
        self.rate = self.options.eta_lr / phase.lr

    def learning_rates(self) -> Mapping[str, float]:
        """Return the factor of eta's learning rate."""
        return {"model.head.scale": self.rate}

    def trainable(self) -> int:
        """Return the number of trained values: all but the fixed weights of old classes."""
        return super().trainable() - self.fixed * self.head.weight[0].numel()

    @property
    def weight(self) -> Tensor:
        """Return the head's weights [C, ...] for the current task, with those of old classes from the old network."""
        fixed = (self.known.any(0) & ~self.taught).to(self.head.weight.device)  # masks have values in a dry run
        return torch.where(fixed.view(-1, *[1] * (self.head.weight.dim() - 1)), self.old.head.weight, self.head.weight)

    def after_task(self, task: Task) -> None:
        """Restore the weights of old classes, store a copy of the network, and choose exemplars."""
        self.restore_weights(task)
        super().after_task(task)

    def restore_weights(self, task: Task) -> None:
        """Restore the weights of old classes."""
        if task.index:
            with torch.no_grad():
                self.head.weight.copy_(self.weight)


class LUCIR(CosineReplay):
    """Fine-tuning on new samples and exemplars with a cosine head, the less-forget loss and the ranking loss."""

    method = "lucir"
    options: LUCIROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no exemplars."""
        options = options or LUCIROptions()
        assert isinstance(options, LUCIROptions)
        super().__init__(model, stream_info, options, CosineHead(model.head, options.eta, learned=True))

    @torch.no_grad()
    def imprint(self, task: Task, new: list[int]) -> None:
        """Set the weights of new classes to their mean features, scaled to the average length of old weights."""
        weight = self.head.weight
        total = torch.zeros_like(weight)
        for part, features in features_of(self, task.train, self.unit_features):
            total += F.one_hot(part.y, len(weight)).to(features.dtype).T @ features
        rows = F.normalize(total) * weight[self.met].norm(dim=1).mean()
        chosen = torch.zeros_like(self.taught)
        chosen[new] = True
        weight.copy_(torch.where((chosen.to(weight.device) & (total != 0).any(1))[:, None], rows, weight))

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of cross-entropy, less-forget loss and margin ranking loss."""
        features = self.model.features(batch.x)
        cosines = self.head.cosines(features, self.weight if batch.task else None)
        loss = self.cross_entropy(self.head.scale * cosines, batch)
        if not batch.task:
            return loss
        with torch.no_grad():
            old_features = self.old.features(batch.x)
        old_count, new_count = self.class_counts()
        strength = self.options.lambda_base * (old_count / new_count).sqrt()
        less_forget_loss = (1 - F.cosine_similarity(features, old_features)).mean()
        return loss + strength * less_forget_loss + self.options.ranking * self.ranking(cosines, batch)

    def ranking(self, cosines: Tensor, batch: Batch) -> Tensor:
        """Return the margin ranking loss of cosines [N, C], a scalar; 0 if no sample is of an old class."""
        competing = self.taught & self.class_mask.index_select(0, batch.tasks)
        nearest = cosines.masked_fill(~competing, float("-inf")).topk(min(self.options.negatives, cosines.shape[1]))[0]
        target = cosines.gather(1, batch.y[:, None])
        counted = ~self.taught.index_select(0, batch.y)[:, None] & nearest.isfinite()
        losses = (self.options.margin - target + nearest).clamp(min=0)
        return (losses * counted).sum() / counted.sum().clamp(min=1)


def remove_last_relu(model: Network) -> bool:
    """Remove the ReLU at the end of a network's last block, before pooling; return whether there is one."""
    block = model.blocks[-1]
    if not isinstance(block, Block):
        return False
    if isinstance(block.activation, nn.ReLU):
        block.activation = nn.Identity()
        return True
    if isinstance(block.activation, nn.Sequential):
        for index, module in enumerate(block.activation):
            if isinstance(module, nn.ReLU):
                block.activation[index] = nn.Identity()
                return True
    return False
