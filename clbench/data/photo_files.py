"""Photos that stay in their files: a lazy array of them, and batches that a pool of threads decodes."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.core.compat import usable_cores
from clbench.data.own.pixels import Filter, Part, PhotoFormat, read_photo

MOST_THREADS = 16  # limit on decoding threads; more would wait for each other in Python
PIECE = 4  # photos that a thread decodes in a row
AHEAD, AHEAD_BYTES = 3, 2**27  # limits on batches that are decoded ahead: their number, and their bytes


class Crop(NamedTuple):
    """Parts of N photos; each part is resized and possibly mirrored.

    Args:
        boxes: top, left, height and width of each part in its photo, int64 [N, 4].
        mirrored: whether each part is mirrored, bool [N].
        height: height of the resized parts.
        width: width of the resized parts.
        interpolation: the interpolation for resizing the parts.
    """

    boxes: Tensor
    mirrored: Tensor
    height: int
    width: int
    interpolation: Filter


@dataclass(frozen=True, eq=False)
class PhotoTable:
    """Paths, sizes and hashes of all photo files of a benchmark, as tensors that are stored and memory-mapped.

    Args:
        root: folder of the files.
        names: uint8, the paths below the root, one after the other.
        ends: int64 [N], the end of each path in `names`.
        sizes: int32 [N, 2], height and width of each photo after the rotation that its EXIF data ask for.
        hashes: uint8 [N, 32], the SHA-256 of each file.
    """

    root: str
    names: Tensor
    ends: Tensor
    sizes: Tensor
    hashes: Tensor

    @staticmethod
    def of(root: Path, files: Sequence[Path], sizes: Sequence[tuple[int, int]], hashes: Sequence[str]) -> PhotoTable:
        """Return the table of files below a folder, with their heights and widths and hexadecimal hashes."""
        names = [os.fsencode(os.path.relpath(path, root)) for path in files]  # a list may name files elsewhere
        ends = torch.tensor([len(name) for name in names], dtype=torch.int64).cumsum(0)
        content = bytearray(b"".join(map(bytes.fromhex, hashes)))
        return PhotoTable(os.path.abspath(root), torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8), ends,
                          torch.tensor(sizes, dtype=torch.int32),
                          torch.frombuffer(content, dtype=torch.uint8).view(len(files), -1))

    def path(self, row: int) -> str:
        """Return the path of a photo's file."""
        begin, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        return os.path.join(self.root, os.fsdecode(self.names[begin:end].numpy().tobytes()))


