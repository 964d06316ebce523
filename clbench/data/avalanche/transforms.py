"""Transforms applied to a whole batch of images, where that equals transforming them one by one.

Only transforms known to do the same on [N, C, H, W] and on [C, H, W] are used; `tensors.py` checks each on a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clbench.data.samples import permute


class NotBatchable(Exception):
    """Something, named in the message, cannot be read or transformed as a whole."""


@dataclass(frozen=True)
class Pictures:
    """A batch of images, uint8 [N, C, H, W], that would be PIL images one by one."""

    x: Tensor


class ToBytes:
    """Images in [0, 1] as uint8: undoes the division by 255 exactly and takes a quarter of the memory."""

    clbench_batched = True  # does the same on [C, H, W] and [N, C, H, W]

    def __call__(self, x: Tensor) -> Tensor:
        """Return round(255 x) as uint8."""
        return (x * 255).round().to(torch.uint8)


Batch = Tensor | Pictures
# Transforms of torchvision (v1) that treat all images of a batch alike, whatever their parameters.
BATCHWISE_TRANSFORMS = ("Normalize", "ConvertImageDtype", "Pad", "CenterCrop", "Resize", "Grayscale")


def apply(transform: Callable[..., Any] | None, x: Batch) -> Batch:
    """Return a batch transformed as its images would be one by one; raise `NotBatchable` if that is not known."""
    if transform is None:
        return x
    cls = type(transform)
    module, name = cls.__module__, cls.__qualname__
    given: Any = transform
    if module == "torchvision.transforms.transforms" and name == "Compose":
        for part in given.transforms:
            x = apply(part, x)
        return x
    if isinstance(x, Pictures):
        if module == "torchvision.transforms.transforms" and name == "ToTensor":
            return x.x.to(torch.get_default_dtype()) / 255
        if module == "torchvision.transforms.transforms" and name == "PILToTensor":
            return x.x
    elif module == "avalanche.benchmarks.classic.cmnist" and name == "PixelsPermutation":
        return permute(x, torch.as_tensor(given.permutation))
    elif _is_batchwise(given, module, name):
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
