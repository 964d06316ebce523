"""Learning without forgetting: on the new task's samples, the old outputs should stay what the last network gave.

    loss: label loss + strength * distillation, each a mean over samples

With p' and q' the old and the present network's softmax over a group of outputs at temperature T (p^(1/T), normalised,
is the same), the paper's distillation is - sum_c p'_c log q'_c, summed over old tasks with a group for each. Where the
scenario gives no task id, the outputs of all old tasks are one group. Papers and codes differ in which outputs compete;
option `form` has their ways by name:

    form         label loss                           distillation
    new-classes  cross-entropy over the task's        over the old outputs
    all-seen     cross-entropy over all so far        over the old outputs
    zero-padded  cross-entropy over all so far        q' over all so far; p' over the old ones, 0 for the others
    lwf-mc       binary, summed over the task's       binary, summed over the old outputs: sigmoids at temperature T

Who does which. `new-classes` is Li & Hoiem: each task has its own softmax; in class-incremental learning it is FACIL's
and PyCIL's (strength 3), both with all old outputs as one group. `all-seen` is Avalanche's and Mammoth's; it was the
only form here before there was a choice. `zero-padded` is van de Ven & Tolias 2019. `lwf-mc` is Rebuffi et al. 2017
(iCaRL without exemplars); at another temperature than 1 it is how Li & Hoiem's code distils tasks with several labels
per image.

What that does. In scenario `task` and `domain` the first three are one loss: only a task's own outputs are active, or
all outputs are every task's. In `class` the labels of `all-seen` push all old logits down together. A softmax over old
logits alone does not change by that, so the distillation does not resist, and the method forgets as naive fine-tuning
does. In `zero-padded` the distillation pushes new logits down, against the labels. In `new-classes` and `lwf-mc` labels
do not touch old outputs; in `new-classes` nothing says how high new logits are to be beside old ones, in `lwf-mc` each
logit has a target of its own.

Where codes differ otherwise. There is no factor T^2, as in the paper; van de Ven's code had it until 2022, and weighted
the t-th task's label loss by 1/t and the distillation, a mean over old tasks, by 1 - 1/t (`weights = by-task`). Until
May 2019 (commit 26f00db) it also took the mean of p' log q' over the outputs of q' where the sum is meant: a
distillation 2 to 10 times as weak on Split-MNIST (`weights = by-task-mean`). What van de Ven & Tolias 2018 and 2019 and
Hsu et al. 2018 published is from before. That code now has no such weights, but takes all classes for active unless
told otherwise, those not seen yet too: then both softmaxes are over all outputs and nothing is padded. LwF.MC's authors
and Mammoth take the mean over outputs instead of the sum, a factor in the learning rate; the authors also push outputs
of classes not seen yet towards 0, which here are not active. The paper trains the new outputs alone first, as does
Mammoth; FACIL can, the others do not, nor does this. FACIL without exemplars leaves old heads as they are. The paper
records the old answers to a task's images before it trains on them; here the old network is kept and asked, which is
the same and works with augmented images.

Beyond the papers: outputs that are old and the task's own (scenario `domain`, classes that return) have labels and are
distilled, in every form.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, Task, World
from clbench.strategy.distillation import Distilled, distillation
from clbench_lwf import LwFOptions


class LwF(Distilled):
    """Fine-tuning with the distillation loss."""

    inputs_only_through_model = loss_is_mean = True
    options: LwFOptions

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with no task learned."""
        super().__init__(model, world, options or LwFOptions())
        self.distils = False  # whether there is an old task

    def before_task(self, task: Task) -> None:
        """Distil from the second task on."""
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
        old, strength = self.frozen_outputs_of(batch)["old"], self.options.strength
        groups = self.old_outputs(batch.task)
        if self.options.weights != "constant":
            share = 1 / (batch.task + 1)
            loss, strength = share * loss, strength * (1 - share) * self.options.temperature**2 / len(groups)
        for outputs in groups:
            loss = loss + strength * self.distilled(logits, old, outputs, batch)
        return loss

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of logits [N, C] with the labels, as the form has it; a scalar."""
        if self.options.form in ("all-seen", "zero-padded"):
            return self.cross_entropy(logits, batch)
        if self.options.form == "new-classes":
            return self.cross_entropy(logits.masked_fill(~self.taught, float("-inf")), batch)
        targets = F.one_hot(batch.y, self.world.classes).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * (self.taught & self.active.index_select(0, batch.tasks))).sum(1).mean()

    def distilled(self, logits: Tensor, old: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the distillation loss of a group of old outputs, as the form has it; a scalar.

        Args:
            logits: [N, C].
            old: [N, C], of the old network.
            outputs: [C], the group.
            batch: the samples.
        """
        temperature, over = self.options.temperature, outputs
        if self.options.form == "lwf-mc":
            targets = (old / temperature).sigmoid()
            losses = F.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none")
            loss = (losses * outputs).sum(1).mean()
        else:
            if self.options.form == "zero-padded" and not self.world.task_given:
                over = self.active.index_select(0, batch.tasks)
            loss = distillation(logits, old, outputs, temperature, over)
        return loss / over.sum(-1).max() if self.options.weights == "by-task-mean" else loss
