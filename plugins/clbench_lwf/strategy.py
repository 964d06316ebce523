"""Learning without forgetting: on the new task's samples, keep old outputs close to those of the previous network.

    loss: label loss + strength * distillation, each a mean over samples

Let p' and q' be the old and the current network's softmax over a group of outputs at temperature T (normalized p^(1/T)
is the same). The paper's distillation is - sum_c p'_c log q'_c, summed over old tasks with a group for each. If the
scenario gives no task ID, the outputs of all old tasks are one group. Papers and codes differ in which outputs compete.
The option `form` names these variants:

    form         label loss                           distillation
    new-classes  cross-entropy over the task's        over the old outputs
    all-seen     cross-entropy over all so far        over the old outputs
    zero-padded  cross-entropy over all so far        q' over all so far; p' over the old ones, 0 for the others
    all          cross-entropy over the stream's      over all of the stream
    lwf-mc       binary, summed over the task's       binary, summed over the old outputs: sigmoids at temperature T

Sources of the forms: `new-classes` is Li & Hoiem, where each task has its own softmax. In class-incremental learning,
it is the form of FACIL and PyCIL (strength 3), both with all old outputs as one group. `all-seen` is the form of
Avalanche and Mammoth; it was the only form here before there was a choice. `zero-padded` is van de Ven & Tolias 2019.
`lwf-mc` is Rebuffi et al. 2017 (iCaRL without exemplars). At a temperature other than 1, it is how Li & Hoiem's code
distills tasks with several labels per image.

Effects of the forms: in scenarios `task` and `domain`, the first four are the same loss, because only a task's own
outputs are active, or all tasks share all outputs. In scenario `class`:

- In `all-seen`, the labels push all old logits down together. This does not change a softmax over old logits alone, so
  the distillation does not counteract, and the method forgets like sequential fine-tuning.
- In `zero-padded`, the distillation pushes new logits down, against the labels.
- In `new-classes`, labels do not affect old outputs, and no term determines the level of new logits relative to old
  ones.
- In `lwf-mc`, labels do not affect old outputs either, but each logit has a target of its own.

Other differences between codes:

- Here there is no factor T^2, as in the paper. Van de Ven's code had it until 2022. It also weighted the t-th task's
  label loss by 1/t, and the distillation, a mean over old tasks, by 1 - 1/t (`weights = by-task`).
- Until May 2019 (commit 26f00db), van de Ven's code took the mean of p' log q' over the outputs of q' instead of the
  sum. The distillation was then 2 to 10 times as weak on Split-MNIST (`weights = by-task-mean`). The results of van de
  Ven & Tolias 2018 and 2019 and of Hsu et al. 2018 are from before this change.
- Van de Ven's code since 2022 has no such weights and no T^2. In scenarios `task` and `domain`, it multiplies the
  distillation, a mean over old tasks, by their number (`weights = by-old-tasks`). By default it treats all classes as
  active, including those not seen yet: then both softmaxes are over all outputs and nothing is padded (`form = all`).
- LwF.MC's authors and Mammoth take the mean over outputs instead of the sum, which amounts to a factor in the learning
  rate. The authors also push outputs of classes not seen yet toward 0; here these outputs are not active.
- The paper and Mammoth train the new outputs alone first. FACIL can do so; the others, and this implementation, do not.
- FACIL without exemplars does not train old heads.
- The paper records the old outputs for a task's images before it trains on them. Here, the old network is stored and
  evaluated, which gives the same outputs and works with augmented images.

Beyond the papers: outputs that are both old and the task's own (scenario `domain`, classes that return) have labels and
are distilled, in every form.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, StreamInfo, Task
from clbench.strategy.distillation import Distilled, distillation
from clbench_lwf import LwFOptions


class LwF(Distilled):
    """Fine-tuning with the distillation loss."""

    inputs_only_through_model = loss_is_mean = True
    options: LwFOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no task learned."""
        super().__init__(model, stream_info, options or LwFOptions())
        self.distils = False  # whether there is an old task
        if self.options.form == "all":
            self.activated = "all"

    def before_task(self, task: Task) -> None:
        """Distill from the second task on."""
        super().before_task(task)
        self.distils = task.index > 0

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the old network's logits [N, C]."""
        return {"old": self.old_logits(x)} if self.distils else {}

    def loss(self, batch: Batch) -> Tensor:
        """Return the label loss plus the old tasks' distillation losses, a scalar."""
        logits = self(batch.x, batch.task)
        loss = self.label_loss(logits, batch)
        if not self.distils:
            return loss
        old_logits, strength = self.frozen_outputs_of(batch)["old"], self.options.strength
        groups = self.old_outputs(batch.task)
        if self.options.weights == "by-old-tasks":
            strength = strength * (1 if self.stream_info.seen_compete else batch.task / len(groups))
        elif self.options.weights != "constant":
            share = 1 / (batch.task + 1)
            loss, strength = share * loss, strength * (1 - share) * self.options.temperature**2 / len(groups)
        for outputs in groups:
            loss = loss + strength * self.distilled(logits, old_logits, outputs, batch)
        return loss

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of logits [N, C] with the labels, as the form defines it; a scalar."""
        if self.options.form in ("all-seen", "zero-padded", "all"):
            return self.cross_entropy(logits, batch)
        if self.options.form == "new-classes":
            return self.cross_entropy(logits.masked_fill(~self.taught, float("-inf")), batch)
        targets = F.one_hot(batch.y, self.stream_info.classes).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * (self.taught & self.class_mask.index_select(0, batch.tasks))).sum(1).mean()

    def distilled(self, logits: Tensor, old: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the distillation loss of a group of old outputs, as the form defines it; a scalar.

        Args:
            logits: logits of the current network [N, C].
            old: logits of the old network [N, C].
            outputs: which outputs are in the group [C].
            batch: the samples.
        """
        temperature, among = self.options.temperature, outputs
        if self.options.form == "lwf-mc":
            targets = (old / temperature).sigmoid()
            losses = F.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none")
            loss = (losses * outputs).sum(1).mean()
        else:
            if self.options.form == "zero-padded" and not self.stream_info.task_given:
                among = self.class_mask.index_select(0, batch.tasks)
            loss = distillation(logits, old, outputs, temperature, among)
        return loss / among.sum(-1).max() if self.options.weights == "by-task-mean" else loss
