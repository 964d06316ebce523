"""Select the layers of a model that get adapters, and their ranks, by the options of the methods."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from clbench import Network
from clbench.core.errors import SpecError
from clbench.models.network import SAME
from clbench_lora import ALL_LINEAR, AdapterOptions, LowRankOptions, Target
from clbench_lora.layers import FUSED, FusedLoRA, LoRALayer, width
from clbench_lora.rows import Rows

# Last parts of the names of q, k, v and output projections in attention, in the spellings that models use.
SPELLINGS: dict[Target, tuple[str, ...]] = {
    "q": ("q", "query", "q_proj", "q_lin", "query_proj"), "k": ("k", "key", "k_proj", "k_lin", "key_proj"),
    "v": ("v", "value", "v_proj", "v_lin", "value_proj"),
    "proj": ("proj", "o", "o_proj", "out_proj", "out_lin", "dense", "Wo")}
ENDS = {name: part for part, names in SPELLINGS.items() for name in names}
# Names of one layer for q, k and v. Except in a layer qkv, models order their rows in several ways.
TOGETHER = ("qkv", "qkv_proj", "query_key_value", "Wqkv")

INSIDE = r"(.*\.)?(\w+_)?att(n|ention)\w*\."  # the start of the name of a layer within an attention module
ATTENTION = rf"{INSIDE}(.*\.)?({'|'.join([*ENDS, *TOGETHER])})"
MLP = r"(.*\.)?mlp(\..*)?"

# Modules that pass their layers' weights to a function instead of calling the layers: torchvision's Swin transformers.
READERS = {"ShiftedWindowAttention"}


class Selection(NamedTuple):
    """The layers of a model that `layers` and `targets` select, by module name, in the model's order."""

    layers: dict[str, nn.Linear | nn.Conv2d]  # the layers to adapt
    left_out: str  # a description of the layers that `all`, `last` and `blocks` skip, and why


def select(model: Network, layers: str, method: str = "lora",
           targets: Sequence[Target] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that are adapted, by module name, in the model's order (`choose`)."""
    return choose(model, layers, method, targets).layers


def choose(model: Network, layers: str, method: str = "lora", targets: Sequence[Target] = ()) -> Selection:
    """Select layers of a model's blocks by `layers` and `targets`.

    Args:
        model: the model.
        layers: all | last | last:N (the last N layers) | blocks:N (all layers of the last N blocks that have any) |
            attention | a regular expression that must match a whole name (as PEFT's `target_modules`). The first four
            skip layers that cannot be adapted (`obstacle`), and N does not count these.
        method: the method's name, for errors.
        targets: if not empty, only layers that are, or contain, one of these parts are selected (`is_one_of`).

    Raises:
        SpecError: no layer matches; a target matches no layer; there are fewer than N layers or blocks; or a layer
            that `attention` or a regular expression matches cannot be adapted.
    """
    candidates: dict[str, nn.Linear | nn.Conv2d] = {
        f"blocks.{name}": module for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)}
    obstacles = {name: reason for name in candidates if (reason := obstacle(model, name))}
    match = re.fullmatch(r"last|(?:last|blocks):\d+", layers)
    if match:
        unit, _, count = layers.partition(":")
        names = _last(candidates, obstacles, len(model.blocks), unit, int(count or 1),
                      f"{method}: layers = {layers}")
    else:
        pattern = re.compile({"all": ".*", "attention": ATTENTION}.get(layers, layers))
        names = [name for name in candidates if pattern.fullmatch(name)]
    skips_obstacles = layers == "all" or bool(match)
    chosen = {name: candidates[name] for name in names if not (skips_obstacles and name in obstacles)}
    left_out = [name for name in names if skips_obstacles and name in obstacles]
    model.require_body(f"{method} adapts layers before the head")
    if not chosen:
        raise SpecError(f"{method}: layers = {layers} fits no layer of this model" + (
            f" that can be adapted: {_described(left_out, candidates, obstacles)}" if left_out else
            f"; its Linear and Conv2d layers are {', '.join(candidates) or '(none)'}"))
    if targets:
        blocked = [name for name in left_out if is_one_of(targets, name, candidates[name])]
        chosen = _narrowed(model, chosen, targets, method, _described(blocked, candidates, obstacles))
        left_out = blocked
    for name in chosen:
        if name in obstacles:
            raise SpecError(f"{method}: {name} is {obstacles[name]}; leave it out with layers = <regular expression>")
    return Selection(chosen, _described(left_out, candidates, obstacles))


