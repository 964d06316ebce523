"""Activate adapters of layers while a block of code runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Adapted(Protocol):
    """A layer with adapters. The adapters with the indices in `active` contribute to its output."""

    active: tuple[int, ...]


@contextmanager
def activated(layers: Iterable[Adapted], indices: tuple[int, ...]) -> Iterator[None]:
    """Activate the adapters with these indices in each layer inside the block, and restore `active` afterward."""
    previously_active = [(layer, layer.active) for layer in layers]
    try:
        for layer, _ in previously_active:
            layer.active = indices
        yield
    finally:
        for layer, active in previously_active:
            layer.active = active
