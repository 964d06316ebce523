"""Text as tensors: the tokens of a sample in a row, and nothing behind them.

Samples of text are int32 [N, L]: the numbers of a tokenizer's vocabulary, then `NO_TOKEN` up to the stream's length L.
So the attention mask is in the samples themselves (`x >= 0`), and goes wherever they go: into memories, checkpoints,
stacks of seeds and batches of replay. Within a network a token that is no longer a number is a vector, and one that is
none is zero in all its parts (`present`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPE = torch.int32
NO_TOKEN = -1
VECTORS = 3  # dimensions of vectors [N, L, D]
WIDTH = 256  # numbers that a token stands for where the memory of a batch is estimated: it becomes a vector


def is_text(x: Tensor) -> bool:
    """Tell whether samples are tokens."""
    return x.dtype == DTYPE


def present(tokens: Tensor) -> Tensor:
    """Return which tokens there are, bool [N, L], of numbers [N, L] or vectors [N, L, D]."""
    return tokens >= 0 if is_text(tokens) else (tokens != 0).any(-1)


def shortened(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return batches of tokens (numbers or vectors) without the places behind the longest sample of all of them.

    Features [N, D] stay as they are. It is done on a CPU, where it saves the work on these places. An accelerator would
    have to be waited for.
    """
    if any(type(x) is not Tensor or x.device.type != "cpu" or not (is_text(x) or x.dim() == VECTORS) for x in parts):
        return list(parts)
    longest = max(1, max(int(present(x).any(0).sum()) for x in parts))
    return [x[:, :longest] for x in parts]
