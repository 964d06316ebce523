"""Compute W x of the first adapted layer once per phase, because a frozen W gives the same result in every step.

This is possible if no trainable part comes before the layer, as in a network whose first adapted block begins with it,
such as a multilayer perceptron. On split-mnist-5k it saves a fifth of the training time of `lora`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from clbench import Batch, Network, Strategy
from clbench_lora.layers import LoRALayer

NAME = "first adapted layer"


class FirstLayerOnce(Strategy):
    """Base of strategies with adapted layers, `adapted`, in blocks that are frozen unless `base_learns`.

    It must come before other base classes.
    """

    inputs_only_through_model = loss_is_mean = True
    base_learns: bool
    adapted: dict[str, LoRALayer]

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks once W is frozen; the adapters in them are still trained."""
        return () if self.base_learns else (self.model.blocks,)

    def train(self, mode: bool = True) -> FirstLayerOnce:
        """Set the mode. The adapters' dropout follows it even while the frozen blocks stay in eval mode."""
        super().train(mode)
        for layer in self.adapted.values():
            layer.lora_dropout.train(mode)
        return self

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return W x of the first adapted layer, once W is frozen."""
        position = None if self.base_learns else first_layer(self.model)
        if position is None:
            return {}
        block, earlier_modules, layer = position
        hidden = self.model.run(x, 0, block)
        for module in earlier_modules:
            hidden = module(hidden)
        base: Any = layer.base_layer
        return {NAME: base(hidden)}

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of the other bases, with the first layer's output known."""
        with self.known_first_layer(batch):
            return super().loss(batch)

    @contextmanager
    def known_first_layer(self, batch: Batch) -> Iterator[None]:
        """Give the first adapted layer its W x inside the `with` block, if the batch has it stored."""
        position = first_layer(self.model) if batch.frozen else None
        if position is None or batch.frozen is None:
            yield
            return
        layer = position[2]
        layer.output = batch.frozen[NAME]
        try:
            yield
        finally:
            layer.output = None


def first_layer(model: Network) -> tuple[int, list[nn.Module], LoRALayer] | None:
    """Return the first adapted block's index, the modules that its body runs before its adapted layer, and this layer.

    Return None if this layer is nested deeper in the body.
    """
    block = model.first_with(LoRALayer)
    body: Any = model.blocks[block].body
    parts = list(body) if isinstance(body, nn.Sequential) else [body]
    for number, part in enumerate(parts):
        if isinstance(part, LoRALayer):
            return block, parts[:number], part
        if any(isinstance(module, LoRALayer) for module in part.modules()):
            return None
    return None
