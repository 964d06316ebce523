"""Low-rank adapters on Linear and Conv2d layers, or on parts of Linear layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.strategy.per_task import conv_like
from clbench_lora import Init, Target
from clbench_lora.rows import Rows

FUSED: tuple[Target, ...] = ("q", "k", "v")  # the parts of a layer named qkv, in the order of its rows

# Attributes that a parent module may read: timm's DaViT, for example, reads a convolution's size to pad its input.
GEOMETRY = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding",
            "dilation", "groups")


def copy_geometry(base_layer: nn.Module, layer: nn.Module) -> None:
    """Give a layer that wraps another one the attributes in `GEOMETRY` that the other has."""
    for name in GEOMETRY:
        if hasattr(base_layer, name):
            setattr(layer, name, getattr(base_layer, name))


class LoRALayer(nn.Module):
    """A layer W with low-rank adapters: h = Wx + the sum of s B(Ax) over the active adapters.

    A is random and B is zero, so a new adapter changes nothing. `active` holds the indices of the active adapters.

    The references differ. The paper draws A from a Gaussian. microsoft/loralib and PEFT (by default) draw it
    Kaiming-uniform (a = √5), as `init = kaiming` does here; `gaussian` is PEFT's, N(0, 1 / r^2). PEFT's defaults are
    rank 8 and `lora_alpha` 8; loralib's `lora_alpha` is 1 for every rank. On Conv2d, this class has PEFT's form: A is
    a convolution with r output channels and the layer's geometry (including its dilation and padding mode), and B is
    a 1x1 convolution. BA thus has rank r as a matrix [out, in·kh·kw]. loralib's Conv2d factorizes a matrix
    [out·k, in·k] with rank r·k instead. Parameter names are PEFT's, with the task's index as the adapter's name.

    `init = pissa` (Meng et al. 2024, arXiv 2404.02948) starts A and B from the r largest singular values of W. The
    paper subtracts them from W. Here W is shared by all tasks, so the start (`pissa_A`, `pissa_B`) is subtracted from
    the adapter's output instead: h = Wx + s (BA - B0 A0) x, which is the same function.

    `dora` (Liu et al. 2024, arXiv 2402.09353) learns the length of each row of W + s BA separately from its direction.
    The gradient treats the length in the denominator as a constant, as in the paper (section 4.3) and in PEFT.

    Args:
        base_layer: the layer W, which only `merge` changes; or some of its rows, in a `FusedLoRA`.
        rank: r, at most the layer's width (`width`).
        scaling: s.
        init: how A (with pissa also B) is initialized.
        dropout: the share of the adapter's inputs that are zeroed in training.
        bias: whether B has a bias, which is also multiplied by s (PEFT's `lora_bias`). Not allowed with dora.
        dora: whether each adapter learns the length of the rows.
    """

    pissa_A: Tensor
    pissa_B: Tensor

    def __init__(self, base_layer: nn.Linear | nn.Conv2d | Rows, rank: int, scaling: float, *,
                 init: Init = "kaiming", dropout: float = 0.0, bias: bool = False, dora: bool = False) -> None:
        """Wrap a layer; it has no adapter yet."""
        super().__init__()
        self.base_layer = base_layer
        self.rank = rank
        self.scaling = scaling
        self.init = init
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_A = nn.ModuleList()
        self.lora_B = nn.ModuleList()
        self.lora_bias = bias
        self.lora_magnitude_vector = nn.ParameterList() if dora else None
        self.active: tuple[int, ...] = ()
        self.output: Tensor | None = None  # W x, if it is computed in advance (`first_layer`)
        copy_geometry(base_layer, self)

    @property
    def weight(self) -> Tensor:
        """Return W plus the changes of the active adapters, for modules that read it instead of calling the layer.

        In this case the adapters have no dropout, and hooks on the layer's inputs (InfLoRA) are not called.
        """
        return self._weight_with(self.active)

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of W plus the biases of the active adapters; see `weight`."""
        return self._bias_with(self.active)

    def add(self) -> None:
        """Add a trainable adapter, on the device and of the dtype of W."""
        w = self.base_layer
        factory_kwargs: dict[str, Any] = {"device": w.weight.device, "dtype": w.weight.dtype}
        a: nn.Module
        b: nn.Module
        if not isinstance(w, nn.Conv2d):
            a = nn.Linear(w.in_features, self.rank, bias=False, **factory_kwargs)
            b = nn.Linear(self.rank, w.out_features, bias=self.lora_bias, **factory_kwargs)
        else:
            a = conv_like(w, w.in_channels, self.rank)
            b = nn.Conv2d(self.rank, w.out_channels, 1, bias=self.lora_bias, **factory_kwargs)
        self.lora_A.append(a)
        self.lora_B.append(b)
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.append(nn.Parameter(torch.ones(len(w.weight), **factory_kwargs)))
        self.restart()

    def restart(self) -> None:
        """Initialize the newest adapter again: A random, B zero."""
        a = self.lora_A[-1].get_parameter("weight")
        if self.init == "gaussian":
            nn.init.normal_(a, std=1 / self.rank)
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        for parameter in self.lora_B[-1].parameters():
            nn.init.zeros_(parameter)
        self.init_from_weight()

    @torch.no_grad()
    def init_from_weight(self) -> None:
        """Initialize what the newest adapter takes from W. `add` calls it; call it again after W has changed."""
        weight = self.base_layer.weight
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector[-1].copy_(weight.flatten(1).norm(dim=1))
        if self.init == "pissa":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:self.rank] / self.scaling).sqrt()
            a, b = (part[-1].get_parameter("weight") for part in (self.lora_A, self.lora_B))
            a.copy_(root[:, None] * v[:self.rank])
            b.copy_(u[:, :self.rank] * root)
            # Copies with the memory layout of A and B: in another layout, products of the same values may be rounded
            # differently, and h would not be Wx at the start.
            self.register_buffer("pissa_A", a.clone())
            self.register_buffer("pissa_B", b.clone())

    def parameters_of(self, adapter: int) -> dict[str, nn.Parameter]:
        """Return the parameters of one adapter, by PEFT's names."""
        parameters = {"lora_A.weight": self.lora_A[adapter].get_parameter("weight"),
                      "lora_B.weight": self.lora_B[adapter].get_parameter("weight")}
        if self.lora_bias:
            parameters["lora_B.bias"] = self.lora_B[adapter].get_parameter("bias")
        if self.lora_magnitude_vector is not None:
            parameters["lora_magnitude_vector"] = self.lora_magnitude_vector[adapter]
        return parameters

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the layer's output plus that of the active adapters.

        Args:
            x: the input.
            out: the layer's output Wx. It must be given for `Rows`; otherwise it is computed if it is not given.
        """
        if out is None:
            assert not isinstance(self.base_layer, Rows)
            out = cast(Tensor, self.base_layer(x)) if self.output is None else self.output
        if not self.active:
            return out
        x = self.lora_dropout(x)
        for adapter in self.active:
            added = self._scaled(self.lora_B[adapter], self.lora_A[adapter](x))
            if self.init == "pissa":  # the start is rounded in the same way, so that before training the sum is Wx
                added = added - self._scaled(lambda low: F.linear(low, self.pissa_B), F.linear(x, self.pissa_A))
            if self.lora_magnitude_vector is not None:
                added = self._rescaled(out, added, adapter)
            out = out + added
        return out

    def _scaled(self, b: Callable[[Tensor], Tensor], low: Tensor) -> Tensor:
        """Return s b(low). Scaling r values costs less than scaling all outputs, but a bias of B must be scaled too."""
        return self.scaling * b(low) if self.lora_bias else b(self.scaling * low)

    def _rescaled(self, out: Tensor, added: Tensor, adapter: int) -> Tensor:
        """Return the term that DoRA adds to Wx + b. Rows are rescaled to the learned lengths, but not the bias."""
        assert self.lora_magnitude_vector is not None
        length = (self.base_layer.weight + self._product(adapter)).flatten(1).norm(dim=1).detach()
        scale = self._along(self.lora_magnitude_vector[adapter] / length)
        bare = out if self.base_layer.bias is None else out - self._along(self.base_layer.bias)
        return (scale - 1) * bare + scale * added

    def _along(self, values: Tensor) -> Tensor:
        """Return one value per output, shaped to broadcast along the outputs of a batch."""
        return values[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else values

    def _product(self, adapter: int) -> Tensor:
        """Return s BA (with pissa minus s B0 A0) in the shape of W."""
        # Not `get_parameter`: torch.func replaces parameters by plain tensors.
        a, b = (cast(Tensor, part[adapter].weight).flatten(1) for part in (self.lora_A, self.lora_B))
        product = b @ a - self.pissa_B @ self.pissa_A if self.init == "pissa" else b @ a
        return (self.scaling * product).view_as(self.base_layer.weight)

    def delta_weight(self, adapter: int) -> Tensor:
        """Return the change of W that an adapter makes, in the shape of W."""
        product = self._product(adapter)
        if self.lora_magnitude_vector is None:
            return product
        merged: Tensor = self.base_layer.weight + product
        scale: Tensor = self.lora_magnitude_vector[adapter] / merged.flatten(1).norm(dim=1)
        return merged * scale.view(-1, *[1] * (merged.dim() - 1)) - self.base_layer.weight

    def merged_weight(self, adapter: int) -> Tensor:
        """Return the weight of a plain layer that computes, with `merged_bias`, the same as W with the adapter."""
        return self._weight_with((adapter,))

    def merged_bias(self, adapter: int) -> Tensor | None:
        """Return W's bias plus the adapter's; None if there is neither."""
        return self._bias_with((adapter,))

    @torch.no_grad()
    def merge(self) -> None:
        """Add the newest adapter to W and its bias, then reset it to change nothing. The output stays the same."""
        weight, bias = self.merged_weight(-1), self.merged_bias(-1)
        self.base_layer.weight.copy_(weight)
        if bias is not None:
            assert self.base_layer.bias is not None
            self.base_layer.bias.copy_(bias)
        for parameter in self.lora_B[-1].parameters():
            nn.init.zeros_(parameter)
        self.init_from_weight()

    def _weight_with(self, adapters: Iterable[int]) -> Tensor:
        """Return W plus the changes of some adapters."""
        weight: Tensor = self.base_layer.weight
        for adapter in adapters:
            weight = weight + self.delta_weight(adapter)
        return weight

    def _bias_with(self, adapters: Iterable[int]) -> Tensor | None:
        """Return the bias of W plus the scaled biases of some adapters; None if there is none."""
        bias: Tensor | None = self.base_layer.bias
        for adapter in adapters if self.lora_bias else ():
            adapter_bias = self.scaling * cast(Tensor, self.lora_B[adapter].bias)  # not `get_parameter`: see `_product`
            bias = adapter_bias if bias is None else bias + adapter_bias
        return bias

    def extra_repr(self) -> str:
        """Return rank, scale and number of adapters for `repr`."""
        return f"rank={self.rank}, scaling={self.scaling:g}, adapters={len(self.lora_A)}"


class FusedLoRA(nn.Module):
    """One Linear layer for q, k and v, with separate adapters on some of these parts.

    Each adapted part is a child module, a `LoRALayer` on its `Rows`. It trains as a separate Linear layer would.

    Args:
        base_layer: the layer W [3 out, in].
        parts: the adapted parts by name.
    """

    def __init__(self, base_layer: nn.Linear, parts: Mapping[Target, LoRALayer]) -> None:
        """Wrap a layer."""
        super().__init__()
        self.base_layer = base_layer
        for name, part in parts.items():
            self.add_module(name, part)

    @property
    def parts(self) -> dict[str, LoRALayer]:
        """Return the adapted parts by name, in the order of their rows."""
        return {name: part for name, part in self.named_children() if isinstance(part, LoRALayer)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus that of the active adapters of its parts."""
        out: Tensor = self.base_layer(x)
        parts = self.parts
        if not any(part.active for part in parts.values()):
            return out
        chunks = zip(FUSED, out.chunk(len(FUSED), -1), strict=True)
        return torch.cat([parts[name](x, chunk) if name in parts else chunk for name, chunk in chunks], -1)


def width(layer: nn.Linear | nn.Conv2d | Rows) -> int:
    """Return the largest possible rank of a change of the layer's weight, as a matrix [out, all other dimensions]."""
    return min(layer.weight.shape[0], math.prod(layer.weight.shape[1:]))
