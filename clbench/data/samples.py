"""Labeled samples: plain, with inputs on the host, with inputs permuted on demand, or with random transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.core.renamed import OldNames, Renamed
from clbench.core.torch_private import write_count


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Return `rows[index]` [M, ...] for `index` int64 [M], in the same memory layout, but several times as fast."""
    return rows.index_select(0, index) if rows.is_contiguous() else rows[index]


@dataclass(frozen=True)
class Samples(OldNames):
    """Labeled samples: raw inputs x [N, ...] as the stream stores them, labels y [N] and task indices tasks [N].

    Raw inputs are uint8 images [N, C, H, W], float32 numbers of any shape, or tokens int32 [N, L] (`core.tokens`).
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    is_stochastic: ClassVar[bool] = False  # whether `take` gives different inputs each time (random transforms)
    redrawn, fixed, some = Renamed("is_stochastic"), Renamed("materialized"), Renamed("subset")  # until 0.3

    def __len__(self) -> int:
        """Return N."""
        return len(self.y)

    @property
    def frozen(self) -> Mapping[str, Tensor] | None:
        """Return the stored outputs of frozen modules for these samples, [N, ...] by name; None if there are none."""
        return None

    @property
    def index_device(self) -> torch.device:
        """Return the device on which `take` expects its indices."""
        return self.y.device

    @property
    def tensors(self) -> list[Tensor]:
        """Return the stored tensors, from which x, y and tasks are read."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return Samples(pick(self.x, index), pick(self.y, index), pick(self.tasks, index))

    def restricted(self, index: Tensor) -> Samples:
        """Return samples of the same kind, only those at `index` (int64 [M], on `index_device`)."""
        return self.take(index)

    def materialized(self) -> Samples:
        """Return samples with fixed inputs: the draw in `x` if these samples are stochastic, else the same object."""
        return Samples(self.x, self.y, self.tasks) if self.is_stochastic else self

    def subset(self, limit: int | None, generator: torch.Generator) -> Samples:
        """Return `limit` samples drawn without replacement; all samples if there are no more or `limit` is None."""
        if limit is None or limit >= len(self):
            return self
        return self.take(torch.randperm(len(self), generator=generator)[:limit].to(self.index_device))

    def chunks(self, size: int, first: int = 0) -> Iterator[Samples]:
        """Yield the samples in order, `size` at a time; stochastic samples have the inputs in `x`.

        `first` is the index of the first chunk to yield.
        """
        columns = (torch.split(column, size) for column in (self.x, self.y, self.tasks))
        for x, y, tasks in islice(zip(*columns, strict=True), first, None):
            yield Samples(x, y, tasks)

    @staticmethod
    def concat(*parts: Samples) -> Samples:
        """Return several sets of samples as one."""
        return parts[0].joined(parts[1:])

    def joined(self, others: Sequence[Samples]) -> Samples:
        """Return these samples and others as one."""
        parts = [self, *others]
        return Samples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]),
                       torch.cat([p.tasks for p in parts]))

    def relabeled(self, y: Tensor, tasks: Tensor) -> Samples:
        """Return samples of the same kind, with the same inputs but other labels and tasks [N]."""
        return Samples(self.x, y, tasks)

    def of_one_task(self) -> Samples:
        """Return samples with fixed inputs (`materialized`) and the task index 0."""
        return self.materialized().relabeled(self.y, torch.zeros_like(self.tasks))


class PermutedInputCache:
    """A cache of the permuted inputs that were used last; the tasks of a stream share it.

    The cache holds the training inputs of one task (47 MB for MNIST as uint8). The inputs of ten tasks would take
    470 MB per process.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.key: tuple[Tensor, Tensor] | None = None
        self.x: Tensor | None = None

    def get(self, base: Tensor, permutation: Tensor) -> Tensor:
        """Return `base` permuted; compute it if the cache holds inputs of other tensors."""
        if self.x is None or self.key is None or self.key[0] is not base or self.key[1] is not permutation:
            self.x = None  # freed before the next one is made
            self.key, self.x = (base, permutation), permute(base, permutation)
        return self.x

    def __getstate__(self) -> dict[str, None]:
        """Leave the inputs out of pickles, because they can be computed again."""
        return {"key": None, "x": None}


def permute(x: Tensor, permutation: Tensor) -> Tensor:
    """Return x [N, ...] with the elements of every sample permuted: flat output i is flat input permutation[i]."""
    return x.flatten(1)[:, permutation].view(x.shape)


class PermutedSamples(Samples):
    """Samples whose inputs are permuted on demand."""

    def __init__(self, base: Tensor, permutation: Tensor, y: Tensor, tasks: Tensor, cache: PermutedInputCache) -> None:
        """Store the inputs [N, ...], the permutation [P] of a sample's P elements, and the labels."""
        for name, value in (("base", base), ("permutation", permutation), ("y", y), ("tasks", tasks), ("cache", cache)):
            object.__setattr__(self, name, value)

    base: Tensor
    permutation: Tensor
    cache: PermutedInputCache

    @property
    def x(self) -> Tensor:
        """Return the permuted inputs [N, ...]."""
        return self.cache.get(self.base, self.permutation)

    @property
    def tensors(self) -> list[Tensor]:
        """Return the stored tensors, with the permuted inputs in the cache."""
        return [*super().tensors, *([] if self.cache.x is None else [self.cache.x])]

    def relabeled(self, y: Tensor, tasks: Tensor) -> PermutedSamples:
        """Return the same inputs, which are permuted on demand, with other labels and tasks [N]."""
        return PermutedSamples(self.base, self.permutation, y, tasks, self.cache)

    def moved(self, move: Callable[[Tensor], Tensor], cache: PermutedInputCache) -> PermutedSamples:
        """Return these samples with `move` applied to every tensor."""
        return PermutedSamples(move(self.base), move(self.permutation), move(self.y), move(self.tasks), cache)


