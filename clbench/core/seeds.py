"""One seed per named axis, so that a change in the use of one axis never affects another.

The method's name is not an axis: for one seed, all methods see the same batches and start from the same weights.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FIRST_DEVELOPMENT_SEED = 1000  # seeds from here on are for tuning, those below for reported results
MOST_SEEDS = 1000  # upper limit of a number of seeds, so that a typing error does not fill the memory
DEVELOPMENT_BLOCKS = 10  # blocks of training samples that development seeds share


def numbered(number: int, first: int = 0) -> tuple[int, ...]:
    """Return `number` consecutive seeds, counted from `first`.

    Raises:
        ValueError: `number` is below 1 or above MOST_SEEDS.
    """
    if number < 1:
        raise ValueError(f"at least one seed is needed, got {number}")
    if number > MOST_SEEDS:
        raise ValueError(f"expected at most {MOST_SEEDS} seeds, got {number}; a list such as 0,{MOST_SEEDS} names "
                         f"single seeds")
    return tuple(range(first, first + number))


def derive(seed: int, *axes: str | int) -> int:
    """Return a 63-bit seed for an axis such as `("data", task)`; the same arguments give the same seed everywhere."""
    text = "/".join(["clbench", str(seed), *map(str, axes)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *axes: str | int) -> torch.Generator:
    """Return a CPU generator for an axis; draws are made on the CPU so that they do not depend on the device."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *axes))


@contextmanager
def scope(seed: int, *axes: str | int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside the block, and restore them after it.

    Layers are initialized from torch's generator; random transforms of a data set may use any of the three.
    """
    import torch

    saved_state = state()
    with torch.random.fork_rng():  # restores the generators of accelerators too
        reseed(seed, *axes)
        try:
            yield
        finally:
            restore(saved_state)


def reseed(seed: int, *axes: str | int) -> None:
    """Seed the global generators of Python, NumPy and torch for an axis, inside a `scope`."""
    import numpy as np
    import torch

    number = derive(seed, *axes)
    random.seed(number)
    np.random.seed(number % 2**32)
    if torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(number)
    else:  # `manual_seed` formats the call stack for accelerators that do not exist, which takes 0.3 ms or more
        torch.default_generator.manual_seed(number)


class ContinuedDraws(AbstractContextManager[None]):
    """A context whose draws from the global generators continue where they stopped at its last exit.

    Of the generators of accelerators, only that of `device` is included, if it is a CUDA device.
    """

    def __init__(self, seed: int, *axes: str | int, device: torch.device | None = None) -> None:
        """Start with the state that `scope` has at the beginning for the same axes."""
        self.device = device
        with scope(seed, *axes):
            self.own = state(device)

    def __enter__(self) -> None:
        """Save the current state and restore the state of the context."""
        self.outer = state(self.device)
        restore(self.own, self.device)

    def __exit__(self, *_: object) -> None:
        """Save the state of the context and restore the previous state."""
        self.own = state(self.device)
        restore(self.outer, self.device)


@dataclass(frozen=True)
class State:
    """The state of the global generators of Python, NumPy and torch; it can be compared and pickled."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: bytes
    cuda: bytes = b""  # of the device that `state` was given


def state(device: torch.device | None = None) -> State:
    """Return the state of the global generators, including that of a CUDA device if one is given."""
    import numpy as np
    import torch

    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    cuda = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else torch.empty(0)
    return State(random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes(),
                 cuda.numpy().tobytes())


def restore(state: State, device: torch.device | None = None) -> None:
    """Set the global generators, and that of a CUDA device if one is given, to a state that `state` returned."""
    import numpy as np
    import torch

    name, keys, *rest = state.numpy
    random.setstate(state.python)
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray(state.torch), dtype=torch.uint8))
    if device is not None and state.cuda:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(state.cuda), dtype=torch.uint8), device)
