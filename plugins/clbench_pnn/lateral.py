"""The lateral adapters of progressive networks, and the shapes of a model's layers that they need."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench import Block, Network
from clbench.core.errors import SpecError
from clbench.core.tokens import present
from clbench.models.network import Ports
from clbench.strategy.per_task import conv_like

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
ALPHA = 0.1  # the scalars start uniform between 0 and this


@dataclass(frozen=True)
class Join:
    """A place where laterals join: the layer or body that reads a block's output, and the channels of that output."""

    reader: nn.Linear | nn.Conv2d | Ports
    channels: int  # n_{i-1}: units of a dense layer, channels of a convolution, numbers per token

    @property
    def outputs(self) -> int:
        """Return the number of output units or channels of the reader."""
        return outputs(self.reader)

    @property
    def tokens(self) -> bool:
        """Return whether the block's output is tokens [N, L, channels]."""
        return isinstance(self.reader, Ports) and self.reader.tokens


def outputs(reader: nn.Linear | nn.Conv2d | Ports) -> int:
    """Return the number of output units or channels of a layer or body."""
    return reader.outputs if isinstance(reader, Ports) else reader.weight.shape[0]


def joins(model: Network) -> list[Join]:
    """Return the places where laterals join, from the second block through the head.

    Raises:
        SpecError: a block is not built so that a lateral can be added between its body and its activation.
    """
    model.require_body("pnn connects layers before the head")
    readers = [reader(block, f"blocks.{i}") for i, block in enumerate(model.blocks)] + [model.head]
    places = []
    for i, (layer, next_layer) in enumerate(itertools.pairwise(readers)):
        channels = outputs(layer)
        if isinstance(next_layer, nn.Linear):
            fits = next_layer.in_features % channels == 0
        else:
            fits = channels == (next_layer.in_channels if isinstance(next_layer, nn.Conv2d) else next_layer.inputs)
        if not fits:
            raise SpecError(f"pnn: blocks.{i} gives {channels} channels, which what follows it does not read as they "
                            f"are ({next_layer}); choose another model")
        places.append(Join(next_layer, channels))
    return places


def reader(block: nn.Module, name: str) -> nn.Linear | nn.Conv2d | Ports:
    """Return the part that reads a block's input: its body's ports, or its only Linear or Conv2d.

    In addition to this layer, the body may contain only flattening, normalization, dropout and identity layers.
    """
    parts: list[nn.Module] = []
    if isinstance(block, Block) and type(block).forward is Block.forward:
        if isinstance(ports := getattr(block.body, "ports", None), Ports):
            return ports
        parts = list(block.body) if isinstance(block.body, nn.Sequential) else [block.body]
    layers = [part for part in parts if isinstance(part, nn.Linear | nn.Conv2d)]
    plain = all(isinstance(part, (nn.Linear, nn.Conv2d, nn.Flatten, nn.Dropout, nn.Identity, *NORMS)) for part in parts)
    if len(layers) != 1 or not plain or (isinstance(layers[0], nn.Conv2d)
                                         and any(isinstance(part, nn.Flatten) for part in parts)):
        kind = type(block.body).__name__ if isinstance(block, Block) else type(block).__name__
        raise SpecError(f"pnn: no lateral connection is known for {name} ({kind}): a body must have `ports`, or be "
                        "one Linear or Conv2d with flattening or normalization at most; choose another model, such as "
                        "mlp, cnn, resnet18 or vit-tiny")
    return layers[0]


class Lateral(nn.Module):
    """U relu(V [a_1 h^(1), ..., a_k h^(k)]): the term that k earlier columns add to a layer before its activation.

    V reduces the concatenated outputs h^(j) of the previous block to n_{i-1} / reduction channels. It is a dense layer
    (applied to each token, if the outputs are tokens). If they are feature maps, it is a 1x1 convolution, even if the
    layer itself reads them flattened. U has the geometry of the layer it is added to. If it is added to a body of
    several layers, it is a 1x1 convolution with the body's stride, or a dense layer on each token. V has a bias, U has
    none.

    Args:
        join: the layer to which the term is added, and the channels of each h^(j).
        out: number of output units or channels of the layer (for the head, they differ from task to task).
        columns: k.
        reduction: divides the width of V.
        like: a parameter whose device and type the lateral takes.
    """

    def __init__(self, join: Join, out: int, columns: int, reduction: int, like: Tensor) -> None:
        """Initialize V and U by torch's default, and the scalars a_j (`alpha`) with small random values (the paper)."""
        super().__init__()
        factory_kwargs: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        in_channels, reduced, target = columns * join.channels, max(1, join.channels // reduction), join.reader
        self.channels = join.channels
        self.tokens = join.tokens
        self.dense = isinstance(target, nn.Linear)
        self.alpha = nn.Parameter(torch.empty(columns, **factory_kwargs).uniform_(0, ALPHA))
        self.V: nn.Module
        self.U: nn.Module
        positions = target.in_features // join.channels if isinstance(target, nn.Linear) else 1
        if self.tokens or (self.dense and positions == 1):
            self.V = nn.Linear(in_channels, reduced, **factory_kwargs)
        else:
            self.V = nn.Conv2d(in_channels, reduced, 1, **factory_kwargs)
        if isinstance(target, nn.Conv2d):
            self.U = conv_like(target, reduced, out)
        elif isinstance(target, nn.Linear) or self.tokens:
            self.U = nn.Linear(reduced * positions, out, bias=False, **factory_kwargs)
        else:
            self.U = nn.Conv2d(reduced, out, 1, target.stride, bias=False, **factory_kwargs)

    def forward(self, earlier: Sequence[Tensor]) -> Tensor:
        """Return the term to add to the layer's output, given the previous block's outputs in the earlier columns."""
        maps = [a * h for a, h in zip(self.alpha.unbind(), earlier, strict=True)]
        if self.dense:
            maps = [h.flatten(1) for h in maps]
            if isinstance(self.V, nn.Conv2d):  # flattened feature maps: each channel's positions in a row
                maps = [torch.unflatten(h, 1, (self.channels, -1, 1)) for h in maps]
        hidden = torch.relu(self.V(torch.cat(maps, 2 if self.tokens else 1)))
        out: Tensor = self.U(hidden.flatten(1) if self.dense else hidden)
        return out * present(earlier[0]).unsqueeze(-1) if self.tokens else out
