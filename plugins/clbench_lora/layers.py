"""Low-rank adapters on Linear and Conv2d layers or parts of them, and the selection of these layers."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Network
from clbench.core.errors import SpecError
from clbench.strategy.per_task import conv_like
from clbench_lora import AdapterOptions, Init, Target

# q, k, v and output projection within a module named attention, in the spellings that models use.
ATTENTION = r"(.*\.)?(\w+_)?att(n|ention)\w*\.(.*\.)?(q|k|v|qkv|proj|query|key|value|(q|k|v|o|out)_proj)"

# How a layer in attention says by the end of its name what it is; any other layer of `ATTENTION` is the projection.
ENDS: dict[str, Target] = {"q": "q", "query": "q", "q_proj": "q", "k": "k", "key": "k", "k_proj": "k",
                           "v": "v", "value": "v", "v_proj": "v"}
FUSED: tuple[Target, ...] = ("q", "k", "v")  # the parts of a layer named qkv, in the order of its rows
MLP = r"(.*\.)?mlp(\..*)?"


class Rows:
    """Some rows of a Linear layer's weight, taken as a layer of their own.

    Not a module: the weight stays the layer's, and is read from it anew each time.

    Args:
        layer: the whole layer.
        part: which of the parts, counted from 0.
        parts: the number of parts, all of one size.
    """

    def __init__(self, layer: nn.Linear, part: int, parts: int) -> None:
        """Note which rows."""
        self.layer = layer
        self.in_features = layer.in_features
        self.out_features = layer.out_features // parts
        self.rows = slice(part * self.out_features, (part + 1) * self.out_features)

    @property
    def weight(self) -> Tensor:
        """Return the rows' weight [out, in]."""
        return self.layer.weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """Return the rows' bias [out]; None if the layer has none."""
        bias: Tensor | None = self.layer.bias
        return None if bias is None else bias[self.rows]