def has_parts(model: Network | None, targets: Sequence[Target]) -> bool:
    """Return whether a model has layers that are these parts and can be adapted."""
    try:
        return model is not None and bool(choose(model, "all", targets=targets).layers)
    except SpecError:
        return False


def _last(candidates: Mapping[str, nn.Module], obstacles: Mapping[str, str], blocks: int, unit: str, count: int,
          wanted: str) -> list[str]:
    """Return the names of all layers from the start of the last `count` layers or blocks, in the model's order."""
    usable = [name for name in candidates if name not in obstacles]
    units = usable if unit == "last" else list(dict.fromkeys(map(_block, usable)))
    if usable and not 1 <= count <= len(units):
        kind = " that can be adapted" if obstacles else ""
        has = (f"this model's blocks have {len(units)} Linear and Conv2d layers{kind}" if unit == "last" else
               f"in this model there are Linear or Conv2d layers{kind} in {len(units)} of {blocks} blocks")
        choice = f"choose from {unit}:1 to {unit}:{len(units)}" if len(units) > 1 else f"choose {unit}:1"
        raise SpecError(f"{wanted}, but {has}; {choice}")
    names = list(candidates)
    if unit == "last":
        return names[names.index(usable[-count]):] if usable else names
    return [name for name in names if not usable or _block(name) in units[-count:]]


def _block(name: str) -> str:
    """Return the number of the block that a layer is in."""
    return name.split(".")[1]


def obstacle(model: Network, name: str) -> str:
    """Return why a layer cannot be adapted, such as `a convolution in 4 groups`; an empty string if it can be."""
    layer, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return f"a convolution in {layer.groups} groups, which has no low-rank adapter"
        if type(layer).forward is not nn.Conv2d.forward and type(layer).__name__ != SAME:
            return f"a {type(layer).__name__}, which changes its weight before it convolves with it"
    if isinstance(parent, nn.MultiheadAttention):
        return "part of torch's nn.MultiheadAttention, which reads its weight without calling it"
    if READERS & {kind.__name__ for kind in type(parent).__mro__}:
        return f"part of a {type(parent).__name__}, which reads its weight without calling it"
    has_outer_bias = getattr(parent, "q_bias", None) is not None and not getattr(parent, "qkv_bias_separate", False)
    if has_outer_bias and name.endswith(".qkv"):
        return "part of an attention with biases outside of it (q_bias), which reads its weight without calling it"
    return ""


def remarks(model: Network, options: LowRankOptions, method: str = "lora") -> list[str]:
    """Return notes for the record about the layers that `options` select. Call this before the model is adapted.

    Raises:
        SpecError: see `choose`.
    """
    left_out = choose(model, options.layers, method, options.targets).left_out
    notes = [f"layers = {options.layers} leaves out what cannot be adapted: {left_out}"] if left_out else []
    inside = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and re.match(INSIDE, name)]
    others = dict.fromkeys(re.sub(r"\d+", "*", name) for name in inside if not re.fullmatch(ATTENTION, name))
    if options.layers == "attention" and others:
        notes.append("layers = attention leaves out layers in attention that are not q, k, v or the output projection "
                     f"by their names: {', '.join(others)}")
    if inside and not left_out and options.layers == "all" and not (options.targets or has_parts(model, options.PAPER)):
        notes.append("all layers have adapters, because the parts that the method's paper adapts "
                     f"({'+'.join(options.PAPER)}) are not layers of their own in this model")
    return notes


