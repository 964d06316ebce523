"""Text as tensors: each row has the tokens of a sample, followed by padding.

Samples of text are int32 [N, L]: the IDs of a tokenizer's vocabulary, padded with `NO_TOKEN` to the stream's length L.
So the samples contain the attention mask (`x >= 0`), and it is stored and copied with them: in buffers, checkpoints,
stacks of seeds and batches of replay. Inside a network a token is a vector, and padding is a vector of zeros
(`present`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

DTYPE = torch.int32
NO_TOKEN = -1
VECTORS = 3  # dimensions of vectors [N, L, D]
WIDTH = 256  # assumed numbers per token in estimates of a batch's memory, because a token becomes a vector


class HasType(Protocol):
    """An object with a dtype, such as a tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the elements."""


def is_text(x: HasType) -> bool:
    """Return whether samples are tokens."""
    return x.dtype == DTYPE


def present(tokens: Tensor) -> Tensor:
    """Return the mask of tokens that are not padding, bool [N, L], of IDs [N, L] or vectors [N, L, D]."""
    return tokens >= 0 if is_text(tokens) else (tokens != 0).any(-1)


def shortened(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return batches of tokens (IDs or vectors) without the padding after the longest sample of all batches.

    Features [N, D] stay unchanged, and so do batches on an accelerator, because reading the length would wait for it.
    """
    if any(type(x) is not Tensor or x.device.type != "cpu" or not (is_text(x) or x.dim() == VECTORS) for x in parts):
        return list(parts)
    longest = max(1, max(int(present(x).any(0).sum()) for x in parts))
    return [x[:, :longest] for x in parts]
