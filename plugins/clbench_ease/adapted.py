"""Base of the methods that train adapters for each task, bottlenecks or low-rank ones, on a frozen network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from clbench_lora import AdapterOptions
from clbench_lora.activation import activated
from clbench_lora.layers import LoRALayer
from clbench_lora.selection import adapt as adapt_lora
from clbench_lora.selection import remarks
from torch import nn

from clbench import Network, StreamInfo, Task
from clbench.strategy.per_task import FrozenBase, check_base
from clbench_ease import SCALES, Kind
from clbench_ease.bottleneck import AdaptedBlock, adapt


class TaskAdapters(FrozenBase):
    """A frozen network with adapters per task; `adapted` maps names to adapted layers or blocks."""

    method: ClassVar[str]
    widths: ClassVar[Mapping[Kind, int]]  # default width of adapters, by kind
    options: Any  # has the options adapter, width, scale and dropout

    def __init__(self, model: Network, stream_info: StreamInfo, options: Any) -> None:
        """Install the adapted layers; SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options)
        self.notes += check_base(self.method, self.options, stream_info, model)
        model.require_body(f"{self.method} adapts layers before the head", "ncm")
        width = options.width or self.widths[options.adapter]
        scale = options.scale or SCALES[options.adapter]
        self.adapted: Mapping[str, AdaptedBlock | LoRALayer]
        if options.adapter == "bottleneck":
            self.adapted = adapt(model, width, scale, options.dropout, self.method)
        else:
            lora = AdapterOptions(rank=width, alpha=scale * width, dropout=options.dropout)
            self.notes += remarks(model, lora, self.method)
            self.adapted = adapt_lora(model, lora, self.method, "width")
        self.first = model.first_with((AdaptedBlock, LoRALayer))
        self.base_learns = False
        self.requires_grad_(False)
        self.train(self.training)

    def base_learned(self, task: Task) -> None:
        """Freeze the network."""
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either the network or the newest adapters, each with its head (`choose_head`)."""
        self.base_learns = base
        self.model.blocks.requires_grad_(base)
        for layer in self.adapted.values():
            for parameter in layer.parameters_of(-1).values():
                parameter.requires_grad_(not base)
        self.choose_head(base)
        self.train(self.training)

    @abstractmethod
    def choose_head(self, base: bool) -> None:
        """Make the head trainable that belongs to the network (`base`), or the one that belongs to the adapters."""

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the network once it is frozen; its adapters are still trained."""
        return () if self.base_learns else (self.model,)

    def train(self, mode: bool = True) -> TaskAdapters:
        """Set the mode; the adapters' dropout follows it even though the blocks around it stay in eval mode."""
        super().train(mode)
        for layer in self.adapted.values():
            (layer.lora_dropout if isinstance(layer, LoRALayer) else layer.adapters).train(mode)
        return self

    def using(self, task: int | None) -> AbstractContextManager[None]:
        """Return a context in which only the adapters of a task (-1: the newest; None: no task) are active."""
        return activated(self.adapted.values(), () if task is None else (task,))
