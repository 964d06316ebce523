"""Permuted tasks: one store of images, permuted when a task is used, so that ten tasks do not take tenfold memory.

The training inputs of one task at a time are held (47 MB for MNIST as uint8), not those of all (470 MB per process).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clbench.strategy import Samples


class Held:
    """The permuted inputs used last; shared by the tasks of a stream."""

    def __init__(self) -> None:
        """Begin empty."""
        self.key: int | None = None
        self.x: Tensor | None = None

    def get(self, key: int, make: Callable[[], Tensor]) -> Tensor:
        """Return what is held under `key`, else make it and hold it instead of what was held."""
        if self.x is None or self.key != key:
            self.x = None  # freed before the next is made
            self.key, self.x = key, make()
        return self.x

    def __getstate__(self) -> dict[str, None]:
        """Leave the inputs out of pickles: they can be made again."""
        return {"key": None, "x": None}


def permute(x: Tensor, permutation: Tensor) -> Tensor:
    """Return x [N, ...] with the elements of every sample permuted: flat output i is flat input permutation[i]."""
    return x.flatten(1)[:, permutation].view(x.shape)


class PermutedSamples(Samples):
    """Samples whose inputs are permuted when they are asked for."""

    def __init__(self, base: Tensor, permutation: Tensor, y: Tensor, tasks: Tensor, held: Held) -> None:
        """Keep the store [N, ...], the permutation [P] of a sample's P elements, and the labels."""
        for name, value in (("base", base), ("permutation", permutation), ("y", y), ("tasks", tasks), ("held", held)):
            object.__setattr__(self, name, value)

    base: Tensor
    permutation: Tensor
    held: Held

    @property
    def x(self) -> Tensor:
        """Return the permuted inputs [N, ...]."""
        return self.held.get(id(self), lambda: permute(self.base, self.permutation))

    def moved(self, move: Callable[[Tensor], Tensor], held: Held) -> PermutedSamples:
        """Return these samples with `move` applied to every tensor."""
        return PermutedSamples(move(self.base), move(self.permutation), move(self.y), move(self.tasks), held)