def _described(left_out: Sequence[str], candidates: Iterable[str], obstacles: Mapping[str, str]) -> str:
    """Describe skipped layers. Layers whose names differ only in numbers are grouped, as in `blocks.*.conv2`.

    From the left, as many numbers as possible become a `*`, as long as the pattern matches only skipped layers.
    """
    other_names = [name for name in candidates if name not in left_out]
    groups: dict[tuple[str, str], list[str]] = {}
    for name in left_out:
        numbers = len(re.findall(r"\d+", name))
        patterns = (re.sub(r"\d+", "*", name, count=count) for count in range(numbers, 0, -1))
        common = next((w for w in patterns if not any(
            re.fullmatch(re.escape(w).replace(r"\*", r"\d+"), other_name) for other_name in other_names)), name)
        groups.setdefault((common, re.sub(r" \d+ groups", " groups", obstacles[name])), []).append(name)
    return "; ".join(f"{common} ({len(members)} layers), each {reason}" if len(members) > 1 else
                     f"{members[0]} is {obstacles[members[0]]}" for (common, reason), members in groups.items())


def is_one_of(targets: Sequence[Target], name: str, layer: nn.Module) -> bool:
    """Return whether a layer is, or contains, one of the targets."""
    return bool({*parts_of(name)} & {*targets}) or (ALL_LINEAR in targets and isinstance(layer, nn.Linear))


def parts_of(name: str) -> tuple[Target, ...]:
    """Return the parts that a layer is by its name: q, k, v, proj or mlp; q, k and v if it is named qkv; or none.

    Other layers for q, k and v together (`TOGETHER`) are none.
    """
    if re.fullmatch(MLP, name):
        return ("mlp",)
    if not re.fullmatch(ATTENTION, name):
        return ()
    end = name.rpartition(".")[2]
    return FUSED if end == "qkv" else (ENDS[end],) if end in ENDS else ()


def divided(name: str, targets: Sequence[Target]) -> bool:
    """Return whether a layer is one layer for q, k and v, and at least one of these is a target."""
    return parts_of(name) == FUSED and bool({*FUSED} & {*targets})


