"""iCaRL: replay exemplars chosen by herding, distill old outputs, and classify by the nearest mean of exemplars.

With g the sigmoid of the current outputs and q that of the old network's, the loss of a sample (algorithm 3) is

    - sum over new c of [c = y] log g_c + [c != y] log(1 - g_c)
    - sum over old c of q_c log g_c + (1 - q_c) log(1 - g_c)

summed over outputs and averaged over samples. Exemplars are herded, distributed over classes and replayed as in
clbench.strategy.herding. This follows the authors' code and Avalanche, but, as in PyCIL and Mammoth, no sample is
picked twice. Features are L2-normalized, and so are the means of exemplars that a sample is compared with (algorithm
1).

Reference codes differ:

- Loss: the authors' code, Avalanche, Mammoth and PyCIL's first version (2021) take the mean over outputs, which amounts
  to a factor in the learning rate (the authors' rate is 2). The authors' code, Avalanche and Mammoth push the outputs
  of classes not seen yet toward 0; here these outputs are not active (Mammoth's first versions left them out too).
  Later versions of PyCIL have another loss: cross-entropy and a distillation of the softmax at temperature 2.
- Means: the authors' code, Avalanche and Mammoth add each exemplar's mirror image. Mammoth now normalizes the features
  in herding, in means and of samples; its first versions normalized none of them.
- Targets: van de Ven's code (GMvandeVen/continual-learning) takes the sigmoid of the old outputs divided by 2
  (`temperature = 2`), but does not divide the new ones.
- Capacity: the authors' code and Avalanche round K / classes up, so the memory may exceed K.

Beyond the paper: if the task is known, only the means of its classes are compared, and a sample's new outputs are those
of its own task. In scenario `domain`, every task has new samples of all classes. Labels then determine these outputs,
so nothing is distilled.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, StreamInfo, Task
from clbench.strategy.distillation import Distilled
from clbench.strategy.gaussians import class_means
from clbench.strategy.herding import HerdedMemory
from clbench_icarl import ICaRLOptions


class ICaRL(HerdedMemory, Distilled):
    """Replay and distillation; the memory holds the exemplars, and `means` [C, D] are the class means.

    The mean of a class without exemplars is infinite.
    """

    method = "icarl"
    loss_is_mean = True
    roles = (("means", "prototypes"), *HerdedMemory.roles, *Distilled.roles)
    options: ICaRLOptions
    means: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no exemplars; SpecError if there will be more classes than exemplars."""
        super().__init__(model, stream_info, options or ICaRLOptions())
        like = model.head.weight
        self.learned = 0  # number of tasks
        self.register_buffer("means", like.new_full((stream_info.classes, model.head.in_features), math.inf))

    def loss(self, batch: Batch) -> Tensor:
        """Return the binary cross-entropies of new outputs with labels, and of old ones with the old network's."""
        logits = self.model(batch.x)
        targets = F.one_hot(batch.y, self.stream_info.classes).to(logits.dtype)
        old_outputs = self.known.any(0) & ~self.taught
        if batch.task:
            targets = torch.where(old_outputs, (self.old_logits(batch.x) / self.options.temperature).sigmoid(), targets)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * (old_outputs | self.class_mask[batch.tasks])).sum(1).mean()

    def after_task(self, task: Task) -> None:
        """Store the network, shorten the existing sets of exemplars, add those of the task, and recompute all means."""
        super().after_task(task)
        means, _ = class_means(self, self.memory, self.unit_features)
        self.means = F.normalize(means).nan_to_num(nan=math.inf)
        self.learned = task.index + 1

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return minus the distance to the mean of each class [N, C], -inf for classes without exemplars.

        If no task has been learned, or the given one has not, return the network's logits.
        """
        if not self.learned or (task is not None and task >= self.learned):
            logits: Tensor = self.model(x)
            return logits
        # Without matrix products: the distance of a sample then does not depend on which batch it is in.
        return -torch.cdist(self.unit_features(x), self.means, compute_mode="donot_use_mm_for_euclid_dist")
