"""What variants of LoRA have in common whose adapters are summed: one network answers for all tasks.

Unlike in `lora`, no adapter belongs to a task at test time, so the task is neither needed nor inferred, and what old
tasks answer can change.

`base` means what it does in `lora`: with `base = task1` the first half of the first task's steps trains W and the head
as plain fine-tuning does, then W is frozen and the second half trains the first adapters, with the head trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from clbench import Network, Strategy, Task, World
from clbench.strategy.per_task import check_base
from clbench_lora import AdapterOptions, InfLoRAOptions, LowRankOptions, OLoRAOptions, SeqLoRAOptions
from clbench_lora.layers import LoRALayer, adapt


class SummedLoRA(Strategy):
    """A frozen base W with adapters on each chosen layer of the blocks, all of them active, and the model's own head.

    Subclasses say when adapters are added, what of them learns, and what else they need. `adapted` maps the name of
    each adapted layer (as in the model given) to its `LoRALayer`.
    """

    roles: tuple[tuple[str, str], ...] = (("*.lora_*", "adapters"), ("*.pissa_[AB]", "adapters"))
    method: ClassVar[str]
    options: SeqLoRAOptions | OLoRAOptions | InfLoRAOptions

    def __init__(self, model: Network, world: World, options: SeqLoRAOptions | OLoRAOptions | InfLoRAOptions) -> None:
        """Put adapters' layers in place; SpecError where they do not fit the model."""
        super().__init__(model, world, options)
        check_base(self.method, options, world)
        self.adapted = adapt(model, adapter_options(options), self.method)
        self.base_learns = False
        self.requires_grad_(False)
        self.train(self.training)

    def grows(self, task: Task) -> bool:
        """Return whether a task gets adapters of its own. Default: each does."""
        return True

    def learning(self, layer: LoRALayer) -> Iterable[nn.Parameter]:
        """Return what a task trains of an adapted layer. Default: all of its newest adapter."""
        return layer.parameters_of(-1).values()

    def heads_for(self, task: Task) -> Iterable[nn.Module]:
        """Return the heads that a task trains. Default: the model's, which has all outputs."""
        return (self.model.head,)

    def before_task(self, task: Task) -> None:
        """Add adapters; train them, or W where the first task is to make it."""
        self.requires_grad_(False)
        if self.grows(task):
            for layer in self.adapted.values():
                layer.add()
        for head in self.heads_for(task):
            head.requires_grad_(True)
        self._learn(base=True) if self.phases(task) == 2 else self.begin(task)

    def phases(self, task: Task) -> int:
        """Return 2 for the first task with `base = task1`: W first, then its adapters."""
        return self.options.phases(task.index)

    def before_phase(self, task: Task, phase: int) -> None:
        """Freeze W once it has been trained, and go on with the adapters, which start from it."""
        if phase == 1:
            for layer in self.adapted.values():
                layer.settle()
            self.begin(task)

    def begin(self, task: Task) -> None:
        """Train adapters from here on; W is what it will stay."""
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either W, without adapters, or adapters, all of them active."""
        self.base_learns = base
        self.model.blocks.requires_grad_(base)
        for layer in self.adapted.values():
            layer.active = () if base else tuple(range(len(layer.lora_A)))
            for part in layer.parameters_of(-1).values():
                part.requires_grad_(False)
            for part in () if base else self.learning(layer):
                part.requires_grad_(True)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks, but for the adapters that learn in them, once W is frozen."""
        return () if self.base_learns else (self.model.blocks,)

    def train(self, mode: bool = True) -> SummedLoRA:
        """Set the mode; the adapters' dropout follows it though the blocks around it stay in eval mode."""
        super().train(mode)
        for layer in self.adapted.values():
            layer.lora_dropout.train(mode)
        return self


def adapter_options(options: LowRankOptions) -> AdapterOptions:
    """Return options as those of adapters of any kind; what they leave open is as in `lora`."""
    if isinstance(options, AdapterOptions):
        return options
    return AdapterOptions(**{name: getattr(options, name) for name in LowRankOptions.model_fields})