class HostSamples(Samples):
    """Samples with inputs on the host and labels on the device; batches are copied when they are requested.

    A batch is gathered into pinned memory and copied from there while the device goes on computing. Only the batch is
    pinned, so the data may be memory-mapped and larger than the host's memory.
    """

    def __init__(self, host: Tensor, y: Tensor, tasks: Tensor) -> None:
        """Store inputs [N, ...] on the host, and labels and tasks [N] on the device."""
        for name, value in (("host", host), ("y", y), ("tasks", tasks)):
            object.__setattr__(self, name, value)

    host: Tensor

    @property
    def x(self) -> Tensor:
        """Return all inputs on the device. The inputs of one task may fit even if those of the stream do not."""
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
        sent_index = send(index, device)
        return Samples(x.to(device, non_blocking=True), self.y[sent_index], self.tasks[sent_index])

    def relabeled(self, y: Tensor, tasks: Tensor) -> HostSamples:
        """Return the same inputs, on the host, with other labels and tasks [N]."""
        return HostSamples(self.host, y, tasks)

    def restricted(self, index: Tensor) -> Samples:
        """Return only the samples at `index`; their inputs are copied and stay on the host."""
        sent_index = send(index, self.y.device)
        return HostSamples(self.host[index], self.y[sent_index], self.tasks[sent_index])

    def chunks(self, size: int, first: int = 0) -> Iterator[Samples]:
        """Yield the samples in order, `size` at a time, on the device; only the chunks from `first` on are copied."""
        for part in Samples(self.host, self.y, self.tasks).chunks(size, first):
            yield Samples(send(part.x, part.y.device), part.y, part.tasks)


class UnseenSamples(Samples):
    """The samples of a stream with hidden boundaries: they arrive in batches and are never available all at once."""

    def __init__(self) -> None:
        """Do not store any samples."""

    def __repr__(self) -> str:
        """Return a text without the samples."""
        return f"{type(self).__name__}()"

    def __len__(self) -> int:
        """Raise a SpecError, because task boundaries are hidden."""
        raise SpecError(HIDDEN)

    @property
    def x(self) -> Tensor:
        """Raise a SpecError, because task boundaries are hidden."""
        raise SpecError(HIDDEN)

    y = tasks = x


HIDDEN = ("boundaries are hidden, so Task.train is not available: the method must learn from batches as they pass "
          "(prepare_batch), or not be declared task_free")
UNSEEN = UnseenSamples()


class StochasticSamples(Samples):
    """Samples with random transforms, drawn by an Avalanche data set for every batch; `x` is one fixed draw.

    Draws come from the global generators, which the harness seeds for every task of every trial.
    """

    is_stochastic = True

    def __init__(self, x: Tensor, y: Tensor, tasks: Tensor, draw: Callable[[int], Tensor]) -> None:
        """Store one draw x [N, ...] with its labels, and `draw(i)`, which returns a new draw of sample i."""
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
        sent_index = send(index, self.y.device)
        return Samples(send(self.drawn(index), self.x.device), self.y[sent_index], self.tasks[sent_index])

    def relabeled(self, y: Tensor, tasks: Tensor) -> StochasticSamples:
        """Return the same samples, drawn again for every batch, with other labels and tasks [N]."""
        return StochasticSamples(self.x, y, tasks, self.draw)

    def restricted(self, index: Tensor) -> Samples:
        """Return only the samples at `index`; they are still drawn again for every batch."""
        sent_index, numbers = send(index, self.y.device), index.tolist()
        return StochasticSamples(self.x[sent_index], self.y[sent_index], self.tasks[sent_index],
                                 lambda i: self.draw(numbers[i]))

    def __getstate__(self) -> dict[str, Any]:
        """Raise a TypeError, because the objects inside an Avalanche data set often cannot be pickled."""
        raise TypeError("samples with random transforms cannot be pickled")


class WriteCounts:
    """The numbers of writes to the tensors of samples at one time, to detect methods that change shared samples.

    torch counts the writes to a tensor and to its views. It does not count writes through `Tensor.data` or NumPy.
    """

    def __init__(self, samples: Iterable[Samples]) -> None:
        """Count the writes to the samples' tensors so far."""
        self.samples = list(samples)
        self.counts = {id(tensor): (tensor, write_count(tensor)) for part in self.samples for tensor in part.tensors}

    @property
    def differ(self) -> bool:
        """Return whether a tensor was written to since then; for a newer tensor, since its creation."""
        return any(write_count(tensor) != self.counts.get(id(tensor), (tensor, 0))[1]
                   for part in self.samples for tensor in part.tensors)
