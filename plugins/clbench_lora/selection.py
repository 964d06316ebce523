"""Which layers of a model get adapters, of which rank, by the options of the methods."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

from torch import nn

from clbench import Network
from clbench.core.errors import SpecError
from clbench_lora import AdapterOptions, Target
from clbench_lora.layers import FUSED, FusedLoRA, LoRALayer, Rows, width

# q, k, v and output projection within a module named attention, in the spellings that models use.
ATTENTION = r"(.*\.)?(\w+_)?att(n|ention)\w*\.(.*\.)?(q|k|v|qkv|proj|query|key|value|(q|k|v|o|out)_proj)"

# How a layer in attention says by the end of its name what it is; any other layer of `ATTENTION` is the projection.
ENDS: dict[str, Target] = {"q": "q", "query": "q", "q_proj": "q", "k": "k", "key": "k", "k_proj": "k",
                           "v": "v", "value": "v", "v_proj": "v"}
MLP = r"(.*\.)?mlp(\..*)?"


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
