"""Network: the common structure of all models, which lets strategies cut, copy and widen any model."""

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

SAME = "Conv2dSame"  # timm's convolution with TensorFlow's padding, which depends on the size of the images
SHORTEST = 1e-5  # minimum norm in a normalization


class CosineHead(nn.Linear):
    """Logits [N, C] of features [N, D]: `scale` times the cosine of each sample with each class's weights; no bias.

    The initial weights are the weights of a linear head.

    Args:
        head: the linear head, whose parameter `weight` [C, D] is used.
        scale: the factor of the cosines.
        learned: whether the scale is a parameter with this initial value, instead of a constant.
    """

    scale: float | nn.Parameter

    def __init__(self, head: nn.Linear, scale: float, learned: bool = False) -> None:
        """Use the weights of the linear head."""
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")  # draws no random numbers
        self.weight = head.weight
        self.scale = nn.Parameter(head.weight.new_tensor(scale)) if learned else scale

    def cosines(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the cosines [N, C] of features [N, D] with weights [C, D], by default the head's weights."""
        weight = self.weight if weight is None else weight
        return F.linear(F.normalize(x, eps=SHORTEST), F.normalize(weight, eps=SHORTEST))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C] for features [N, D]."""
        return self.scale * self.cosines(x)


class Ports(NamedTuple):
    """Inputs and outputs of a body of several layers: the attribute `ports` of a residual unit or transformer block.

    PNN needs them to attach lateral connections. A body that is a single Linear or Conv2d layer needs no ports.
    """

    inputs: int  # number of channels
    outputs: int  # number of channels
    stride: int = 1  # of feature maps
    # Whether inputs and outputs are tokens [N, L, channels] instead of feature maps [N, channels, H, W]. The first body
    # of a vision transformer turns an image into tokens. In networks for text, a token of zeros is padding.
    tokens: bool = False


class Prefix(NamedTuple):
    """Keys and values that the attention of a block uses in addition to those of its tokens (prefix tuning).

    Attention multiplies them directly: no layer projects or normalizes them.
    """

    keys: Tensor  # [N, P, D]
    values: Tensor  # [N, P, D]

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, heads, P + L, d]: the prefix, then those of the tokens [N, heads, L, d]."""
        prefix_keys, prefix_values = (
            part.to(keys.dtype).reshape(*part.shape[:2], keys.shape[1], keys.shape[3]).transpose(1, 2) for part in self)
        return torch.cat([prefix_keys, keys], 2), torch.cat([prefix_values, values], 2)


