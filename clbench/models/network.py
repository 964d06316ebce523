"""Network: the structure of every model, so that a strategy can cut, copy and widen any of them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clbench.core.errors import SpecError

SHORTEST = 1e-5  # length that a vector is divided by at least


class CosineHead(nn.Linear):
    """Logits [N, C] of features [N, D]: `scale` times the cosine of each sample with each class's weights; no bias.

    The weights begin as those of a linear head.

    Args:
        head: the linear head; its weights [C, D] are taken over.
        scale: what cosines are multiplied by.
        learned: whether the scale is a parameter that begins there, and not a constant.
    """

    scale: float | nn.Parameter

    def __init__(self, head: nn.Linear, scale: float, learned: bool = False) -> None:
        """Take over the weights."""
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")  # so it draws nothing
        self.weight = head.weight
        self.scale = nn.Parameter(head.weight.new_tensor(scale)) if learned else scale

    def cosines(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the cosines [N, C] of features [N, D] with weights [C, D], by default the head's own."""
        weight = self.weight if weight is None else weight
        return F.linear(F.normalize(x, eps=SHORTEST), F.normalize(weight, eps=SHORTEST))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.scale * self.cosines(x)


class Ports(NamedTuple):
    """Inputs and outputs of a body of several layers: the attribute `ports` of a residual unit or transformer block.

    PNN attaches its lateral connections by them. A body that is a single Linear or Conv2d needs none.
    """

    inputs: int  # channels
    outputs: int
    stride: int = 1  # of feature maps
    # Tokens [N, L, channels] and not feature maps [N, channels, H, W]; one that is zero in all parts is none (text).
    tokens: bool = False


