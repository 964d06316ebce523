"""Read Avalanche data sets as whole arrays, through index maps, concatenations and transforms down to their data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from clbench.data.samples import permute


class NotBatchable(Exception):
    """Raised if a data set or transform, named in the message, is not known to work on whole arrays."""


@dataclass(frozen=True)
class Pictures:
    """A batch of images, uint8 [N, C, H, W], that the data set gives as PIL images one by one."""

    x: Tensor


class ToBytes:
    """Convert images in [0, 1] to uint8, which exactly undoes the division by 255 and takes a quarter of the memory."""

    clbench_batched = True  # does the same on [C, H, W] and [N, C, H, W]

    def __call__(self, x: Tensor) -> Tensor:
        """Return round(255 x) as uint8."""
        return (x * 255).round().to(torch.uint8)


Batch = Tensor | Pictures
# Transforms of torchvision (v1) that treat all images of a batch alike, with any parameters.
BATCHWISE_TRANSFORMS = ("Normalize", "ConvertImageDtype", "Pad", "CenterCrop", "Resize", "Grayscale")


def apply(transform: Callable[..., Any] | None, x: Batch) -> Batch:
    """Transform a batch as its images would be one by one; raise `NotBatchable` if the result could differ."""
    if transform is None:
        return x
    cls = type(transform)
    module, name = cls.__module__, cls.__qualname__
    untyped: Any = transform
    if module == "torchvision.transforms.transforms" and name == "Compose":
        for part in untyped.transforms:
            x = apply(part, x)
        return x
    if isinstance(x, Pictures):
        if module == "torchvision.transforms.transforms" and name == "ToTensor":
            return x.x.to(torch.get_default_dtype()) / 255
        if module == "torchvision.transforms.transforms" and name == "PILToTensor":
            return x.x
    elif module == "avalanche.benchmarks.classic.cmnist" and name == "PixelsPermutation":
        return permute(x, torch.as_tensor(untyped.permutation))
    elif _is_batchwise(untyped, module, name):
        out = transform(x)
        if isinstance(out, Tensor) and len(out) == len(x):
            return out
    raise NotBatchable(f"transform {name}")


def _is_batchwise(given: Any, module: str, name: str) -> bool:
    """Return whether a transform does the same to one image and to a batch, without randomness."""
    if getattr(given, "clbench_batched", False):
        return True
    if module != "torchvision.transforms.transforms":
        return False
    return name in BATCHWISE_TRANSFORMS or (name == "RandomRotation" and given.degrees[0] == given.degrees[1])


Labels = list[Any]


def read_arrays(data: Any, rows: np.ndarray[Any, Any], group: str | None = None) -> tuple[Batch, Labels]:
    """Return items `rows` of a data set as a batch and a list of labels, or raise `NotBatchable`.

    Args:
        data: an Avalanche data set, a torch data set or a known torchvision one.
        rows: int64 indices.
        group: the group of transforms that an Avalanche data set above this one uses.
    """
    from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
    from avalanche.benchmarks.utils.flat_data import FlatData

    if isinstance(data, AvalancheDataset):
        return read_arrays(data._flat_data, rows)
    if isinstance(data, FlatData):
        transformed = isinstance(data, _FlatDataWithTransform)
        group = (group or data._transform_groups.current_group) if transformed else None
        inner = rows if data._indices is None else _indices(data._indices)[rows]
        x, y = _parts(data._datasets, data._cumulative_sizes, inner, group)
        if transformed:
            for groups in (data._frozen_transform_groups, data._transform_groups):
                x, y = _transformed(groups.transform_groups[group], x, y)
        return x, y
    if isinstance(data, Subset):
        return read_arrays(data.dataset, np.asarray(data.indices, np.int64)[rows])
    if isinstance(data, ConcatDataset):
        return _parts(data.datasets, data.cumulative_sizes, rows, None)
    return _leaf(data, rows)


def leaf_rows(data: Any, rows: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]] | None:
    """Return the innermost data set that has items `rows`, and their rows in it; None if there are several."""
    from avalanche.benchmarks.utils.data import AvalancheDataset
    from avalanche.benchmarks.utils.flat_data import FlatData

    if isinstance(data, AvalancheDataset):
        return leaf_rows(data._flat_data, rows)
    if isinstance(data, Subset):
        return leaf_rows(data.dataset, np.asarray(data.indices, np.int64)[rows])
    if isinstance(data, FlatData):
        parts, sizes = data._datasets, data._cumulative_sizes
        rows = rows if data._indices is None else _indices(data._indices)[rows]
    elif isinstance(data, ConcatDataset):
        parts, sizes = data.datasets, data.cumulative_sizes
    else:
        return data, rows
    owners = np.unique(np.searchsorted(np.asarray(sizes), rows, side="right"))
    if len(owners) != 1:
        return None
    owner = int(owners[0])
    return leaf_rows(parts[owner], rows - (sizes[owner - 1] if owner else 0))


def _indices(indices: Any) -> np.ndarray[Any, Any]:
    """Return an index map as an array."""
    eager = getattr(indices, "_to_eager", None)
    if eager is not None:
        eager()
        if isinstance(indices._eager_list, np.ndarray):
            return indices._eager_list
        return np.fromiter(iter(indices), np.int64, len(indices))
    return np.asarray(indices, np.int64)


def _parts(datasets: Sequence[Any], sizes: Sequence[int], rows: np.ndarray[Any, Any],
           group: str | None) -> tuple[Batch, Labels]:
    """Read rows of concatenated data sets."""
    if len(datasets) == 1:
        return read_arrays(datasets[0], rows, group)
    owners = np.searchsorted(np.asarray(sizes), rows, side="right")
    if len(np.unique(owners)) == 1:
        owner = int(owners[0])
        return read_arrays(datasets[owner], rows - (sizes[owner - 1] if owner else 0), group)
    xs, ys, all_positions = [], [], []
    for owner in np.unique(owners).tolist():
        positions = np.flatnonzero(owners == owner)
        x, y = read_arrays(datasets[owner], rows[positions] - (sizes[owner - 1] if owner else 0), group)
        if isinstance(x, Pictures):
            raise NotBatchable("concatenated pictures")
        xs.append(x)
        ys.extend(y)
        all_positions.append(positions)
    if len({(x.dtype, x.shape[1:]) for x in xs}) > 1:
        raise NotBatchable("inputs of several shapes")
    inverse = np.argsort(np.concatenate(all_positions))
    return torch.cat(xs)[torch.from_numpy(inverse)], [ys[i] for i in inverse]


def _transformed(transform: Any, x: Batch, y: Labels) -> tuple[Batch, Labels]:
    """Apply a transform group's entry to a batch and its labels."""
    from avalanche.benchmarks.utils.transforms import MultiParamCompose, MultiParamTransform, TupleTransform

    if transform is None:
        return x, y
    if isinstance(transform, TupleTransform):
        x_transform, y_transform, *others = [*transform.transforms, None, None][:max(2, len(transform.transforms))]
        if any(t is not None for t in others):
            raise NotBatchable("transform of a third field")
        return apply(x_transform, x), _labels(y_transform, y)
    if type(transform) is MultiParamCompose:
        for part in transform.transforms:
            x, y = _transformed(part, x, y)
        return x, y
    if isinstance(transform, MultiParamTransform):
        raise NotBatchable(f"transform {type(transform).__name__}")
    return apply(transform, x), y