class Block(nn.Module):
    """One layer of a network: `activation(body(x))`; PNN adds lateral connections between the two."""

    def __init__(self, body: nn.Module, activation: nn.Module) -> None:
        """Store the affine part with its normalization, and the layers after it (nonlinearity, pooling, flattening)."""
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
        aliases: published names of weights (or prefixes of such names) -> their names in this model.
        published: whether exported files, such as adapters, use the published names, so that the library can read them.
        conform: converts weights with published names to this model's input size and layout.
    """

    def __init__(self, blocks: Iterable[Block], head: nn.Linear, aliases: Mapping[str, str] | None = None,
                 published: bool = False,
                 conform: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None) -> None:
        """Store the blocks and the head."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.aliases = dict(aliases or {})
        self.published = published
        self.conform = conform
        self.weights_hash = ""  # hash of weights that were loaded by name
        self.weights_file = ""  # path of the file from which weights were loaded
        self.start = 0  # first block to run; greater than 0 if the harness caches the outputs of frozen first blocks

    @property
    def has_body(self) -> bool:
        """Return whether the blocks have parameters; the model `linear` has only a head."""
        return any(True for _ in self.blocks.parameters())

    def require_body(self, does: str, instead: str = "frozen, which trains a head per task") -> None:
        """Check that the model has more than a head.

        Args:
            does: why a method needs layers before the head, as in `lora adapts layers before the head`.
            instead: a method that needs only a head, for the error message.

        Raises:
            SpecError: the blocks have no parameters.
        """
        if not self.has_body:
            raise SpecError(f"{does}, and this model is a head alone; choose {instead}, or a model with layers, as in "
                            "--model mlp")

    def published_name(self, name: str) -> str:
        """Return the name in exported files of a module, parameter or buffer, given its name in this network."""
        if not self.published:
            return name
        fitting = [(prefix, alias) for alias, prefix in self.aliases.items()
                   if name == prefix or name.startswith(prefix + ".")]
        prefix, alias = max(fitting, key=lambda pair: len(pair[0]), default=(name, name))
        return alias + name.removeprefix(prefix)

    def features(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return features [N, D] of inputs [N, *input_shape].

        `weights` replace parameters of the blocks, by name in this network.
        """
        return self.run(x, self.start, None, weights)

    def first_with(self, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
        """Return the index of the first block that contains a module of type `kind`; there must be one."""
        return next(i for i, block in enumerate(self.blocks) if any(isinstance(m, kind) for m in block.modules()))

    def run(self, x: Tensor, begin: int, end: int | None, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the output of blocks `begin` to `end - 1` (to the last if `end` is None) for their input x."""
        for number, block in itertools.islice(enumerate(self.blocks), begin, end):
            if weights is None:
                x = block(x)
                continue
            prefix = f"blocks.{number}."
            block_weights = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            x = functional_call(block, block_weights, (x,)) if block_weights else block(x)
        return x

    def from_features(self, features: Tensor) -> Tensor:
        """Return the result of `forward`, logits [N, C], for inputs with these features [N, D]."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C]."""
        return self.from_features(self.features(x))


class TokenNetwork(Network, ABC):
    """A transformer in two parts, `embed` and `encode`, so that prompts can be added to the tokens between them.

    The first block is the embedding; the others are transformer blocks. The activation of the last block is the final
    norm and the pooling of tokens into one vector. In eval mode, `features(x) = pooled(encode(embed(x)))`.
    """

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return features [N, D], given the result of `encode` [N, L, D]. Default: the first token, the class token."""
        return tokens[:, 0]

    @abstractmethod
    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after the final norm."""

    def embed(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] with positions for inputs x [N, *input_shape]; a class token comes first."""
        tokens: Tensor = self.blocks[0](x)
        return tokens

    def encode(self, tokens: Tensor, prefixes: Mapping[int, Prefix] | None = None) -> Tensor:
        """Return the normalized output [N, L, D] of all transformer blocks for any number of tokens [N, L, D].

        Args:
            tokens: the result of `embed`, with or without additional tokens.
            prefixes: prefixes for the attention of transformer blocks, by the index of the block, from 0.
        """
        prefixes = prefixes or {}
        *inner, last = itertools.islice(self.blocks, 1, None)
        for number, block in enumerate(inner):
            assert isinstance(block, Block)
            tokens = block(tokens) if number not in prefixes else block.activation(
                self.prefixed(block.body, tokens, prefixes[number]))
        assert isinstance(last, Block)
        prefix = prefixes.get(len(inner))
        return self.normalized(last.body(tokens) if prefix is None else self.prefixed(last.body, tokens, prefix))

    @property
    def depth(self) -> int:
        """Return the number of transformer blocks."""
        return len(self.blocks) - 1

    def takes_prefixes(self) -> bool:
        """Return whether the attention of each transformer block supports prefixes. Default: False."""
        return False

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return the output [N, L, D] of a transformer block's body for tokens [N, L, D], with a prefix in attention.

        Networks whose `takes_prefixes` is True define it. Without dropout, an empty prefix gives the output of `body`.
        """
        raise SpecError(f"{type(self).__name__} has no place for the prefixes of attention")


class TransformerBlock(nn.Module):
    """A transformer block of a library, with ports."""

    def __init__(self, unit: nn.Module, width: int) -> None:
        """Store the block; `width` is the width of its tokens."""
        super().__init__()
        self.unit = unit
        self.ports = Ports(width, width, tokens=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the block's output [N, L, D] for tokens [N, L, D]."""
        out: Tensor = self.unit(tokens)
        return out
