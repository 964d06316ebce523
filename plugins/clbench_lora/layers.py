"""Low-rank adapters on Linear and Conv2d layers, and the choice of the layers that get them."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn

from clbench import Network
from clbench.errors import SpecError
from clbench.pertask import conv_like

# q, k, v and the output projection under a module whose name says attention, in the spellings that models use.
ATTENTION = r"(.*\.)?(\w+_)?att(n|ention)\w*\.(.*\.)?(q|k|v|qkv|proj|query|key|value|(q|k|v|o|out)_proj)"


class LoRALayer(nn.Module):
    """A layer W with one low-rank adapter per task: h = Wx + (alpha / rank) B(Ax), or Wx where none is active.

    A is drawn Kaiming-uniform (a = √5) and B is zero, so a new adapter changes nothing. Which adapter is active is
    plain state (`active_adapter`, an index or None) that the strategy sets around each forward pass.

    Where the references differ: the paper draws A from a Gaussian; microsoft/loralib and PEFT (by default) draw it as
    here. PEFT's defaults are rank 8 and `lora_alpha` 8, loralib's `lora_alpha` is 1 whatever the rank. On
    Conv2d this is PEFT's form (A a convolution with r output channels and the layer's geometry, B a 1x1 convolution,
    so BA has rank r as a matrix [out, in·kh·kw]), with the layer's dilation and padding mode as well. loralib's
    Conv2d factorises a matrix [out·k, in·k] with rank r·k instead. Names follow PEFT (`base_layer`, `lora_A`,
    `lora_B`, each with a `weight`), with the task's index where PEFT has the adapter's name.

    Args:
        base_layer: the layer W, kept as it is.
        rank: r, at most the layer's width (`width`).
        alpha: numerator of the scale.
    """

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        """Wrap a layer; it has no adapter yet."""
        super().__init__()
        self.base_layer = base_layer
        self.rank = rank
        self.scaling = alpha / rank
        self.lora_A = nn.ModuleList()
        self.lora_B = nn.ModuleList()
        self.active_adapter: int | None = None

    def add(self) -> None:
        """Add an adapter for the next task, trainable, where W is and of W's type."""
        w = self.base_layer
        a: nn.Module
        b: nn.Module
        if isinstance(w, nn.Linear):
            a = nn.Linear(w.in_features, self.rank, bias=False, device=w.weight.device, dtype=w.weight.dtype)
            b = nn.Linear(self.rank, w.out_features, bias=False, device=w.weight.device, dtype=w.weight.dtype)
        else:
            a = conv_like(w, w.in_channels, self.rank)
            b = nn.Conv2d(self.rank, w.out_channels, 1, bias=False, device=w.weight.device, dtype=w.weight.dtype)
        nn.init.kaiming_uniform_(a.get_parameter("weight"), a=math.sqrt(5))
        nn.init.zeros_(b.get_parameter("weight"))
        self.lora_A.append(a)
        self.lora_B.append(b)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, with the active adapter's if there is one."""
        out: Tensor = self.base_layer(x)
        if self.active_adapter is None:
            return out
        low: Tensor = self.lora_A[self.active_adapter](x)
        up: Tensor = self.lora_B[self.active_adapter](low)
        return out + self.scaling * up

    def delta_weight(self, task: int) -> Tensor:
        """Return (alpha / rank) BA of a task's adapter, in the shape of W."""
        a = self.lora_A[task].get_parameter("weight")
        b = self.lora_B[task].get_parameter("weight")
        return (self.scaling * (b.flatten(1) @ a.flatten(1))).view_as(self.base_layer.weight)

    def merged_weight(self, task: int) -> Tensor:
        """Return W + (alpha / rank) BA: a plain layer with this weight (and W's bias) answers as the adapter does."""
        return self.base_layer.weight + self.delta_weight(task)

    def extra_repr(self) -> str:
        """Name the rank, the scale and the number of adapters."""
        return f"rank={self.rank}, scaling={self.scaling:g}, adapters={len(self.lora_A)}"


def width(layer: nn.Linear | nn.Conv2d) -> int:
    """Return the largest rank that a change of the layer can have, taking its weight as a matrix [out, the rest]."""
    return min(layer.weight.shape[0], math.prod(layer.weight.shape[1:]))


def select(model: Network, layers: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers of a model's blocks that `layers` names, by module name, in the model's order.

    Args:
        layers: all | last | attention | a regular expression that must fit a whole name (as PEFT's `target_modules`).

    Raises:
        SpecError: no layer fits, or one that fits cannot be adapted.
    """
    candidates: dict[str, nn.Linear | nn.Conv2d] = {
        f"blocks.{name}": module for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)}
    if layers == "last":
        chosen = dict(list(candidates.items())[-1:])
    else:
        pattern = re.compile({"all": ".*", "attention": ATTENTION}.get(layers, layers))
        chosen = {name: layer for name, layer in candidates.items() if pattern.fullmatch(name)}
    if not chosen:
        raise SpecError(f"lora: layers = {layers} fits no layer of this model; its Linear and Conv2d layers are "
                        f"{', '.join(candidates) or '(none)'}")
    for name, layer in chosen.items():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise SpecError(f"lora: {name} is a convolution in {layer.groups} groups, which has no low-rank adapter; "
                            "leave it out with layers = <regular expression>")
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise SpecError(f"lora: {name} is part of torch's nn.MultiheadAttention, which reads its weight without "
                            "calling it; leave it out with layers = <regular expression>")
    return chosen


def adapt(model: Network, layers: str, rank: int, alpha: float | None) -> dict[str, LoRALayer]:
    """Put a `LoRALayer` in the place of each layer that `layers` names, and return them by module name.

    Raises:
        SpecError: as `select`, or the rank exceeds a layer's width; the model is then unchanged.
    """
    chosen = select(model, layers)
    for name, layer in chosen.items():
        if rank > width(layer):
            shape = "x".join(map(str, layer.weight.shape))
            raise SpecError(f"lora: rank = {rank} exceeds the width {width(layer)} of {name} (weight {shape}); choose "
                            f"rank <= {min(map(width, chosen.values()))}, or other layers")
    wrapped = {name: LoRALayer(layer, rank, rank if alpha is None else alpha) for name, layer in chosen.items()}
    for name, adapted in wrapped.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted)
    return wrapped
