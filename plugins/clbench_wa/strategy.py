"""WA (Zhao et al. 2020, arXiv 1911.07053): replay, distill, and then scale new weights to the length of old ones.

The network is trained on the task's samples and exemplars with

    (1 - s) cross-entropy over all classes so far + s distillation over the old ones,  s = n_old / (n_old + n_new)

at temperature 2, where n counts classes. There are few exemplars and many new samples, so the head's weight vectors of
new classes become longer, and new classes are predicted too often. After the task, these vectors are scaled,

    w_c <- gamma w_c for new c,  gamma = mean over old c of |w_c| / mean over new c of |w_c|,

which needs no samples and no parameters. The aligned network predicts. In the next task, it is the old network, and it
is trained further.

In the paper, the length of a weight vector should determine how high its logit is. The head's weights are therefore
kept from becoming negative (the features are not negative, after a ReLU): negative weights are set to 0 after every
step (`clip`). Here this happens before each step, including the first, and after the last one. Accuracy that is
measured within a task does not include the clipping for the latest step. For features of both signs (transformers,
`tanh`), use `clip=false`.

Differences to reference codes: no code by the authors was found. PyCIL does not clip (nor does
runhang/Incremental-Learning-with-Weight-Aligning) and weights the two losses by 1 and 2 in every task. It aligns twice,
the second time with gamma = 1. The paper writes its head without biases. PyCIL's head and the head here have biases,
which gamma does not change. PyCIL also herds exemplars, but appends them to the task's samples; here they are mixed in
(clbench.strategy.herding).

Published configuration: SGD with momentum 0.9, learning rate 0.1 and weight decay (in PyCIL, 5e-4 on CIFAR-100 in the
first task and 2e-4 later). The schedule is PyCIL's for later tasks: 170 epochs, in which the rate falls to a tenth
after 60, 100 and 140.

Beyond the paper: if the task is known, labels compete within a task, and each old task's outputs are distilled
separately. Outputs that are both old and the task's own (scenario `domain`, classes that return) have labels, are
distilled, and count in both n. New classes are aligned only if old classes compete with them, in scenario `class`.
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
        """Clip weights that the previous step made negative, and return the batch with its exemplars appended."""
        self.clip()
        return super().prepare_batch(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of cross-entropy and distillation."""
        logits = self(batch.x, batch.task)
        return self.balanced(logits, self.old_logits(batch.x) if batch.task else logits, batch,
                             self.options.temperature)

    def after_task(self, task: Task) -> None:
        """Align the head, store a copy of the aligned network, and choose exemplars."""
        self.clip()
        old_outputs = self.known.any(0)
        new_outputs = self.taught & ~old_outputs
        if task.index and self.stream_info.seen_compete:
            self.align(old_outputs, new_outputs)
        super().after_task(task)

    @torch.no_grad()
    def clip(self) -> None:
        """Set negative weights of the head to 0, if `clip` is set."""
        if self.options.clip:
            self.model.head.weight.clamp_(min=0)

    @torch.no_grad()
    def align(self, old: Tensor, new: Tensor) -> None:
        """Scale the weights of new outputs [C] to the mean length of the weights of old outputs [C].

        Do nothing if there are no old or no new outputs, or if either mean is 0, which clipping can cause.
        """
        lengths = self.model.head.weight.norm(dim=1)
        gamma = (lengths * old).sum() / old.sum() * new.sum() / (lengths * new).sum()
        gamma = torch.where(gamma.isfinite() & (gamma > 0), gamma, 1.0)
        self.model.head.weight.mul_(torch.where(new, gamma, 1.0)[:, None])
