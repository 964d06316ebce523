"""Read an experience of an Avalanche benchmark as two tensors, exactly as iterating its data set would give them.

Known data sets are read as whole arrays (`whole.py`), 4 to 23 times faster than item by item. The result is compared
bit for bit with a sample of items, each read twice. Unknown data sets, and those that differ, are read item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import DataError
from clbench.data.avalanche import whole
from clbench.data.avalanche.whole import NotBatchable, Pictures
from clbench.data.prepare import resize

SAMPLE = 64  # items that are read, each twice, and compared
CHUNK = 8192  # rows that are transformed at once, to bound memory


@dataclass(frozen=True)
class Experience:
    """Inputs x [N, ...] (uint8, else float32), labels y [N] int64, and a note if it was read item by item.

    If transforms are random, x is one draw, and `draw(i)` returns a new draw of sample i.
    """

    x: Tensor
    y: Tensor
    note: str | None = None
    draw: Callable[[int], Tensor] | None = None


class SeveralShapes(DataError):
    """Raised if samples differ in type or shape."""

    way_out = ("every sample must have one type and shape: photos are brought to the size that the model, or the "
               "benchmark, is given (--model NAME:size=224)")


def materialise(dataset: Any, group: str, where: str, size: int | None = None, text: bool = False) -> Experience:
    """Return the samples of an experience's data set.

    Args:
        dataset: an Avalanche data set; items are (x, y) or (x, y, task label).
        group: `train` or `eval`, the group of transforms to apply.
        where: the name of the experience, for errors and notes.
        size: pixels per side of each photo, after its shorter side is resized (bicubic) and the middle is cut out.
        text: whether samples are tokens, which stay integers.

    Raises:
        SeveralShapes: samples differ in type or shape.
        DataError: there are no samples, a test has random transforms, inputs have an unknown type, or labels are not
            integers.
    """
    data = getattr(dataset, group)() if hasattr(dataset, group) else dataset
    if size is not None:
        data = Sized(data, size, where)
    if len(data) == 0:
        raise DataError(f"{where} has no samples")
    positions = np.unique(np.linspace(0, len(data) - 1, SAMPLE).astype(np.int64)).tolist()
    items = [_item(data[i], where) for i in positions]
    if not all(_are_equal(item, _item(data[i], where)) for i, item in zip(positions, items, strict=True)):
        return _read_random(data, group, where)
    note = None
    try:
        x, y = _read_arrays(data, where)
        if not all(_are_equal((x[i], y[i]), item) for i, item in zip(positions, items, strict=True)):
            raise NotBatchable("a transform that differs on a batch")
    except NotBatchable as reason:
        note = f"{where} was read item by item, which is slow: {reason}"
        x, y = _read_items(data, where)
    return Experience(*_to_stored(x, y, text), note)


class Sized:
    """A data set whose photos are resized to one size."""

    def __init__(self, data: Any, size: int, where: str) -> None:
        """Resize the photos of `data` to `size` x `size` pixels."""
        self.data, self.size, self.where = data, size, where

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an item, its photo uint8 [C, size, size]."""
        x, y = _item(self.data[index], self.where)
        if x.dtype != torch.uint8 or x.ndim != 3:
            raise DataError(f"{self.where}: samples are of several shapes, and {x.dtype} {list(x.shape)} is no photo "
                            "that could be resized; give them one shape")
        return resize(x[None].float(), self.size, "bicubic", antialias=True)[0].round().clamp(0, 255).byte(), y


def _read_random(data: Any, group: str, where: str) -> Experience:
    """Return an experience with random transforms; only training samples may have them."""
    if group != "train":
        raise DataError(f"{where} gives other samples each time it is read: a test must be the same each time; give "
                        "the benchmark deterministic transforms for evaluation")
    x, y = _to_stored(*_read_items(data, where))

    def draw(index: int) -> Tensor:
        sample, _ = _item(data[index], where)
        return _to_stored(sample[None], [])[0][0]

    return Experience(x, y, f"{where} has random transforms: it is drawn item by item for every batch, which is slow, "
                      "and strategies that keep samples keep one draw of them", draw)


def _read_arrays(data: Any, where: str) -> tuple[Tensor, list[int]]:
    """Read all items as whole arrays, or raise `NotBatchable`."""
    xs: list[Tensor] = []
    ys: list[int] = []
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // CHUNK)):
        x, y = whole.read_arrays(data, rows)
        xs.append(x.x if isinstance(x, Pictures) else x)
        ys.extend(_label(label, where) for label in y)
    return (xs[0] if len(xs) == 1 else torch.cat(xs)), ys


def _read_items(data: Any, where: str) -> tuple[Tensor, list[int]]:
    """Read all items one after another."""
    first, _ = _item(data[0], where)
    x = torch.empty((len(data), *first.shape), dtype=first.dtype)
    y = []
    for i in range(len(data)):
        sample, label = _item(data[i], where)
        if sample.shape != first.shape or sample.dtype != first.dtype:
            raise SeveralShapes(f"{where}: sample {i} is {sample.dtype} {list(sample.shape)}, sample 0 is "
                                f"{first.dtype} {list(first.shape)}; {SeveralShapes.way_out}")
        x[i] = sample
        y.append(label)
    return x, y


def _item(item: Sequence[Any], where: str) -> tuple[Tensor, int]:
    """Return the input of an item as a tensor (a picture as uint8 [C, H, W]) and its label."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"{where}: items must be (x, y) or (x, y, task label), got {type(item).__name__}")
    x = item[0]
    if not isinstance(x, Tensor):
        try:
            array = np.array(x)
            picture = type(x).__module__.startswith("PIL.")
            x = torch.from_numpy(array[None] if picture and array.ndim == 2 else
                                 array.transpose(2, 0, 1).copy() if picture else array)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: inputs of type {type(item[0]).__name__} cannot be read as tensors") from error
    return x, _label(item[1], where)


def _are_equal(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    """Return whether two samples are equal bit for bit (NaN equals NaN)."""
    (a, label), (b, other_label) = one, other
    return (a.dtype == b.dtype and a.shape == b.shape and label == other_label
            and (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())))


def _label(label: Any, where: str) -> int:
    """Return a label as an integer."""
    try:
        whole_number = int(label)
        if whole_number == label:
            return whole_number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # reported below, with all other labels that are no whole numbers
    raise DataError(f"{where}: labels must be whole numbers, got {type(label).__name__} {str(label)[:40]!r}")


def _to_stored(x: Tensor, y: list[int], text: bool = False) -> tuple[Tensor, Tensor]:
    """Return inputs as they are stored (gray uint8 images [N, H, W] get a channel) and labels as int64."""
    if text:
        x = x.to(tokens.DTYPE)
    elif x.dtype != torch.uint8:
        x = x.to(torch.float32)
    elif x.ndim == 3:
        x = x.unsqueeze(1)
    return x.contiguous(), torch.tensor(y, dtype=torch.int64)
