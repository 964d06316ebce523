"""Base of the LoRA variants whose adapters are shared by all tasks: the adapters' outputs are summed.

Unlike in `lora`, predictions do not select an adapter by task. The task is therefore neither needed nor inferred, and
the outputs for old tasks can change.

`base` means the same as in `lora`. With `base = task1`, the first half of the first task's steps trains W and the head
by plain fine-tuning. Then W is frozen, and the second half trains the first adapters and the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from clbench import Network, Samples, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.per_task import FrozenBase, check_base
from clbench.strategy.subspace import input_moments
from clbench_lora import AdapterOptions, LowRankOptions, SummedOptions
from clbench_lora.first_layer import FirstLayerOnce
from clbench_lora.layers import LoRALayer
from clbench_lora.selection import adapt, remarks


class SummedLoRA(FirstLayerOnce, FrozenBase):
    """A frozen backbone W with adapters on each selected layer of the blocks, all active, and the model's own head.

    Subclasses define when adapters are added (`grows`) and which of their parameters are trained (`learning`).
    `adapted` maps the name of each adapted layer (as in the original model) to its `LoRALayer`.
    """

    roles: tuple[tuple[str, str], ...] = (("*.lora_*", "adapters"), ("*.pissa_[AB]", "adapters"))
    method: ClassVar[str]
    heads_named: ClassVar[str] = "model.head.*"
    options: SummedOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SummedOptions) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options)
        self.notes += check_base(self.method, self.options, stream_info, model)
        self.notes += remarks(model, self.options, self.method)
        self.adapted = adapt(model, adapter_options(self.options), self.method)
        if stream_info.predicts_tokens and self.options.head_rate != 1:
            self.notes.append("head_rate changes nothing here, because the head of a language model is not trained")
        self.base_learns = False
        self.requires_grad_(False)
        self.train(self.training)

    def grows(self, task: Task) -> bool:
        """Return whether a task gets its own adapters. Default: yes."""
        return True

    def learning(self, layer: LoRALayer) -> Iterable[nn.Parameter]:
        """Return the parameters of an adapted layer that a task trains. Default: all of its newest adapter."""
        return layer.parameters_of(-1).values()

    def heads_for(self, task: Task) -> Iterable[nn.Module]:
        """Return the heads that a task trains. Default: the model's head, which has all outputs.

        The head of a language model is not trained.
        """
        return () if self.stream_info.predicts_tokens else (self.model.head,)

    def learning_rates(self) -> Mapping[str, float]:
        """Return `head_rate` as the factor of the heads' learning rate; empty if it is 1."""
        return {self.heads_named: self.options.head_rate} if self.options.head_rate != 1 else {}

    def before_task(self, task: Task) -> None:
        """Add adapters. Train them, or W if the first task starts with W."""
        self.requires_grad_(False)
        if self.grows(task):
            for layer in self.adapted.values():
                layer.add()
        for head in self.heads_for(task):
            head.requires_grad_(True)
        self._learn(base=True) if self.phases(task) == 2 else self.begin(task)

    def base_learned(self, task: Task) -> None:
        """Freeze W, and train the adapters, which start from the trained W."""
        for layer in self.adapted.values():
            layer.init_from_weight()
        self.begin(task)

    def begin(self, task: Task) -> None:
        """Train the adapters from now on; W no longer changes."""
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either W without adapters, or the task's adapters with all adapters active."""
        self.base_learns = base
        self.model.blocks.requires_grad_(base)
        for layer in self.adapted.values():
            layer.active = () if base else tuple(range(len(layer.lora_A)))
            for part in layer.parameters_of(-1).values():
                part.requires_grad_(False)
            for part in () if base else self.learning(layer):
                part.requires_grad_(True)
        self.train(self.training)


def adapter_moments(strategy: SummedLoRA, samples: Samples, run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the uncentered second moment [d, d] of each adapted layer's inputs over raw samples, by layer.

    `run` takes prepared inputs and must call the layers.

    Raises:
        SpecError: a layer is never called.
    """
    try:
        return input_moments(strategy, run, strategy.adapted, samples, lambda layer: layer.base_layer)
    except SpecError as error:
        raise SpecError(f"{strategy.method}: {error}; leave it out with layers = <regular expression>") from None


def adapter_options(options: LowRankOptions) -> AdapterOptions:
    """Return these options as `AdapterOptions`; options that they lack get the defaults of `lora`."""
    if isinstance(options, AdapterOptions):
        return options
    return AdapterOptions(**{name: getattr(options, name) for name in LowRankOptions.model_fields})
