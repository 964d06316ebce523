"""Divide models of timm and torchvision into blocks of a `Network`.

A model is a chain if it calls its modules one after the other, each on the output of the previous one, and does nothing
else. `torch.fx` detects chains: it runs `forward` on a proxy for the input and records all calls. A chain can be cut
between any two modules and still computes the same function. A model that is not a chain becomes one block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from clbench.core.errors import SpecError
from clbench.models.network import Block, Network, Ports

CHANNELS = 3  # of the input images
POOLING = ("global_pool", "avgpool", "head")  # modules of timm and torchvision that pool feature maps into a vector


class Stage(NamedTuple):
    """The last module of a block, the channels of its output, and the factor by which the image's side is reduced."""

    module: str
    channels: int
    reduction: int


class Calls(fx.Tracer):
    """Records the modules that a model calls directly, and not the calls inside these modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True, so that no module is traced inside."""
        return True


def chain(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Return the modules of a chain with their names, in order; None if the model is not a chain.

    A call of `flatten` from dimension 1 counts as a module with an empty name.
    """
    try:
        nodes = list(Calls().trace(model).nodes)
    except Exception:  # `forward` may raise anything on a proxy; in this case, the model is not a chain
        return None
    modules: list[tuple[str, nn.Module]] = []
    for previous, node in itertools.pairwise(nodes):
        flattens = node.target in (torch.flatten, "flatten") and node.args[1:] == (1,)
        if node.op == "output" and node.args == (previous,):
            return modules
        if node.kwargs or node.args[:1] != (previous,) or len(node.args) != 1 + flattens:
            return None
        if node.op == "call_module":
            modules.append((str(node.target), model.get_submodule(str(node.target))))
        elif flattens:
            modules.append(("", nn.Flatten()))
        else:
            return None
    return None


class Steps(nn.Sequential):
    """A sequence of modules of a library's model, under their original names with _ instead of dots.

    Args:
        steps: the name and the module of each step.
        ports: inputs and outputs of the sequence, if lateral connections may be attached.
    """

    def __init__(self, steps: Sequence[tuple[str, nn.Module]], ports: Ports | None = None) -> None:
        """Add the modules."""
        super().__init__()
        for number, (name, module) in enumerate(steps):
            self.add_module(name.replace(".", "_") or str(number), module)
        self.ports = ports


def cut(model: nn.Module, stages: Sequence[Stage], features: int,
        maps: bool = True) -> tuple[list[Block], dict[str, str]] | None:
    """Return a model's blocks, one for each stage, and the names of its modules in them.

    Modules after the last stage belong to the last block: those before the global pooling to its body, the others to
    its activation.

    Args:
        model: a model whose classifier was replaced by the identity.
        stages: the stages, in order.
        features: the number of features per sample, which the model returns.
        maps: whether the stages return feature maps [N, C, H, W]; only then do blocks get ports.

    Returns:
        The blocks and `{name in the model: name in a network of these blocks}`; None if the model is not a chain, or
        does not call the last module of each stage.
    """
    steps = chain(model)
    if steps is None:
        return None
    ends = [stage.module for stage in stages]
    expanded: list[tuple[str, nn.Module]] = []
    for name, module in steps:
        if type(module) is nn.Sequential and any(end.startswith(f"{name}.") for end in ends):
            expanded += [(f"{name}.{child}", part) for child, part in module.named_children()]
        else:
            expanded.append((name, module))
    names = [name for name, _ in expanded]
    if not ends or any(end not in names for end in ends) or sorted(ends, key=names.index) != ends:
        return None
    bounds = [0, *(names.index(end) + 1 for end in ends)]
    pooled = next((i for i, name in enumerate(names) if i >= bounds[-1] and name in POOLING), None)
    if pooled is not None:
        bounds[-1] = pooled
    blocks: list[Block] = []
    aliases: dict[str, str] = {}
    channels, reduction = CHANNELS, 1
    for number, stage in enumerate(stages):
        is_last = number == len(stages) - 1
        body, tail = expanded[bounds[number]:bounds[number + 1]], expanded[bounds[-1]:] if is_last else []
        out_channels = features if is_last else stage.channels
        ports = Ports(channels, out_channels, stage.reduction // reduction) if maps and pooled is not None else None
        blocks.append(Block(Steps(body, ports), Steps(tail) if tail else nn.Identity()))
        for part, part_modules in (("body", body), ("activation", tail)):
            aliases |= {name: f"blocks.{number}.{part}.{name.replace('.', '_')}" for name, _ in part_modules if name}
        channels, reduction = stage.channels, stage.reduction
    return blocks, aliases


class Backbone(nn.Module):
    """A whole model without its classifier. The model is a submodule, so that its names have a common prefix."""

    def __init__(self, model: nn.Module) -> None:
        """Store the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, D] of images x [N, 3, H, W]."""
        features: Tensor = self.model(x)
        return features


def square(name: str, input_shape: tuple[int, ...]) -> int:
    """Return the side of the input images in pixels; SpecError if they do not have 3 channels or are not square."""
    if len(input_shape) != 3 or input_shape[0] != CHANNELS or input_shape[1] != input_shape[2]:
        raise SpecError(f"model {name!r} takes square images with {CHANNELS} channels, this benchmark has inputs "
                        f"{list(input_shape)}; choose a size ({name}:size=224) or another model or benchmark")
    return input_shape[1]


def whole_patches(name: str, side: int, patch: int) -> None:
    """Raise a `SpecError` with the nearest valid size if images of `side` pixels cannot be cut into whole patches."""
    if side % patch:
        nearest = max(patch, round(side / patch) * patch)
        raise SpecError(f"model {name!r} cuts images into patches of {patch} x {patch} pixels, this benchmark has "
                        f"inputs of {side} x {side}; choose a multiple of {patch}, such as {name}:size={nearest}")


def remove_classifier(model: nn.Module, classifier: nn.Linear) -> str:
    """Replace a model's classifier by the identity and return its name."""
    name: str = next(n for n, module in model.named_modules() if module is classifier)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return name


def build_stages(model: nn.Module, classifier: nn.Linear, classes: int, stages: Sequence[Stage], maps: bool,
                 conform: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None) -> Network:
    """Return a network of a model's stages and a new head, or with one block if the model is not a chain.

    Args:
        model: a model of the library, whose modules the network uses.
        classifier: the model's last layer, which the head replaces.
        classes: the number of outputs of the head.
        stages: see `cut`.
        maps: see `cut`.
        conform: see `Network`.
    """
    name = remove_classifier(model, classifier)
    parts = cut(model, stages, classifier.in_features, maps)
    if parts is None:
        parts = ([Block(Backbone(model), nn.Flatten())],
                 {part: f"blocks.0.body.model.{part}" for part in children(model)})
    blocks, aliases = parts
    return Network(blocks, nn.Linear(classifier.in_features, classes), {**aliases, name: "head"},
                   published=True, conform=conform)


def children(model: nn.Module) -> list[str]:
    """Return the names of a model's direct submodules, parameters and buffers."""
    tensors: list[tuple[str, Any]] = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return [name for name, _ in (*model.named_children(), *tensors)]
