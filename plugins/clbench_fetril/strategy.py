"""FeTrIL: features of a new class, shifted to the mean of an old class, replace those of the old class.

The network is frozen after the first task, or from the start with a given base. The mean features m_c of each class are
stored, and nothing else. In a later task, every old class c uses the features of one new class n(c), the one with the
most similar mean:

    pseudo-features of c:  f(x) + m_c - m_n(c)   for each x of class n(c)          (equation 1)

The head of all classes is trained on new features and pseudo-features together.

A batch has the pseudo-features of its new samples, and the loss is the mean cross-entropy over both. The harness draws
batches of new samples, so the number of pseudo-features in a step grows with the number of old classes. PyCIL's code
(models/fetril.py) draws batches of a fixed size from all features of both kinds; the mix of classes is the same. Other
differences:

- The paper's main results have a linear support vector machine for each task instead of a head that is trained by
  gradient steps; it calls the latter FeTrIL with a fully connected layer. PyCIL has both. The support vector
  machine is left out.
- The paper and PyCIL compare means by their cosine; the authors' published code (GregoirePetit/FeTrIL) takes the
  Euclidean distance: `nearest`.
- PyCIL trains the first task at a rate of 0.1, and the head in later tasks at 0.05. Here all tasks have one rate.
- PyCIL computes features without augmentation. Here a batch is augmented if the experiment augments it; means never
  are.
- The paper studies scenario `class`. If the task is known, pseudo-features compete among the outputs of the task in
  which their class came last. A class that comes again is not old in that task, and its mean is that of all samples. If
  it is n(c), the mean of the pseudo-features of c is therefore not exactly m_c.

The paper's first task has half of the classes. With a small first task the frozen features are poor.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, Strategy, StreamInfo, Task
from clbench.strategy.gaussians import features_of
from clbench.strategy.per_task import check_base
from clbench_fetril import FeTrILOptions


class FeTrIL(Strategy):
    """A frozen network whose head is trained on new features and pseudo-features.

    The buffers `sums` [C, D] and `counts` [C] are of the features of each class so far. `nearest` [C] is n(c), and
    `old` [C] marks the classes that have pseudo-features in the current task. `class_tasks` [C] is the latest task of
    each class.
    """

    roles = (("sums", "prototypes"), ("counts", "prototypes"), ("nearest", "counters"), ("old", "counters"),
             ("class_tasks", "counters"))
    inputs_only_through_model = True
    options: FeTrILOptions
    sums: Tensor
    counts: Tensor
    nearest: Tensor
    old: Tensor
    class_tasks: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: FeTrILOptions | None = None) -> None:
        """Start with no classes; freeze the network unless the first task is to train it."""
        super().__init__(model, stream_info, options if options is not None else FeTrILOptions())
        self.notes += check_base("fetril", self.options, stream_info, model)
        self.base_learns = self.options.base == "task1" and model.has_body
        self.model.blocks.requires_grad_(self.base_learns)
        weight = model.head.weight.detach()
        self.register_buffer("sums", torch.zeros_like(weight))
        self.register_buffer("counts", weight.new_zeros(stream_info.classes))
        for name, dtype in (("nearest", torch.int64), ("old", torch.bool), ("class_tasks", torch.int64)):
            self.register_buffer(name, torch.zeros(stream_info.classes, dtype=dtype, device=weight.device))
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the network before its head, unless it is being trained."""
        return () if self.base_learns else (self.model.blocks,)

    @torch.no_grad()
    def before_task(self, task: Task) -> None:
        """From the second task on, find the new class whose features each old class uses."""
        if not task.index:
            return
        self._add_features(task)
        new_mask = torch.zeros_like(self.old)
        new_mask[list(task.classes)] = True
        self.old.copy_((self.counts > 0) & ~new_mask)
        self.nearest.copy_(nearest(self.means, new_mask, self.options.nearest))

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Freeze the network after the first task, and store the means of its classes."""
        if task.index:
            return
        self.base_learns = False
        self.model.blocks.requires_grad_(False)
        self.train(self.training)
        self._add_features(task)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the batch and of its pseudo-features."""
        logits = self.model(batch.x)
        if not batch.task:
            return self.cross_entropy(logits, batch)
        means = self.means
        shifts = F.linear(means - means[self.nearest], self.model.head.weight)  # [C, C], shifts of the logits
        lent = (batch.y[:, None] == self.nearest) & self.old  # [N, C]: whether sample n gives class c a pseudo-feature
        # The sum over outputs of exp(logit + shift) is a product [N, C] of two matrices. Maxima and float64, which MPS
        # does not have, keep it in range.
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        x, shift = logits.to(wide), self.mask(shifts.to(wide), self.class_tasks, len(shifts))
        x_max, shift_max = (part.amax(1, keepdim=True).detach() for part in (x, shift))
        totals = (x - x_max).exp() @ (shift - shift_max).exp().T
        pseudo = totals.log() + x_max + shift_max.T - x - shift.diagonal()
        real = F.cross_entropy(self.mask(logits, batch.tasks), batch.y, reduction="sum")
        return (real + torch.where(lent, pseudo, 0.0).sum()).to(real.dtype) / (len(logits) + lent.sum())

    @property
    def means(self) -> Tensor:
        """Return the mean features [C, D] of all samples of each class so far; 0 for others."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    def _add_features(self, task: Task) -> None:
        """Add the features of the task's samples to the sums and counts of their classes."""
        for part, features in features_of(self, task.train, self.model.features):
            labels = F.one_hot(part.y, self.stream_info.classes).to(self.sums)
            self.sums.addmm_(labels.T, features.to(self.sums))
            self.counts += labels.sum(0)
        self.class_tasks[list(task.classes)] = task.index


def nearest(means: Tensor, new: Tensor, by: str) -> Tensor:
    """Return for each class the `new` class (mask [C]) whose mean [C, D] is most similar or nearest, int64 [C]."""
    if by == "cosine":
        unit = F.normalize(means, dim=1)
        similarity = unit @ unit.T
    else:
        similarity = -torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    return similarity.masked_fill(~new, float("-inf")).argmax(1)
