"""Samples: labelled inputs in memory, on the host beside a device, permuted when asked for, or drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clbench.core.device import send
from clbench.core.moved import OldNames, Renamed


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows [M, ...] at `index` (int64 [M]), laid out as they are: `rows[index]`, several times as fast."""
    return rows.index_select(0, index) if rows.is_contiguous() else rows[index]


@dataclass(frozen=True)
class Samples(OldNames):
    """Labelled samples: raw inputs x [N, ...] as the stream stores them, labels y [N] and task indices tasks [N]."""

    x: Tensor
    y: Tensor
    tasks: Tensor
    is_stochastic: ClassVar[bool] = False  # whether `take` gives other inputs each time (random transforms)
    redrawn, fixed, some = Renamed("is_stochastic"), Renamed("materialized"), Renamed("subset")  # until 0.3

    def __len__(self) -> int:
        """Return N."""
        return len(self.y)

    @property
    def index_device(self) -> torch.device:
        """Return where the indices that `take` is given should lie."""
        return self.y.device

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return Samples(pick(self.x, index), pick(self.y, index), pick(self.tasks, index))

    def materialized(self) -> Samples:
        """Return the samples as `take` gives them every time: of those that are drawn anew, the draw that is kept."""
        return Samples(self.x, self.y, self.tasks) if self.is_stochastic else self

    def subset(self, limit: int | None, generator: torch.Generator) -> Samples:
        """Return `limit` of the samples, drawn without replacement; all where there are no more, or it is None."""
        if limit is None or limit >= len(self):
            return self
        return self.take(torch.randperm(len(self), generator=generator)[:limit].to(self.index_device))

    def chunks(self, size: int) -> Iterator[Samples]:
        """Yield the samples in order, so many at a time; of those that are drawn anew, the draw that is kept."""
        for x, y, tasks in zip(*(torch.split(c, size) for c in (self.x, self.y, self.tasks)), strict=True):
            yield Samples(x, y, tasks)

    @staticmethod
    def concat(*parts: Samples) -> Samples:
        """Return several sets of samples as one."""
        return Samples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]),
                       torch.cat([p.tasks for p in parts]))


class Held:
    """The permuted inputs used last; shared by the tasks of a stream.

    So one task's training inputs are held at a time (47 MB for MNIST as uint8), not those of all (470 MB a process).
    """

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


class HostSamples(Samples):
    """Samples whose inputs lie on the host and whose labels lie on the device; batches are copied when asked for.

    A batch is gathered into pinned memory and copied from there while the device goes on with what it is doing. What
    is pinned is the batch and not the data, so these may be memory-mapped and larger than the host's memory, too.
    """

    def __init__(self, host: Tensor, y: Tensor, tasks: Tensor) -> None:
        """Keep inputs [N, ...] of the host, and labels and tasks [N] of the device."""
        for name, value in (("host", host), ("y", y), ("tasks", tasks)):
            object.__setattr__(self, name, value)

    host: Tensor

    @property
    def x(self) -> Tensor:
        """Return all inputs on the device: of one task, which may fit where the stream does not."""
        return self.host.to(self.y.device)

    @property
    def index_device(self) -> torch.device:
        """Return the host."""
        return self.host.device

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M]), on the device."""
        device = self.y.device
        pinned = device.type == "cuda"
        x = torch.empty(len(index), *self.host.shape[1:], dtype=self.host.dtype, pin_memory=pinned)
        torch.index_select(self.host, 0, index.to(self.host.device), out=x)
        there = send(index, device)
        return Samples(x.to(device, non_blocking=True), self.y[there], self.tasks[there])

    def chunks(self, size: int) -> Iterator[Samples]:
        """Yield the samples in order, so many at a time, on the device."""
        for x, y, tasks in zip(*(torch.split(c, size) for c in (self.host, self.y, self.tasks)), strict=True):
            yield Samples(send(x, y.device), y, tasks)


class StochasticSamples(Samples):
    """Samples that an Avalanche data set draws anew for every batch; `x` is one draw of each, and stays that.

    Draws come from the global generators, which the harness seeds for every task of every trial.
    """

    is_stochastic = True

    def __init__(self, x: Tensor, y: Tensor, tasks: Tensor, draw: Callable[[int], Tensor]) -> None:
        """Keep one draw x [N, ...] with its labels, and `draw(i)`, a new draw of sample i as it is stored."""
        super().__init__(x, y, tasks)
        object.__setattr__(self, "draw", draw)

    draw: Callable[[int], Tensor]

    @property
    def index_device(self) -> torch.device:
        """Return the host, where samples are drawn one by one."""
        return torch.device("cpu")

    def drawn(self, index: Tensor) -> Tensor:
        """Return new draws of the inputs at `index` (int64 [M]), on the host."""
        return torch.stack([self.draw(i) for i in index.tolist()])

    def take(self, index: Tensor) -> Samples:
        """Return new draws of the samples at `index` (int64 [M])."""
        there = send(index, self.y.device)
        return Samples(send(self.drawn(index), self.x.device), self.y[there], self.tasks[there])

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied to another process: what is under an Avalanche data set often cannot be."""
        raise TypeError("samples with random transforms cannot be pickled")
