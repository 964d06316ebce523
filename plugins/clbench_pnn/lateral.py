"""The lateral adapters of progressive networks, and the shapes of a model's layers that they need."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench import Block, Network
from clbench.errors import SpecError
from clbench.pertask import conv_like

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
ALPHA = 0.1  # the scalars start uniform between 0 and this


@dataclass(frozen=True)
class Join:
    """Where laterals join: the affine layer that reads a block's output, and the channels of that output."""

    layer: nn.Linear | nn.Conv2d
    channels: int  # n_{i-1}: units of a dense layer, channels of a convolution


def joins(model: Network) -> list[Join]:
    """Return where laterals join, from the second block through the head.

    Raises:
        SpecError: a block is not built so that a lateral can be added between its body and its activation.
    """
    layers = [affine(block, f"blocks.{i}") for i, block in enumerate(model.blocks)] + [model.head]
    found = []
    for i, (before, layer) in enumerate(itertools.pairwise(layers)):
        channels = before.weight.shape[0]
        fits = layer.in_channels == channels if isinstance(layer, nn.Conv2d) else layer.in_features % channels == 0
        if not fits:
            raise SpecError(f"pnn: blocks.{i} gives {channels} channels, which what follows it does not read as they "
                            f"are ({layer}); choose another model")
        found.append(Join(layer, channels))
    return found


def affine(block: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """Return the one Linear or Conv2d in a block's body, beside which only flattening and normalisation may stand."""
    parts: list[nn.Module] = []
    if isinstance(block, Block) and type(block).forward is Block.forward:
        parts = list(block.body) if isinstance(block.body, nn.Sequential) else [block.body]
    layers = [part for part in parts if isinstance(part, nn.Linear | nn.Conv2d)]
    plain = all(isinstance(part, (nn.Linear, nn.Conv2d, nn.Flatten, nn.Dropout, nn.Identity, *NORMS)) for part in parts)
    if len(layers) != 1 or not plain or (isinstance(layers[0], nn.Conv2d)
                                         and any(isinstance(part, nn.Flatten) for part in parts)):
        inside = type(block.body).__name__ if isinstance(block, Block) else type(block).__name__
        raise SpecError(f"pnn: no lateral connection is known for {name} ({inside}): a body must be one Linear or "
                        "Conv2d, with flattening or normalisation at most; choose another model, such as mlp or cnn")
    return layers[0]


class Lateral(nn.Module):
    """U relu(V [a_1 h^(1), ..., a_k h^(k)]): what k earlier columns add to a layer before its activation.

    V reduces the concatenated outputs h^(j) of the previous block to n_{i-1} / reduction channels: a dense
    layer, or a 1x1 convolution where they are feature maps, also where the layer itself reads them flattened. U has
    the geometry of the layer it is added to. V has a bias, U has none (the layer has its own).

    Args:
        join: the layer it adds to, and the channels of each h^(j).
        out: units or channels that the layer puts out (the head's differ from task to task).
        columns: k.
        reduction: divides the width of V.
    """

    def __init__(self, join: Join, out: int, columns: int, reduction: int) -> None:
        """Initialise V and U as torch does, the scalars a_j (`alpha`) with small random values (the paper's words)."""
        super().__init__()
        layer, weight = join.layer, join.layer.weight
        where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        reduced = max(1, join.channels // reduction)
        self.channels = join.channels
        self.dense = isinstance(layer, nn.Linear)
        positions = layer.in_features // join.channels if isinstance(layer, nn.Linear) else None
        self.alpha = nn.Parameter(torch.empty(columns, **where).uniform_(0, ALPHA))
        self.V: nn.Module
        self.U: nn.Module
        if positions == 1:
            self.V = nn.Linear(columns * join.channels, reduced, **where)
        else:
            self.V = nn.Conv2d(columns * join.channels, reduced, 1, **where)
        if isinstance(layer, nn.Conv2d):
            self.U = conv_like(layer, reduced, out)
        else:
            self.U = nn.Linear(reduced * (positions or 1), out, bias=False, **where)

    def forward(self, earlier: Sequence[Tensor]) -> Tensor:
        """Return what to add to the layer's output, from the outputs of the previous block in the earlier columns."""
        maps = [a * h for a, h in zip(self.alpha.unbind(), earlier, strict=True)]
        if self.dense:
            maps = [h.flatten(1) for h in maps]
            if isinstance(self.V, nn.Conv2d):  # flattened feature maps: each channel's positions in a row
                maps = [torch.unflatten(h, 1, (self.channels, -1, 1)) for h in maps]
        hidden = torch.relu(self.V(torch.cat(maps, 1)))
        out: Tensor = self.U(hidden.flatten(1) if self.dense else hidden)
        return out
