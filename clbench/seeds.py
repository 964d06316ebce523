"""One seed per named axis, so that changing what uses one axis never moves another.

The name of the method is no axis: all methods of a seed see the same batches and start from the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *axes: str | int) -> int:
    """Return a 63-bit seed for an axis such as `("data", task)`; the same for the same arguments everywhere."""
    text = "/".join(["clbench", str(seed), *map(str, axes)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *axes: str | int) -> torch.Generator:
    """Return a CPU generator for an axis; draws are made on the CPU so that they do not depend on the device."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *axes))


@contextmanager
def scope(seed: int, *axes: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block (layer initialisation uses them) and restore them after it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *axes))
        yield