class LoRALayer(nn.Module):
    """A layer W with low-rank adapters: h = Wx + s B(Ax), summed over the active adapters; Wx if none is active.

    A is random and B is zero, so a new adapter changes nothing. `active` holds the indices of the active adapters; the
    strategy sets it around each forward pass.

    The references differ. The paper draws A from a Gaussian; microsoft/loralib and PEFT (by default) draw it
    Kaiming-uniform (a = √5), as `init = kaiming` does here; `gaussian` is PEFT's, N(0, 1 / r^2). PEFT's defaults are
    rank 8 and `lora_alpha` 8, loralib's `lora_alpha` is 1 whatever the rank. On Conv2d this is PEFT's form (A a
    convolution with r output channels and the layer's geometry, B a 1x1 convolution, so BA has rank r as a matrix
    [out, in·kh·kw]), with the layer's dilation and padding mode as well. loralib's Conv2d factorises a matrix
    [out·k, in·k] with rank r·k instead. Names follow PEFT (`base_layer`, `lora_A`, `lora_B`, each with a `weight`),
    with the task's index where PEFT has the adapter's name.

    `init = pissa` (Meng et al. 2024, arXiv 2404.02948) starts A and B from the r largest singular values of W. The
    paper subtracts them from W. Here W is shared by all tasks and does not change; instead the start (`pissa_A`,
    `pissa_B`) is subtracted from the adapter's output: h = Wx + s (BA - B0 A0) x, which is the same function.

    `dora` (Liu et al. 2024, arXiv 2402.09353) learns the length of each row of W + s BA separately from its direction;
    the length in the denominator is a constant in the gradient, as in the paper (4.3) and in PEFT.

    Args:
        base_layer: the layer W, which does not change; or some of its rows, in a `FusedLoRA`.
        rank: r, at most the layer's width (`width`).
        scaling: s.
        init: how A (with pissa also B) is initialised.
        dropout: share of the adapter's inputs that are zeroed in training.
        bias: whether B has a bias, which s multiplies too (PEFT's `lora_bias`); not with dora.
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
        self.bias = bias
        self.lora_magnitude_vector = nn.ParameterList() if dora else None
        self.active: tuple[int, ...] = ()

    def add(self) -> None:
        """Add a trainable adapter, on the device and of the dtype of W."""
        w = self.base_layer
        where: dict[str, Any] = {"device": w.weight.device, "dtype": w.weight.dtype}
        a: nn.Module
        b: nn.Module
        if not isinstance(w, nn.Conv2d):
            a = nn.Linear(w.in_features, self.rank, bias=False, **where)
            b = nn.Linear(self.rank, w.out_features, bias=self.bias, **where)
        else:
            a = conv_like(w, w.in_channels, self.rank)
            b = nn.Conv2d(self.rank, w.out_channels, 1, bias=self.bias, **where)
        if self.init == "gaussian":
            nn.init.normal_(a.get_parameter("weight"), std=1 / self.rank)
        else:
            nn.init.kaiming_uniform_(a.get_parameter("weight"), a=math.sqrt(5))
        for parameter in b.parameters():
            nn.init.zeros_(parameter)
        self.lora_A.append(a)
        self.lora_B.append(b)
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.append(nn.Parameter(torch.ones(len(w.weight), **where)))
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Let the newest adapter start from the current W; `add` calls it, and it must be called again if W changes."""
        weight = self.base_layer.weight
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector[-1].copy_(weight.flatten(1).norm(dim=1))
        if self.init == "pissa":
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:self.rank] / self.scaling).sqrt()
            a, b = (part[-1].get_parameter("weight") for part in (self.lora_A, self.lora_B))
            a.copy_(root[:, None] * v[:self.rank])
            b.copy_(u[:, :self.rank] * root)
            # Copies of A and B, laid out as they are: products of the same values in another layout may be rounded
            # otherwise, and h would not be Wx at first.
            self.register_buffer("pissa_A", a.clone())
            self.register_buffer("pissa_B", b.clone())

    def parameters_of(self, adapter: int) -> dict[str, nn.Parameter]:
        """Return the parameters of one adapter, by PEFT's names."""
        found = {"lora_A.weight": self.lora_A[adapter].get_parameter("weight"),
                 "lora_B.weight": self.lora_B[adapter].get_parameter("weight")}
        if self.bias:
            found["lora_B.bias"] = self.lora_B[adapter].get_parameter("bias")
        if self.lora_magnitude_vector is not None:
            found["lora_magnitude_vector"] = self.lora_magnitude_vector[adapter]
        return found

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the layer's output plus that of the active adapters.

        Args:
            x: the input.
            out: the layer's output Wx, which is computed if it is not given; with `Rows` it must be.
        """
        if out is None:
            assert not isinstance(self.base_layer, Rows)
            out = cast(Tensor, self.base_layer(x))
        if not self.active:
            return out
        x = self.lora_dropout(x)
        for adapter in self.active:
            low: Tensor = self.lora_A[adapter](x)
            added: Tensor = self.scaling * self.lora_B[adapter](low)
            if self.init == "pissa":
                added = added - self.scaling * F.linear(F.linear(x, self.pissa_A), self.pissa_B)
            if self.lora_magnitude_vector is not None:
                added = self._rescaled(out, added, adapter)
            out = out + added
        return out

    def _rescaled(self, out: Tensor, added: Tensor, adapter: int) -> Tensor:
        """Return what DoRA adds to Wx + b: rows are rescaled to the learned lengths, and the bias is left out."""
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
        """Return the weight of a plain layer that, with `merged_bias`, is the same function as W with the adapter."""
        return self.base_layer.weight + self.delta_weight(adapter)

    def merged_bias(self, adapter: int) -> Tensor | None:
        """Return W's bias plus the adapter's; None if there is neither."""
        bias: Tensor | None = self.base_layer.bias
        if not self.bias:
            return bias
        own: Tensor = self.scaling * self.lora_B[adapter].get_parameter("bias")
        return own if bias is None else bias + own

    def extra_repr(self) -> str:
        """Return rank, scale and number of adapters for `repr`."""
        return f"rank={self.rank}, scaling={self.scaling:g}, adapters={len(self.lora_A)}"


class FusedLoRA(nn.Module):
    """One Linear layer for q, k and v, with adapters on some of these parts, each with an A and B of its own.

    Each adapted part is a child, a `LoRALayer` on its `Rows`, and learns as a Linear layer of its own would.

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
    """Return the largest possible rank of a change of the layer, whose weight is taken as a matrix [out, the rest]."""
    return min(layer.weight.shape[0], math.prod(layer.weight.shape[1:]))


