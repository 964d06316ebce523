"""Sequential LoRA: one set of adapters, trained further from task to task.

This is LoRA (Hu et al. 2021, arXiv 2106.09685) without any provision for several tasks, fine-tuning confined to rank r:
the baseline SeqLoRA of Wang et al. 2023 (arXiv 2310.14152). Nothing is done against forgetting; if it forgets less than
`naive`, that is due to the rank.
"""

from __future__ import annotations

from clbench import Network, Task, World
from clbench.strategy.alignment import Aligned
from clbench_lora import SeqLoRAOptions
from clbench_lora.shared_adapters import SummedLoRA


class SeqLoRA(Aligned, SummedLoRA):
    """A frozen base W, one adapter on each selected layer, and the model's head over all classes, as in `naive`."""

    method = "seq-lora"
    roles = (*Aligned.roles, *SummedLoRA.roles)
    options: SeqLoRAOptions

    def __init__(self, model: Network, world: World, options: SeqLoRAOptions | None = None) -> None:
        """Install the adapted layers; SpecError if they do not fit the model."""
        super().__init__(model, world, options if options is not None else SeqLoRAOptions())

    def grows(self, task: Task) -> bool:
        """Return whether it is the first task."""
        return task.index == 0
