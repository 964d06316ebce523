"""Which adapters of a layer take part in its output, for as long as a block of code runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Adapted(Protocol):
    """A layer with adapters, of which those with the indices in `active` take part."""

    active: tuple[int, ...]


@contextmanager
def activated(layers: Iterable[Adapted], indices: tuple[int, ...]) -> Iterator[None]:
    """Let these adapters of each layer take part inside the block, and after it those of before."""
    before = [(layer, layer.active) for layer in layers]
    try:
        for layer, _ in before:
            layer.active = indices
        yield
    finally:
        for layer, active in before:
            layer.active = active
