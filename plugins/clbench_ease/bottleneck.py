"""AdaptFormer's adapters (Chen et al. 2022, arXiv 2205.13535), as in EASE's code: bottlenecks parallel to MLPs.

    block(x) = h + MLP(LN(h)) + s up(dropout(ReLU(down(h)))),   h = x + attention(x)

`down` starts Kaiming-uniform (a = √5), `up` and both biases at 0, so that a new adapter changes nothing. The
bottleneck reads h, while the MLP reads LN(h), as in EASE's code.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Network
from clbench.core.errors import SpecError

# Class names of transformer blocks h + MLP(norm(h)), here and in timm and torchvision, and the names of their norms.
NORMS = {"Transformer": "norm2", "Block": "norm2", "EncoderBlock": "ln_2"}


class Bottleneck(nn.Module):
    """One adapter: s up(dropout(ReLU(down(h)))).

    Args:
        norm: a layer norm whose width, device and dtype the adapter takes.
        width: numbers in the middle.
        scale: s.
        dropout: share of the numbers in the middle that is zeroed in training.
    """

    def __init__(self, norm: nn.LayerNorm, width: int, scale: float, dropout: float) -> None:
        """Draw `down`."""
        super().__init__()
        tokens = norm.normalized_shape[-1]
        factory_kwargs: dict[str, Any] = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        self.down, self.up = nn.Linear(tokens, width, **factory_kwargs), nn.Linear(width, tokens, **factory_kwargs)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """Return what is added to tokens h [N, L, D]."""
        return self.scale * cast(Tensor, self.up(self.dropout(F.relu(self.down(h)))))


class Tap(nn.Module):
    """A norm that stores its latest input until `fetch` returns it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        """Wrap the norm."""
        super().__init__()
        self.norm = norm
        self.input: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        """Return the norm of h."""
        self.input = h
        return cast(Tensor, self.norm(h))

    def fetch(self) -> Tensor:
        """Return the latest input and forget it."""
        h, self.input = self.input, None
        assert h is not None
        return h


class AdaptedBlock(nn.Module):
    """A transformer block with a bottleneck per task; `active` has the indices of those in use, as in `LoRALayer`."""

    def __init__(self, block: nn.Module, norm: str, width: int, scale: float, dropout: float) -> None:
        """Wrap a block; it has no adapter yet."""
        super().__init__()
        layer = block.get_submodule(norm)
        assert isinstance(layer, nn.LayerNorm)
        self.tap = f"block.{norm}"
        setattr(block, norm, Tap(layer))
        self.block = block
        if hasattr(block, "ports"):
            self.ports = block.ports
        self.adapters = nn.ModuleList()
        self.width, self.scale, self.dropout = width, scale, dropout
        self.active: tuple[int, ...] = ()

    def add(self) -> None:
        """Add a trainable adapter."""
        norm = self.get_submodule(f"{self.tap}.norm")
        assert isinstance(norm, nn.LayerNorm)
        self.adapters.append(Bottleneck(norm, self.width, self.scale, self.dropout))

    def parameters_of(self, adapter: int) -> dict[str, nn.Parameter]:
        """Return the parameters of one adapter."""
        return dict(self.adapters[adapter].named_parameters())

    def forward(self, tokens: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return the output tokens [N, L, D] for input tokens [N, L, D]; some blocks of timm take other arguments."""
        out: Tensor = self.block(tokens, *others, **named)
        tap = self.get_submodule(self.tap)
        assert isinstance(tap, Tap)
        h = tap.fetch()
        for adapter in self.active:
            out = out + self.adapters[adapter](h)
        return out


def transformer_blocks(model: Network) -> dict[str, nn.Module]:
    """Return the blocks of a model that can have bottlenecks, by name."""
    return {f"blocks.{name}": block for name, block in model.blocks.named_modules()
            if isinstance(getattr(block, NORMS.get(type(block).__name__, ""), None), nn.LayerNorm)
            and hasattr(block, "mlp")}


def adapt(model: Network, width: int, scale: float, dropout: float, method: str = "ease",
          count: int | None = None) -> dict[str, AdaptedBlock]:
    """Replace the first `count` transformer blocks of a model (None: all) by an `AdaptedBlock`; return these by name.

    Raises:
        SpecError: the model has no such block.
    """
    blocks = transformer_blocks(model)
    if not blocks:
        raise SpecError(f"{method}: adapter = bottleneck is put parallel to the MLP of a transformer block, and this "
                        "model has no such block; choose adapter = lora, or with --model vit-tiny, vit-b16 or "
                        "timm:vit_...")
    adapted = {name: AdaptedBlock(block, NORMS[type(block).__name__], width, scale, dropout)
               for name, block in itertools.islice(blocks.items(), count)}
    for name, block in adapted.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, block)
    return adapted
