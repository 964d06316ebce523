"""Sequential LoRA: one set of adapters, trained on from task to task.

LoRA (Hu et al. 2021, arXiv 2106.09685) as it comes out where nobody provides for several tasks: fine-tuning that is
confined to rank r, and the baseline SeqLoRA of Wang et al. 2023 (arXiv 2310.14152). Nothing is done against
forgetting; what it forgets less than `naive`, it owes to the rank.
"""

from __future__ import annotations

from clbench import Network, Task, World
from clbench_lora import SeqLoRAOptions
from clbench_lora.shared_adapters import SummedLoRA


class SeqLoRA(SummedLoRA):
    """A frozen base W, one adapter on each chosen layer, and the model's head over all classes, as `naive` has it."""

    method = "seq-lora"
    options: SeqLoRAOptions

    def __init__(self, model: Network, world: World, options: SeqLoRAOptions | None = None) -> None:
        """Put adapters' layers in place; SpecError where they do not fit the model."""
        super().__init__(model, world, options if options is not None else SeqLoRAOptions())

    def grows(self, task: Task) -> bool:
        """Return whether it is the first task."""
        return task.index == 0
