"""Learning without forgetting: on the new task's samples, the old outputs should stay what the last network gave.

    loss: cross-entropy + strength sum over old tasks o of  - sum_c p'_o,c log q'_o,c

with p' and q' the old and the present network's softmax over o's outputs at temperature T (p^(1/T), normalised, is the
same). Where the scenario gives no task id the outputs of all old tasks are one group, as in LwF.MC (Rebuffi et al.
2017) and van de Ven & Tolias. There is no factor T^2, as in the paper (van de Ven's code has it) and no warm-up of the
new outputs alone, which most reference codes leave out too. The paper records the old answers to a task's images before
it trains on them; here the old network is kept and asked, which is the same and works with augmented images.
"""

from __future__ import annotations

from torch import Tensor

from clbench import Batch, Network, Options, World
from clbench.strategy.distillation import Distilled, distillation
from clbench_lwf import LwFOptions


class LwF(Distilled):
    """Fine-tuning with the distillation loss."""

    options: LwFOptions

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with no task learned."""
        super().__init__(model, world, options or LwFOptions())

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy plus the old tasks' distillation losses."""
        logits = self(batch.x, batch.task)
        loss = self.cross_entropy(logits, batch)
        if batch.task:
            old = self.old_logits(batch.x)
            for outputs in self.old_outputs(batch.task):
                loss = loss + self.options.strength * distillation(logits, old, outputs, self.options.temperature)
        return loss