class Prefix(NamedTuple):
    """Keys and values that the attention of a block uses in addition to those of its tokens (prefix tuning).

    Attention multiplies them directly: no layer projects or normalizes them.
    """

    keys: Tensor  # [N, P, D]
    values: Tensor  # [N, P, D]

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, heads, P + L, d] of all heads, of those of the tokens [N, heads, L, d]."""
        prefix_keys, prefix_values = (
            part.to(keys.dtype).reshape(*part.shape[:2], keys.shape[1], keys.shape[3]).transpose(1, 2) for part in self)
        return torch.cat([prefix_keys, keys], 2), torch.cat([prefix_values, values], 2)


class Block(nn.Module):
    """One layer of a network: `activation(body(x))`; PNN adds lateral connections between the two."""

    def __init__(self, body: nn.Module, activation: nn.Module) -> None:
        """Keep the affine part (with normalization) and what follows (nonlinearity, pooling, flattening)."""
        super().__init__()
        self.body = body
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.activation(self.body(x))
        return out


class Network(nn.Module):
    """A sequence of blocks, then a linear head: `forward(x) = head(features(x))`.

    Args:
        blocks: modules from inputs [N, *input_shape] to features [N, D].
        head: a linear layer from D features to C classes.
        aliases: published names of weights (or beginnings of such names) -> their names in this model.
        published: whether files that are written (adapters) have the published names, as a library's model needs them.
        conform: changes weights with published names so that they fit this model's input size and layout.
    """

    def __init__(self, blocks: Iterable[Block], head: nn.Linear, aliases: Mapping[str, str] | None = None,
                 published: bool = False,
                 conform: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None) -> None:
        """Keep blocks and head."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.aliases = dict(aliases or {})
        self.published = published
        self.conform = conform
        self.weights_hash = ""  # of the content of weights that were loaded by a name
        self.weights_file = ""  # from which weights were loaded, its path
        self.start = 0  # the first block to run: the harness computes the outputs of frozen first blocks once

    @property
    def has_body(self) -> bool:
        """Tell whether there is anything to learn, adapt or load before the head: the model `linear` has nothing."""
        return any(True for _ in self.blocks.parameters())

    def require_body(self, does: str, instead: str = "frozen, which trains a head per task") -> None:
        """Refuse a model that is a head alone.

        Args:
            does: what a method does before the head, as in `lora adapts layers before the head`.
            instead: a method that a head is enough for.

        Raises:
            SpecError: there is nothing before the head.
        """
        if not self.has_body:
            raise SpecError(f"{does}, and this model is a head alone; choose {instead}, or a model with layers, as in "
                            "--model mlp")

    def published_name(self, name: str) -> str:
        """Return the name that files have for a module, parameter or buffer of this network, by its name here."""
        if not self.published:
            return name
        fitting = [(prefix, alias) for alias, prefix in self.aliases.items()
                   if name == prefix or name.startswith(prefix + ".")]
        prefix, alias = max(fitting, key=lambda pair: len(pair[0]), default=(name, name))
        return alias + name.removeprefix(prefix)

    def features(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return features [N, D] of inputs [N, *input_shape].

        `weights` take the place of the blocks' own parameters, by name in this network.
        """
        return self.run(x, self.start, None, weights)

    def first_with(self, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
        """Return the number of the first block that has a module of a kind in it; there is one."""
        return next(i for i, block in enumerate(self.blocks) if any(isinstance(m, kind) for m in block.modules()))

    def run(self, x: Tensor, begin: int, end: int | None, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return what the blocks from `begin` to before `end` (None: all that are left) make of their input x."""
        for number, block in itertools.islice(enumerate(self.blocks), begin, end):
            if weights is None:
                x = block(x)
                continue
            prefix = f"blocks.{number}."
            given = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            x = functional_call(block, given, (x,)) if given else block(x)
        return x

    def from_features(self, features: Tensor) -> Tensor:
        """Return what `forward` returns for inputs with these features [N, D]: logits [N, C]."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C]."""
        return self.from_features(self.features(x))


class TokenNetwork(Network, ABC):
    """A network of tokens in two parts, so that others (prompts) can be put between them.

    The first block is the embedding, the others are transformer blocks; the last one's activation ends in a norm and
    what makes one vector of the tokens. In eval mode `features(x) = pooled(encode(embed(x)))`.
    """

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return features [N, D] of what `encode` returns [N, L, D]. Default: the first token, the class token."""
        return tokens[:, 0]

    @abstractmethod
    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after the final norm, of tokens [N, L, D]."""

    def embed(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] of inputs x [N, *input_shape], with their positions; a class token is the first."""
        tokens: Tensor = self.blocks[0](x)
        return tokens

    def encode(self, tokens: Tensor, prefixes: Mapping[int, Prefix] | None = None) -> Tensor:
        """Return the output of all layers for any number of tokens [N, L, D]: normalized, same shape.

        Args:
            tokens: what `embed` returns, perhaps with others among them.
            prefixes: of the attention of transformer blocks, by their number, from 0.
        """
        prefixes = prefixes or {}
        *inner, last = itertools.islice(self.blocks, 1, None)
        for number, block in enumerate(inner):
            assert isinstance(block, Block)
            tokens = block(tokens) if number not in prefixes else block.activation(
                self.prefixed(block.body, tokens, prefixes[number]))
        assert isinstance(last, Block)
        given = prefixes.get(len(inner))
        return self.normalized(last.body(tokens) if given is None else self.prefixed(last.body, tokens, given))

    @property
    def depth(self) -> int:
        """Return the number of transformer blocks."""
        return len(self.blocks) - 1

    def takes_prefixes(self) -> bool:
        """Tell whether the attention of each transformer block can have a prefix. Default: no."""
        return False

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return tokens [N, L, D] of tokens [N, L, D], by the body of a transformer block whose attention has a prefix.

        A network that `takes_prefixes` defines it. Without dropout, a prefix of no keys gives what the body does.
        """
        raise SpecError(f"{type(self).__name__} has no place for the prefixes of attention")


class TransformerBlock(nn.Module):
    """A transformer block of a library, with its ports."""

    def __init__(self, unit: nn.Module, width: int) -> None:
        """Keep the block, whose tokens have `width` numbers."""
        super().__init__()
        self.unit = unit
        self.ports = Ports(width, width, tokens=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] of tokens [N, L, D]."""
        out: Tensor = self.unit(tokens)
        return out