def _labels(transform: Callable[[Any], Any] | None, y: Labels) -> Labels:
    """Apply a target transform to every label."""
    return y if transform is None else [transform(label) for label in y]


def _leaf(data: Any, rows: np.ndarray[Any, Any]) -> tuple[Batch, Labels]:
    """Read rows from the arrays of a data set, if its items are known to be those of the arrays."""
    index = torch.from_numpy(rows)
    if isinstance(data, TensorDataset):
        if type(data).__getitem__ is not TensorDataset.__getitem__ or len(data.tensors) < 2:
            raise NotBatchable(f"data set {type(data).__name__}")
        return data.tensors[0][index], data.tensors[1][index].tolist()
    raw = _images(data, index)
    x = apply(data.transform, raw)
    return x, _labels(data.target_transform, torch.as_tensor(data.targets)[index].tolist())


def _images(data: Any, index: Tensor) -> Batch:
    """Return the untransformed images of a torchvision data set, or of Avalanche's MNIST of tensors."""
    from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
    from torchvision.datasets import CIFAR10, MNIST

    getter = type(data).__getitem__
    if getter is TensorMNIST.__getitem__:
        x: Tensor = data.data[index].float().unsqueeze(1) / 255.0
        return x
    if getter is MNIST.__getitem__:
        return Pictures(data.data[index].unsqueeze(1))
    if getter is CIFAR10.__getitem__:
        return Pictures(torch.from_numpy(data.data[index.numpy()]).permute(0, 3, 1, 2))
    raise NotBatchable(f"data set {type(data).__name__}")
