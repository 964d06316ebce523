"""Stream: a benchmark as tensors, as the scenario presents it; `load_stream` reads it from the cache or builds it."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import DataError
from clbench.core.pretrained import Interpolation
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data import cache
from clbench.data.augmentation import AUGMENTATIONS, Augmentation
from clbench.data.raw import RawStream, Split, hold_out
from clbench.data.resizing import resize
from clbench.data.samples import Held, HostSamples, PermutedSamples, Samples, StochasticSamples, permute
from clbench.experiment.trial import Resolved

CHANNEL_AXIS = 1
TEST_BYTES = 2**30  # test samples are kept as inputs of the model up to this size, beyond it as they are stored
IMAGE_DIMS = 4


@dataclass(frozen=True)
class Prepare:
    """Turns raw samples into inputs of the model: uint8 -> [0, 1], resized, then (x - mean) / std per channel.

    Tokens (`clbench.core.tokens`) are inputs already.

    Args:
        mean: one number per channel (axis 1), or none.
        std: likewise.
        size: pixels along each side to which images are resized; None: they are left as they are.
        interpolation: by which.
        antialias: see `Preprocessing`.
        channels: to which the channel of grey images is repeated; None: it is not.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int | None = None
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    channels: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return float32 inputs [N, *input_shape] of raw samples [N, ...], on their device; x is left as it is.

        Of tokens it returns these, int32 [N, L].
        """
        if tokens.is_text(x):
            return x
        image = x.dtype == torch.uint8
        out = x.to(torch.float32)
        if image:
            out.div_(255)
        if self.size is not None:
            out = resize(out, self.size, self.interpolation, self.antialias)
            out = out.clamp(0, 1) if image else out  # bicubic goes beyond
        if self.channels is not None:
            out = out.expand(-1, self.channels, -1, -1)
        if self.mean:
            mean, std = along(self.mean, x.ndim, x.device), along(self.std, x.ndim, x.device)
            own = out is not x and self.channels is None and self.size is None  # new memory costs more than arithmetic
            out = (out.sub_(mean) if own else out - mean).div_(std)
        if x.ndim != IMAGE_DIMS:
            return out
        # Channels last: convolutions are faster in this layout, and no value changes. Not by `memory_format`, which
        # vmap does not support.
        return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@functools.cache
def along(values: tuple[float, ...], dims: int, device: torch.device) -> Tensor | float:
    """Return a single number, or numbers shaped to broadcast along the channels of a tensor with `dims` dimensions.

    The tensor is made once, since sending it waits for the device.
    """
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, device=device).view(-1, *[1] * (dims - CHANNEL_AXIS - 1))


@dataclass(frozen=True)
class StreamTask:
    """One task: its classes (outputs of the model, in stream order), training and test samples (y are outputs).

    `class_names` are those of `classes`, in their order; empty where they have none.
    """

    classes: tuple[int, ...]
    train: Samples
    test: Samples
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tests:
    """Test samples of several tasks, one task after the other: x [N, ...], labels y [N], task indices tasks [N].

    `sizes` are the numbers of samples; `prepare` is to be applied to x, None if x are already inputs of the model.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    sizes: tuple[int, ...]
    prepare: Prepare | None

    def batches(self, size: int, task: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs of the model, labels and task indices of all samples, or of one task's, in batches.

        Tokens are cut off behind the longest sample of a batch.
        """
        begin, end = (0, len(self.y)) if task is None else (sum(self.sizes[:task]), sum(self.sizes[:task + 1]))
        parts = (torch.split(column[begin:end], size) for column in (self.x, self.y, self.tasks))
        for x, y, tasks in zip(*parts, strict=True):
            x = x if self.prepare is None else self.prepare(x)
            yield (tokens.shortened([x])[0] if tokens.is_text(x) else x), y, tasks


@dataclass(frozen=True)
class Stream:
    """A stream of tasks.

    Args:
        tasks: in order.
        classes: C, the number of outputs.
        input_shape: of one prepared sample.
        prepare: raw samples [N, ...] -> float32 inputs [N, *input_shape], or tokens int32 [N, L].
        fingerprint: hash over all tensors, labels and the constants of `prepare`.
        notes: how it was read.
        augment: augments training images; None for no augmentation.
        data: hash of the benchmark, before scenario and validation split.
    """

    tasks: tuple[StreamTask, ...]
    classes: int
    input_shape: tuple[int, ...]
    prepare: Prepare
    fingerprint: str
    notes: tuple[str, ...]
    augment: Augmentation | None = None
    data: str = ""

    @property
    def is_text(self) -> bool:
        """Tell whether the samples are tokens."""
        return tokens.is_text(stored(self.tasks[0].train))

    @cached_property
    def tests(self) -> Tests:
        """The test samples of all tasks, as inputs of the model if these take at most `TEST_BYTES`."""
        parts = [task.test for task in self.tasks]
        size = 4 * math.prod(self.input_shape) * sum(map(len, parts))
        prepared = self.prepare if size <= TEST_BYTES else None
        return Tests(torch.cat([part.x if prepared is None else prepared(part.x) for part in parts]),
                     torch.cat([part.y for part in parts]),
                     torch.cat([torch.full_like(part.y, index) for index, part in enumerate(parts)]),
                     tuple(map(len, parts)), self.prepare if prepared is None else None)

    def to(self, device: torch.device | str, room: int | None = None) -> Stream:
        """Return the stream with all its tensors on a device; tensors that tasks share stay shared.

        Where all samples take more than `room` bytes (None: no limit), training inputs stay on the host and batches are
        copied from there. Inputs that permuted tasks share go to the device all the same.
        """
        moved: dict[int, Tensor] = {}
        held = Held()

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
            return moved[id(tensor)]

        size = sum({id(x): x.nbytes for task in self.tasks for x in (stored(task.train), task.test.x)}.values())
        streamed = room is not None and size > room

        def samples(part: Samples, streamed: bool = False) -> Samples:
            if isinstance(part, PermutedSamples):
                return part.moved(move, held)
            if isinstance(part, StochasticSamples):
                return StochasticSamples(move(part.x), move(part.y), move(part.tasks), part.draw)
            if streamed:
                return HostSamples(part.x, move(part.y), move(part.tasks))
            return Samples(move(part.x), move(part.y), move(part.tasks))

        note = (f"training inputs stay on the host: all samples take {size / 1e9:.1f} GB, more than the "
                f"{(room or 0) / 1e9:.1f} GB they are given on the device")
        return replace(self, tasks=tuple(replace(t, train=samples(t.train, streamed), test=samples(t.test))
                                         for t in self.tasks), notes=(*self.notes, note) if streamed else self.notes)


def stored(samples: Samples) -> Tensor:
    """Return the inputs [N, ...] of samples where they lie; of permuted ones those before the permutation."""
    if isinstance(samples, PermutedSamples):
        return samples.base
    return samples.host if isinstance(samples, HostSamples) else samples.x


def load_stream(benchmark: Resolved, scenario: Scenario, seed: int, data_dir: Path, registry: Registry,
                validation: float = 0.0, verify: bool = False) -> Stream:
    """Return a benchmark's stream, from the cache under `data_dir` or built by Avalanche and then cached.

    Args:
        benchmark: its name and all its options.
        scenario: `task`, `class` or `domain`.
        seed: of the trial; used only if the stream depends on it (`cache.depends_on_seed`) or for the validation split.
        data_dir: folder of data sets and of the cache (`streams/`).
        registry: what is installed.
        validation: share of the training samples that replaces the test samples; 0 leaves both as they are.
        verify: whether all data files are read to see if the cached stream was made of them (`cache.read_or_build`).

    Raises:
        DataError: the data are missing, or the benchmark fails, is empty or does not fit the scenario.
    """
    raw = read_benchmark(benchmark, seed, data_dir, registry, verify)
    stream = present(hold_out(raw, validation, seed, benchmark.name) if validation else raw, scenario, benchmark.name)
    return replace(stream, data=raw.digest)


def read_benchmark(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry,
                   verify: bool = False) -> RawStream:
    """Return a benchmark with its own labels, from the cache or built; `load_stream` says how and raises what."""
    def build() -> RawStream:
        from clbench.data.avalanche.build import build_raw  # imports Avalanche

        return build_raw(registry.benchmark(benchmark.name), benchmark.options, data_dir,
                         seed if cache.depends_on_seed(benchmark, registry) else 0)

    return cache.read_or_build(benchmark, seed, data_dir, registry, build, verify)


def present(raw: RawStream, scenario: Scenario, name: str) -> Stream:
    """Return a raw stream as the scenario presents it; `name` is the benchmark's, for errors."""
    maps = scenario_rules(scenario).outputs(raw.orders, name)
    classes = len({output for table in maps for output in table.values()})
    held = Held()
    total = hashlib.sha256(raw.digest.encode())
    tasks = []
    for index, (table, train, test) in enumerate(zip(maps, raw.train, raw.test, strict=True)):
        labels = [relabel(split.y, table, f"benchmark {name!r}: task {index + 1}'s {part} experience")
                  for part, split in (("training", train), ("test", test))]
        for y in labels:
            total.update(y.numpy().tobytes())
        tasks.append(StreamTask(tuple(table.values()), lazily(train, labels[0], index, held),
                                eagerly(test, labels[1], index),
                                tuple(raw.class_names[label] for label in table) if raw.class_names else ()))
    shape = tuple(raw.train[0].x.shape[1:])
    return Stream(tuple(tasks), classes, shape, Prepare(raw.mean, raw.std), total.hexdigest()[:16], raw.notes,
                  AUGMENTATIONS[raw.augment] if raw.augment else None)


def relabel(y: Tensor, table: dict[int, int], where: str) -> Tensor:
    """Return the outputs of labels y [N]."""
    values, inverse = torch.unique(y, return_inverse=True)
    strange = [v for v in values.tolist() if v not in table]
    if strange:
        raise DataError(f"{where} has classes that its training experience has not: {', '.join(map(str, strange))}")
    return torch.tensor([table[v] for v in values.tolist()], dtype=torch.int64)[inverse]


def lazily(split: Split, y: Tensor, task: int, held: Held) -> Samples:
    """Return samples of a split; inputs with a permutation or random transforms are made when they are asked for."""
    if split.draw is not None:
        return StochasticSamples(split.x, y, torch.full_like(y, task), split.draw)
    if split.permutation is None:
        return eagerly(split, y, task)
    return PermutedSamples(split.x, split.permutation, y, torch.full_like(y, task), held)


def eagerly(split: Split, y: Tensor, task: int) -> Samples:
    """Return samples with their inputs ready, permuted ones too: tests are read after every task."""
    x = split.x if split.permutation is None else permute(split.x, split.permutation)
    return Samples(x, y, torch.full_like(y, task))
