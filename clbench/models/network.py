"""Network: the shape that every model has, so that a strategy can cut, copy and widen any of them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.func import functional_call


class Ports(NamedTuple):
    """What a body of several layers reads and gives: the attribute `ports` of a residual unit or transformer block.

    PNN's lateral connections join there. A body that is one Linear or Conv2d needs none.
    """

    inputs: int  # channels
    outputs: int
    stride: int = 1  # of feature maps
    tokens: bool = False  # tokens [N, L, channels] and not feature maps [N, channels, H, W]


class Block(nn.Module):
    """One layer of a network: `activation(body(x))`; lateral connections (PNN) are added between the two."""

    def __init__(self, body: nn.Module, activation: nn.Module) -> None:
        """Keep the affine part (with its normalisation) and what follows it (nonlinearity, pooling, flattening)."""
        super().__init__()
        self.body = body
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.activation(self.body(x))
        return out


class Network(nn.Module):
    """Blocks in a row, then a linear head: `forward(x) = head(features(x))`.

    Args:
        blocks: modules from inputs [N, *input_shape] to features [N, D].
        head: a linear layer from D features to C classes.
        aliases: names (or beginnings of names) under which weights of this model are published, and their own here.
    """

    def __init__(self, blocks: Iterable[Block], head: nn.Linear, aliases: Mapping[str, str] | None = None) -> None:
        """Keep blocks and head."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.aliases = dict(aliases or {})
        self.start = 0  # the block that inputs go to: the harness runs frozen first blocks once and starts behind them

    def features(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return features [N, D] of inputs [N, *input_shape].

        `weights` take the place of the blocks' own parameters, by name in this network.
        """
        for number, block in itertools.islice(enumerate(self.blocks), self.start, None):
            prefix = f"blocks.{number}."
            given = {n.removeprefix(prefix): w for n, w in (weights or {}).items() if n.startswith(prefix)}
            x = functional_call(block, given, (x,)) if given else block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C]."""
        logits: Tensor = self.head(self.features(x))
        return logits


class TokenNetwork(Network, ABC):
    """A network whose first output token makes the features, in two parts between which tokens can be put (prompts).

    In eval mode `features(x) = encode(embed(x))[:, 0]`.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] of inputs [N, *input_shape], with their positions; the class token is the first."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Return what all layers make of any number of tokens [N, L, D], normalised, of the same shape."""
