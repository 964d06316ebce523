"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) with plain Linear q, k, v and proj in attention.

The embedding of patches is the first `Block`, each transformer block another; the last one's activation is the final
layer norm followed by the selection of the class token.
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

EPS = 1e-6  # of the layer norms, as in the reference codes


class Embedding(nn.Module):
    """A class token followed by the patches as tokens, with a position added to each.

    Args:
        channels: of the image.
        side: of the image, pixels.
        patch: side of a patch, pixels.
        width: numbers per token.
    """

    def __init__(self, channels: int, side: int, patch: int, width: int) -> None:
        """Draw the class token and the positions."""
        super().__init__()
        self.ports = Ports(channels, width, tokens=True)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (side // patch)**2 + 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token and the positions: normal, standard deviation 0.02, truncated at 2."""
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L + 1, width] of images x [N, channels, side, side], L patches each."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.position


class Attention(nn.Module):
    """Multi-head self-attention; q, k, v and proj are Linear layers of their own, so that each can be adapted."""

    def __init__(self, width: int, heads: int) -> None:
        """Initialize as torch does linear layers."""
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Return tokens [N, L, width] of tokens x [N, L, width]."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if prefix is not None:
            k, v = prefix.before(k, v)
        # Not F.scaled_dot_product_attention, which vmap runs in a loop (stacked seeds, per-sample gradients).
        mixed = (q @ k.transpose(2, 3) * k.shape[3]**-0.5).softmax(3) @ v
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class Transformer(nn.Module):
    """A pre-norm transformer block: attention, then an MLP with GELU, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Initialize as torch does."""
        super().__init__()
        self.ports = Ports(width, width, tokens=True)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Return tokens [N, L, width] of tokens x [N, L, width]."""
        x = x + self.attention(self.norm1(x), prefix)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class ClassToken(nn.Module):
    """Selects the first token."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, width] of tokens x [N, L, width]."""
        return x[:, 0]


class VisionTransformer(TokenNetwork):
    """The network that `vit` builds."""

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, width] after the final layer norm, of tokens [N, L, width]."""
        end = self.blocks[-1].activation
        assert isinstance(end, nn.Sequential)
        return cast(Tensor, end[0](tokens))

    def takes_prefixes(self) -> bool:
        """Return True."""
        return True

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return tokens [N, L, width] of tokens [N, L, width], by a block whose attention has a prefix."""
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
    """Return weights with the names of timm's `VisionTransformer` by the names of `vit`; others stay as they are."""
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
