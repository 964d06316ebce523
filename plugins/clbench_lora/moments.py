"""The second moments of what adapted layers are given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clbench import Samples, Strategy
from clbench.core.errors import SpecError
from clbench_lora.layers import LoRALayer
from clbench_lora.subspace import rows

CHUNK = 64  # samples per step of the pass that collects inputs


def input_moments(strategy: Strategy, adapted: Mapping[str, LoRALayer], samples: Samples, method: str,
                  run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the uncentred second moment [d, d] of each adapted layer's inputs over raw samples, by layer.

    It is the sum over samples and positions, divided by the number of samples.

    Args:
        strategy: is in eval mode meanwhile.
        adapted: its adapted layers by name.
        samples: raw.
        method: whose error it is if a layer is never called.
        run: is given prepared inputs and calls the layers.
    """
    likes = {name: layer.base_layer.weight for name, layer in adapted.items()}
    sums = {name: like.new_zeros(like[0].numel(), like[0].numel()) for name, like in likes.items()}
    called: set[str] = set()

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, LoRALayer)
        called.add(name)
        seen = rows(layer.base_layer, inputs[0])
        sums[name] += seen.T @ seen / len(samples)

    training = strategy.training
    strategy.eval()
    handles = [layer.register_forward_pre_hook(functools.partial(note, name)) for name, layer in adapted.items()]
    try:
        with torch.no_grad():
            for part in samples.chunks(CHUNK):
                run(strategy.world.prepare(part.x))
    finally:
        for handle in handles:
            handle.remove()
    strategy.train(training)
    if idle := [name for name in adapted if name not in called]:
        raise SpecError(f"{method}: {idle[0]} is never called, so it has no inputs to learn from; leave it out with "
                        "layers = <regular expression>")
    return sums
