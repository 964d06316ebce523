"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) with plain Linear q, k, v and proj in attention.

The patch embedding is the first `Block`, followed by one for each transformer block. The activation of the last one is
the final layer norm and the selection of the class token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from clbench.core.errors import SpecError
from clbench.models.builtin import ViTOptions
from clbench.models.network import Block, Network, Ports, Prefix, TokenNetwork

EPS = 1e-6  # of layer norms, as in the reference codes


class Embedding(nn.Module):
    """The embedding: a class token and a token for each patch, with position embeddings added.

    Args:
        channels: the number of channels of an image.
        side: the side of an image in pixels.
        patch: the side of a patch in pixels.
        width: the width of tokens.
    """

    def __init__(self, channels: int, side: int, patch: int, width: int) -> None:
        """Create the patch projection, the class token and the position embeddings."""
        super().__init__()
        self.ports = Ports(channels, width, tokens=True)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (side // patch)**2 + 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the class token and the position embeddings: normal, standard deviation 0.02, truncated at 2."""
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L + 1, width] for images x [N, channels, side, side] of L patches each."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.position


class Attention(nn.Module):
    """Multi-head self-attention; q, k, v and proj are separate Linear layers, so that each can be adapted."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the layers with torch's default initialization."""
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Return the output [N, L, width] for tokens x [N, L, width]."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if prefix is not None:
            k, v = prefix.before(k, v)
        # Not F.scaled_dot_product_attention: vmap runs it in a loop (vectorized trials, per-sample gradients).
        mixed = (q @ k.transpose(2, 3) * k.shape[3]**-0.5).softmax(3) @ v
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class Transformer(nn.Module):
    """A pre-norm transformer block: attention, then an MLP with GELU, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Create the layers with torch's default initialization."""
        super().__init__()
        self.ports = Ports(width, width, tokens=True)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Return the output [N, L, width] for tokens x [N, L, width]."""
        x = x + self.attention(self.norm1(x), prefix)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class ClassToken(nn.Module):
    """Selects the first token."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the first token [N, width] of tokens x [N, L, width]."""
        return x[:, 0]


class VisionTransformer(TokenNetwork):
    """The network that `vit` builds."""

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, width] after the final layer norm."""
        end = self.blocks[-1].activation
        assert isinstance(end, nn.Sequential)
        return cast(Tensor, end[0](tokens))

    def takes_prefixes(self) -> bool:
        """Return True."""
        return True

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return the output [N, L, width] of a block for tokens [N, L, width], with a prefix in its attention."""
        return cast(Tensor, body(tokens, prefix))


def vit(options: ViTOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a vision transformer for square images [channels, side, side].

    Raises:
        SpecError: the patch does not divide the side, or the image is not square.
    """
    channels, height, side = input_shape
    if height != side or side % options.patch:
        nearest = max(options.patch, round(side / options.patch) * options.patch)
        raise SpecError(f"a vision transformer with patch = {options.patch} takes square images whose side is a "
                        f"multiple of it, not {height} x {side}; choose another size (size={nearest}), patch or model")
    blocks = [Block(Embedding(channels, side, options.patch, options.width), nn.Identity())]
    hidden = round(options.width * options.mlp_ratio)
    blocks += [Block(Transformer(options.width, options.heads, hidden), nn.Identity()) for _ in range(options.depth)]
    blocks[-1].activation = nn.Sequential(nn.LayerNorm(options.width, EPS), ClassToken())
    return VisionTransformer(blocks, nn.Linear(options.width, classes), conform=own_names)


TIMM = {"cls_token": "blocks.0.body.token", "pos_embed": "blocks.0.body.position",
        "patch_embed.proj": "blocks.0.body.patches", "attn.proj": "attention.proj", "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2"}


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of timm's `VisionTransformer` to the names of `vit`; weights with other names stay unchanged."""
    depth = len({match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.attn\.", name))})
    out = {}
    for name, tensor in weights.items():
        place, _, kind = name.rpartition(".")
        if depth and (match := re.match(r"blocks\.(\d+)\.(.+)", place)):
            block, part = f"blocks.{int(match[1]) + 1}.body", match[2]
            if part == "attn.qkv":
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    out[f"{block}.attention.{letter}.{kind}"] = rows
            else:
                out[f"{block}.{TIMM.get(part, part)}.{kind}"] = tensor
        elif depth and place == "norm":
            out[f"blocks.{depth}.activation.0.{kind}"] = tensor
        else:
            out[TIMM.get(name) or (f"{TIMM[place]}.{kind}" if place in TIMM else name)] = tensor
    return out
