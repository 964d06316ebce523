"""WA (Zhao et al. 2020, arXiv 1911.07053): replay, distil, and then make new weights as long as old ones.

The network is trained on the task's samples and exemplars with

    (1 - s) cross-entropy over all classes so far + s distillation over the old ones,  s = n_old / (n_old + n_new)

at temperature 2, n counting classes. Few exemplars stand against many new samples, so the head's weight vectors of new
classes come out longer and win too often. After the task they are scaled,

    w_c <- gamma w_c for new c,  gamma = mean over old c of |w_c| / mean over new c of |w_c|,

without a sample or a parameter. The network so aligned answers, is the old network of the next task and is trained on.

So that a weight's length says how high its logit is, the paper keeps the head's weights from becoming negative (its
features are not, after a ReLU): after every step negative ones are set to 0 (`clip`). Here this happens before the next
step and after the last one, which is the same. On features of both signs (transformers, `tanh`), take `clip=false`.

Where reference codes differ. No code by the authors was found. PyCIL does not clip (nor does
runhang/Incremental-Learning-with-Weight-Aligning) and weighs the two losses 1 and 2 in every task. It aligns twice,
the second time by gamma = 1. The paper writes its head without biases; PyCIL's and the head here have them, and gamma
does not touch them. It herds exemplars, too, but appends them to the task's samples, where here they are mixed in
(clbench.strategy.herding).

Published recipe: SGD, momentum 0.9, rate 0.1, weight decay (5e-4 on CIFAR-100 in the first task, 2e-4 later, in PyCIL).

Beyond the paper: where the task is known, labels compete within a task and each old task's outputs are distilled by
themselves. Outputs that are old and the task's own (scenario `domain`, classes that return) have labels and are
distilled, and count in both n. Aligned are classes that are new, where old ones compete with them: only in scenario
`class`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Batch, Network, Options, StreamInfo, Task
from clbench.strategy.distillation import Distilled
from clbench.strategy.herding import HerdedMemory
from clbench_wa import WAOptions


class WA(HerdedMemory, Distilled):
    """Fine-tuning on new samples and exemplars with distillation; the head is aligned after each task."""

    method = "wa"
    loss_is_mean = True
    roles = (*HerdedMemory.roles, *Distilled.roles)
    options: WAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no exemplars."""
        super().__init__(model, stream_info, options or WAOptions())

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with its share of exemplars behind; clip what the step before left negative."""
        self.clip()
        return super().prepare_batch(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of cross-entropy and distillation."""
        logits = self(batch.x, batch.task)
        return self.balanced(logits, self.old_logits(batch.x) if batch.task else logits, batch,
                             self.options.temperature)

    def after_task(self, task: Task) -> None:
        """Align the head, keep the network as it is then, and choose exemplars."""
        self.clip()
        old = self.known.any(0)
        new = self.taught & ~old
        if task.index and self.stream_info.seen_compete:
            self.align(old, new)
        super().after_task(task)

    @torch.no_grad()
    def clip(self) -> None:
        """Set negative weights of the head to 0, if that is chosen."""
        if self.options.clip:
            self.model.head.weight.clamp_(min=0)

    @torch.no_grad()
    def align(self, old: Tensor, new: Tensor) -> None:
        """Scale the weights of new outputs [C] to the mean length of those of old outputs [C]; without either, do not.

        Nor where either mean is 0, as it can become by clipping.
        """
        lengths = self.model.head.weight.norm(dim=1)
        gamma = (lengths * old).sum() / old.sum() * new.sum() / (lengths * new).sum()
        gamma = torch.where(gamma.isfinite() & (gamma > 0), gamma, 1.0)
        self.model.head.weight.mul_(torch.where(new, gamma, 1.0)[:, None])
