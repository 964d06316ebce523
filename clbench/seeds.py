"""One seed per named axis, so that changing what uses one axis never moves another.

The name of the method is no axis: all methods of a seed see the same batches and start from the same weights.
"""

from __future__ import annotations

import hashlib
import pickle
import random
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
    """Seed the global generators of Python, NumPy and torch inside the block and restore them after it.

    Layers are initialised from torch's; the random transforms of a data set may draw from any.
    """
    import numpy as np
    import torch

    number, before = derive(seed, *axes), state()
    with torch.random.fork_rng():  # those of accelerators too
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.manual_seed(number)
        try:
            yield
        finally:
            restore(before)


def state() -> bytes:
    """Return the state of the global generators of Python, NumPy and torch (of the CPU); equal states are equal."""
    import numpy as np
    import torch

    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))


def restore(state: bytes) -> None:
    """Set the global generators to what `state` returned."""
    import numpy as np
    import torch

    python, numpy, own = pickle.loads(state)
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch.from_numpy(own))