def _narrowed(model: Network, chosen: Mapping[str, nn.Linear | nn.Conv2d], targets: Sequence[Target], method: str,
              blocked: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that are, or contain, one of the targets; each target must match at least one layer.

    `blocked` describes the targets' layers that were skipped because they cannot be adapted.
    """
    prefix = f"{method}: targets = {'+'.join(targets)}"
    layers = {name: layer for name, layer in chosen.items() if is_one_of(targets, name, layer)}
    missing = [target for target in targets if not any(is_one_of((target,), *item) for item in layers.items())]
    if {*missing} & {*FUSED} and any(isinstance(m, nn.MultiheadAttention) for m in model.blocks.modules()):
        raise SpecError(f"{prefix}: this model's attention is torch's nn.MultiheadAttention, which keeps q, k and v "
                        "outside of layers, where no adapter can be; only mlp can be adapted")
    if missing and blocked:
        raise SpecError(f"{prefix}: no layer that is {missing[0]} can be adapted: {blocked}")
    if missing == [ALL_LINEAR]:
        raise SpecError(f"{prefix}: none of the selected layers is a Linear one; they are {', '.join(chosen)}")
    if missing:
        raise SpecError(f"{prefix}: no selected layer of this model is {missing[0]} by its name (layers in attention "
                        f"end in q, k, v, qkv or proj, others are in mlp); the selected are {', '.join(chosen)}")
    for name, layer in layers.items():
        if not divided(name, targets):
            continue
        if not isinstance(layer, nn.Linear) or layer.out_features != 3 * layer.in_features:
            raise SpecError(f"{prefix}: {name} (weight {'x'.join(map(str, layer.weight.shape))}) is not q, k and v of "
                            "one width as a Linear layer, so its parts are not known; leave targets out")
        if is_ordered_by_head(model.get_submodule(name.rpartition(".")[0])):
            raise SpecError(f"{prefix}: the rows of {name} are ordered by head, so q, k and v have no rows of their "
                            "own that follow each other; leave targets out")
    return layers


def is_ordered_by_head(attention: nn.Module) -> bool:
    """Return whether the layer qkv of an attention of timm has the rows q, k, v of one head after those of another.

    MaxViT says so by `head_first`. Those that have a `key_dim`, such as TinyViT, always do.
    """
    return bool(getattr(attention, "head_first", False)) or hasattr(attention, "key_dim")


def rank_of(name: str, options: AdapterOptions) -> int:
    """Return a layer's rank: the rank of the first pattern that matches its whole name, else the common rank."""
    return next((rank for pattern, rank in options.rank_pattern.items() if re.fullmatch(pattern, name)), options.rank)


def scaling_of(rank: int, options: AdapterOptions) -> float:
    """Return the factor of an adapter's output: alpha / r, or alpha / √r (rslora); alpha is r by default."""
    alpha = rank if options.alpha is None else options.alpha
    return alpha / (math.sqrt(rank) if options.scaling == "rslora" else rank)


def adapt(model: Network, options: AdapterOptions, method: str = "lora",
          rank_option: str = "rank") -> dict[str, LoRALayer]:
    """Put adapters on each layer that `options` select, and return the adapted layers by module name.

    A layer becomes a `LoRALayer`. A layer named qkv of which targets are parts becomes a `FusedLoRA`; its adapted parts
    are returned instead of it, as `qkv.q` and so on. `rank_option` is the name of the method's option for the rank.

    Raises:
        SpecError: see `choose`; or a rank exceeds its layer's width, a pattern matches no layer, or pissa is used on a
            convolution. The model is then unchanged.
    """
    chosen = select(model, options.layers, method, options.targets)
    unmatched = [p for p in options.rank_pattern if not any(re.fullmatch(p, name) for name in chosen)]
    if unmatched:
        raise SpecError(f"{method}: rank_pattern {unmatched[0]!r} fits no adapted layer; those are {', '.join(chosen)}")
    wrapped: dict[str, LoRALayer | FusedLoRA] = {}
    for name, layer in chosen.items():
        rank = rank_of(name, options)
        if rank > width(layer):  # of a qkv layer, this is also the width of its parts
            shape = "x".join(map(str, layer.weight.shape))
            others = ", another rank_pattern, or other layers" if rank_option == "rank" else ""
            raise SpecError(f"{method}: {rank_option} = {rank} exceeds the width {width(layer)} of {name} (weight "
                            f"{shape}); choose {rank_option} <= {min(map(width, chosen.values()))}{others}")
        if options.init == "pissa" and not isinstance(layer, nn.Linear):
            raise SpecError(f"{method}: init = pissa is defined on Linear layers only, and {name} is a convolution; "
                            "choose init = kaiming or gaussian, or other layers")
        make = functools.partial(LoRALayer, rank=rank, scaling=scaling_of(rank, options), init=options.init,
                                 dropout=options.dropout, bias=options.bias, dora=options.dora)
        if divided(name, options.targets) and isinstance(layer, nn.Linear):
            wrapped[name] = FusedLoRA(layer, {part: make(Rows(layer, i, len(FUSED))) for i, part in enumerate(FUSED)
                                              if part in options.targets})
        else:
            wrapped[name] = make(layer)
    adapted_layers: dict[str, LoRALayer] = {}
    for name, adapted in wrapped.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted)
        adapted_layers |= ({name: adapted} if isinstance(adapted, LoRALayer) else
                           {f"{name}.{part}": layer for part, layer in adapted.parts.items()})
    return adapted_layers