def select(model: Network, layers: str, method: str = "lora",
           targets: Sequence[Target] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers of a model's blocks that `layers` selects, by module name, in the model's order.

    Args:
        model: the model.
        layers: all | last | last:N | attention | a regular expression that must fit a whole name (as PEFT's
            `target_modules`).
        method: whose option it is, for errors.
        targets: if there are any, of these layers only those that are, or contain, one of them (`parts_of`).

    Raises:
        SpecError: no layer matches, or none is one of the targets; there are fewer than N; or one that matches cannot
            be adapted.
    """
    candidates: dict[str, nn.Linear | nn.Conv2d] = {
        f"blocks.{name}": module for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)}
    last = re.fullmatch(r"last(?::(\d+))?", layers)
    if last:
        count = int(last[1] or 1)
        if candidates and not 1 <= count <= len(candidates):
            raise SpecError(f"{method}: layers = {layers}, but this model's blocks have {len(candidates)} Linear and "
                            f"Conv2d layers; choose from last:1 to last:{len(candidates)}")
        chosen = dict([*candidates.items()][-count:])
    else:
        pattern = re.compile({"all": ".*", "attention": ATTENTION}.get(layers, layers))
        chosen = {name: layer for name, layer in candidates.items() if pattern.fullmatch(name)}
    if not chosen:
        raise SpecError(f"{method}: layers = {layers} fits no layer of this model; its Linear and Conv2d layers are "
                        f"{', '.join(candidates) or '(none)'}")
    if targets:
        chosen = _narrowed(model, chosen, targets, method)
    for name, layer in chosen.items():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise SpecError(f"{method}: {name} is a convolution in {layer.groups} groups, which has no low-rank "
                            "adapter; leave it out with layers = <regular expression>")
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise SpecError(f"{method}: {name} is part of torch's nn.MultiheadAttention, which reads its weight "
                            "without calling it; leave it out with layers = <regular expression>")
    return chosen


def parts_of(name: str) -> tuple[Target, ...]:
    """Return what a layer is by its name: q, k, v, proj or mlp; all of q, k and v if it is named qkv; else nothing."""
    if re.fullmatch(MLP, name):
        return ("mlp",)
    if not re.fullmatch(ATTENTION, name):
        return ()
    end = name.rpartition(".")[2]
    return FUSED if end == "qkv" else (ENDS.get(end, "proj"),)


def _narrowed(model: Network, chosen: Mapping[str, nn.Linear | nn.Conv2d], targets: Sequence[Target],
              method: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return those of the layers that are, or contain, one of the targets; each target must have some."""
    wanted = f"{method}: targets = {'+'.join(targets)}"
    found = {name: layer for name, layer in chosen.items() if {*parts_of(name)} & {*targets}}
    missing = [target for target in targets if not any(target in parts_of(name) for name in found)]
    if missing and missing != ["mlp"] and any(isinstance(m, nn.MultiheadAttention) for m in model.blocks.modules()):
        raise SpecError(f"{wanted}: this model's attention is torch's nn.MultiheadAttention, which keeps q, k and v "
                        "outside of layers, where no adapter can be; only mlp can be adapted")
    if missing:
        raise SpecError(f"{wanted}: no selected layer of this model is {missing[0]} by its name (layers in attention "
                        f"end in q, k, v, qkv or proj, others are in mlp); the selected are {', '.join(chosen)}")
    for name, layer in found.items():
        attention = model.get_submodule(name.rpartition(".")[0])
        if parts_of(name) != FUSED:
            continue
        if not isinstance(layer, nn.Linear) or layer.out_features != 3 * layer.in_features:
            raise SpecError(f"{wanted}: {name} (weight {'x'.join(map(str, layer.weight.shape))}) is not q, k and v of "
                            "one width as a Linear layer, so its parts are not known; leave targets out")
        if getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False):
            raise SpecError(f"{wanted}: {name} is part of an attention with biases outside of it (q_bias), which reads "
                            "its weight without calling it; leave it out with layers = <regular expression>")
    return found


def rank_of(name: str, options: AdapterOptions) -> int:
    """Return a layer's rank: that of the first pattern that matches its whole name, else the common rank."""
    return next((rank for pattern, rank in options.rank_pattern.items() if re.fullmatch(pattern, name)), options.rank)


def scaling_of(rank: int, options: AdapterOptions) -> float:
    """Return the factor of an adapter's output: alpha / r, or alpha / √r (rslora); alpha is r by default."""
    alpha = rank if options.alpha is None else options.alpha
    return alpha / (math.sqrt(rank) if options.scaling == "rslora" else rank)


def adapt(model: Network, options: AdapterOptions, method: str = "lora") -> dict[str, LoRALayer]:
    """Put adapters on each layer that `options` selects, and return these by module name.

    A layer becomes a `LoRALayer`. With targets, a layer named qkv becomes a `FusedLoRA`, and what is returned are its
    adapted parts, as `qkv.q` and so on.

    Raises:
        SpecError: as `select`; a rank exceeds its layer's width; a pattern matches no layer; pissa on a convolution.
            The model is unchanged then.
    """
    chosen = select(model, options.layers, method, options.targets)
    idle = [p for p in options.rank_pattern if not any(re.fullmatch(p, name) for name in chosen)]
    if idle:
        raise SpecError(f"{method}: rank_pattern {idle[0]!r} fits no adapted layer; those are {', '.join(chosen)}")
    wrapped: dict[str, LoRALayer | FusedLoRA] = {}
    for name, layer in chosen.items():
        rank = rank_of(name, options)
        if rank > width(layer):  # that of a qkv's parts, too
            shape = "x".join(map(str, layer.weight.shape))
            raise SpecError(f"{method}: rank = {rank} exceeds the width {width(layer)} of {name} (weight {shape}); "
                            f"choose rank <= {min(map(width, chosen.values()))}, another rank_pattern, or other layers")
        if options.init == "pissa" and not isinstance(layer, nn.Linear):
            raise SpecError(f"{method}: init = pissa is defined on Linear layers only, and {name} is a convolution; "
                            "choose init = kaiming or gaussian, or other layers")
        make = functools.partial(LoRALayer, rank=rank, scaling=scaling_of(rank, options), init=options.init,
                                 dropout=options.dropout, bias=options.bias, dora=options.dora)
        if options.targets and parts_of(name) == FUSED and isinstance(layer, nn.Linear):
            wrapped[name] = FusedLoRA(layer, {part: make(Rows(layer, i, len(FUSED))) for i, part in enumerate(FUSED)
                                              if part in options.targets})
        else:
            wrapped[name] = make(layer)
    made: dict[str, LoRALayer] = {}
    for name, adapted in wrapped.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted)
        made |= ({name: adapted} if isinstance(adapted, LoRALayer) else
                 {f"{name}.{part}": layer for part, layer in adapted.parts.items()})
    return made