@dataclass(frozen=True, eq=False)
class Photos:
    """A lazy array of the photos in the given rows of a table; decoded photos are uint8 [N, C, H, W]."""

    table: PhotoTable
    rows: Tensor  # int64 [N]
    format: PhotoFormat

    dtype = torch.uint8
    device = torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """Return (N, C, H, W)."""
        return torch.Size((len(self.rows), self.format.channels, self.format.height, self.format.width))

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of the decoded photos."""
        return self.shape.numel()

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Photos:
        """Return the photos at an index, int64 [M] or a slice, without decoding any."""
        return Photos(self.table, self.rows[index if isinstance(index, slice) else index.cpu()], self.format)

    @property
    def sizes(self) -> Tensor:
        """Return height and width of each photo in its file, int32 [N, 2]."""
        return self.table.sizes[self.rows]

    @property
    def hashes(self) -> Tensor:
        """Return the SHA-256 of each file, uint8 [N, 32]."""
        return self.table.hashes[self.rows]

    @staticmethod
    def concat(parts: Sequence[Photos]) -> Photos:
        """Concatenate several arrays of photos of the same table."""
        first = parts[0]
        if any(part.table is not first.table or part.format != first.format for part in parts):
            raise ValueError("photos of different benchmarks cannot be joined")
        return Photos(first.table, torch.cat([part.rows for part in parts]), first.format)

    def read(self) -> Tensor:
        """Decode all photos and return them, uint8 [N, C, H, W].

        Raises:
            DataError: a photo cannot be read, or its size has changed; the error names the file.
        """
        return Reading(self).finished().images

    def read_chunks(self, size: int, first: int = 0) -> Iterator[Tensor]:
        """Yield decoded photos, `size` at a time; `first` is the index of the first chunk to yield.

        The next chunks are decoded while one is used.
        """
        starts = range(first * size, len(self), size)
        for reading in decode_in_order(Reading(self[begin:begin + size]) for begin in starts):
            yield reading.images


class Reading:
    """A batch of photos that threads decode: the whole photos in their format, parts of them, or both."""

    def __init__(self, photos: Photos, crop: Crop | None = None, whole: bool = True, pinned: bool = False) -> None:
        """Start to decode.

        Args:
            photos: the photos of the batch.
            crop: parts of the photos that are decoded too; None for no parts.
            whole: whether the whole photos are decoded.
            pinned: whether the results are in pinned memory, from where a CUDA device copies them.
        """
        count, channels, height, width = photos.shape
        self.photos, self.crop = photos, crop
        self._images = _allocate((count, height, width, channels), pinned) if whole else None
        self._crops = None if crop is None else _allocate((count, crop.height, crop.width, channels), pinned)
        pool = _pool(os.getpid())
        self.futures: list[Future[None]] = [pool.submit(self._decode, range(begin, min(begin + PIECE, count)))
                                            for begin in range(0, count, PIECE)]

    @property
    def ahead(self) -> int:
        """Return how many batches of this size may be decoded ahead."""
        size = sum(part.nbytes for part in (self._images, self._crops) if part is not None)
        return min(AHEAD, AHEAD_BYTES // max(1, size))

    @property
    def images(self) -> Tensor:
        """Return the whole photos, uint8 [N, C, H, W]."""
        assert self._images is not None
        return self._images

    @property
    def crops(self) -> Tensor:
        """Return the parts, uint8 [N, C, height, width]."""
        assert self._crops is not None
        return self._crops

    def finished(self) -> Reading:
        """Wait until all photos are decoded.

        Raises:
            DataError: a photo cannot be read, or its size has changed.
        """
        try:
            for future in self.futures:
                future.result()
        finally:
            self.cancel()
        return self

    def cancel(self) -> None:
        """Cancel the decoding of photos that no thread has started."""
        for future in self.futures:
            future.cancel()

    def _decode(self, piece: range) -> None:
        """Decode the photos of the batch at the positions `piece`."""
        photos = self.photos
        for i in piece:
            row = int(photos.rows[i])
            read_photo(photos.table.path(row), photos.table.sizes[row].tolist(), photos.format,
                       None if self._images is None else self._images[i].numpy(),
                       None if self.crop is None else
                       Part(self.crop.boxes[i].tolist(), bool(self.crop.mirrored[i]), self.crop.interpolation),
                       None if self._crops is None else self._crops[i].numpy())


def decode_in_order(started: Iterable[Reading]) -> Generator[Reading, None, None]:
    """Yield decoded batches in order, while threads decode the next batches.

    The iterable `started` starts to decode a batch when the batch is requested from it.
    """
    waiting = deque[Reading]()
    try:
        for reading in started:
            waiting.append(reading)
            if len(waiting) > reading.ahead:
                yield waiting.popleft().finished()
        while waiting:
            yield waiting.popleft().finished()
    finally:
        for reading in waiting:
            reading.cancel()


def _allocate(shape: tuple[int, ...], pinned: bool) -> Tensor:
    """Return an uninitialized uint8 tensor [N, C, H, W] with the memory layout `shape`, [N, H, W, C], as in files."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the decoding threads of a process; cached by process, because a fork has no threads of its parent."""
    return ThreadPoolExecutor(min(MOST_THREADS, usable_cores()), thread_name_prefix="photos")
