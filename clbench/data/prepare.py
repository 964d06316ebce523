"""Turn raw samples into inputs of the model: scale, resize and standardize them, and augment them in training.

Augmentations are drawn for each sample and applied to a whole batch on its device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from clbench.core import tokens
from clbench.core.device import send
from clbench.core.pretrained import Interpolation
from clbench.data.common_options import RANDOM_CROP, SMALLEST_CROP
from clbench.data.own.pixels import FILTERS, Filter

PADDING = 4  # pixels of zeros on each side before the crop


class Augmentation(Protocol):
    """An augmentation of training images; its draws depend only on the number of samples, not on the device."""

    @property
    def name(self) -> str:
        """The name of the augmentation, a value of the option `augment`."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return the draws for `count` samples [count, ...], from a generator on the CPU."""

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return raw images x [N, C, H, W] augmented by draws [N, ...]; x itself is not changed."""

    def sized(self, size: int | None) -> Augmentation:
        """Return the augmentation for inputs of `size` x `size` pixels; None: the size of the images themselves."""


class CropFlip:
    """The usual augmentation of CIFAR (He et al. 2015): pad by 4 pixels of zeros, crop at random, flip half of them.

    It does what torchvision's `RandomCrop(size, padding=4)` and `RandomHorizontalFlip()` do on raw images, for a whole
    batch at once. Draws come from a generator on the CPU, so that they do not depend on the device.
    """

    name = "crop-flip"

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return the draws for `count` samples, int64 [count, 3]: shift in rows, shift in columns, 1 to flip."""
        shifts = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
        return torch.cat([shifts, torch.randint(0, 2, (count, 1), generator=generator)], 1)

    def sized(self, size: int | None) -> CropFlip:
        """Return this augmentation unchanged: it keeps the size of images, and a later resize does not affect it."""
        return self

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return images x [N, C, H, W] shifted and flipped by draws [N, 3]; x itself is not changed."""
        draws = send(draws, x.device)
        height, width = x.shape[2:]
        rows = draws[:, :1] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device).expand(len(x), -1)
        columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns) + draws[:, 1:2]
        padded = F.pad(x, [PADDING] * 4)
        number = torch.arange(len(x), device=x.device)[:, None, None]
        # Indexing on both sides of the channels puts them last, the layout in which convolutions are fastest.
        return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class RandomResizedCrop:
    """The usual augmentation of ImageNet (Szegedy et al. 2015): crop 8 to 100% of each image, resize it, flip half.

    It does what torchvision's `RandomResizedCrop(size, (smallest, 1.0))` and `RandomHorizontalFlip()` do on PIL images,
    with antialiasing, for a whole batch at once. A crop is resized once, directly to `size`, the size of the model's
    inputs.

    Args:
        size: the side length of the results; None: the size of the images themselves.
        smallest: the smallest share of an image's area that a crop covers.
        interpolation: the interpolation; None: bicubic, or for photos in files the interpolation of the photos.
    """

    size: int | None = None
    smallest: float = SMALLEST_CROP
    interpolation: Filter | None = None

    name: ClassVar[str] = RANDOM_CROP
    ratio: ClassVar[tuple[float, float]] = (3 / 4, 4 / 3)
    tries: ClassVar[int] = 10

    def sized(self, size: int | None) -> RandomResizedCrop:
        """Return the augmentation that gives images of `size` x `size` pixels."""
        return replace(self, size=size)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return the draws for `count` samples, float64 [count, 10 tries x 4 + 1], uniform in [0, 1)."""
        return torch.rand(count, 4 * self.tries + 1, dtype=torch.float64, generator=generator)

    def draw_boxes(self, draws: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Return top, left, height and width of each crop, int64 [N, 4], by the rule of torchvision.

        The first of ten tries that fits into the image is used. If none fits, the crop is the largest centered one with
        an allowed aspect ratio. Height and width of the images are numbers, or int64 [N, 1] if they differ.
        """
        height, width = (torch.as_tensor(side).expand(len(draws), 1) for side in (height, width))
        area, shape, top, left = draws[:, :-1].view(len(draws), self.tries, 4).unbind(2)
        area = height * width * (self.smallest + (1.0 - self.smallest) * area)
        low, high = map(math.log, self.ratio)
        ratio = (low + (high - low) * shape).exp()
        h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        first_fit = fits.long().argmax(1, keepdim=True)
        h, w, top, left = (part.gather(1, first_fit).squeeze(1) for part in (h, w, top, left))
        height, width = height[:, 0], width[:, 0]
        most_w = torch.minimum(width, (height.double() * self.ratio[1]).round().long())
        most_h = torch.minimum(height, (width.double() / self.ratio[0]).round().long())
        none_fits = ~fits.any(1)
        h, w = torch.where(none_fits, most_h, h), torch.where(none_fits, most_w, w)
        top, left = (torch.where(none_fits, (side - part) // 2, (place * (side - part + 1)).floor())
                     for place, side, part in ((top, height, h), (left, width, w)))
        return torch.stack([top, left, h, w], 1).long()

    def draw_flips(self, draws: Tensor) -> Tensor:
        """Return which images are mirrored, bool [N]."""
        return draws[:, -1] < 0.5

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return images x [N, C, H, W] cropped and resized to [N, C, size, size], by the draws of `draw`."""
        height, width = x.shape[2:]
        out = (height, width) if self.size is None else (self.size, self.size)
        if x.is_meta:  # a dry run needs only the shapes of the weights, which take long to compute
            draws = draws.to(x.device)
        boxes = self.draw_boxes(draws, height, width)
        flip = self.draw_flips(draws)
        kernel = linear if self.interpolation == "bilinear" else cubic
        rows = windows(boxes[:, 0], boxes[:, 2], height, out[0], kernel)
        columns = windows(boxes[:, 1], boxes[:, 3], width, out[1], kernel)
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
        rows, columns = (send(part.to(torch.float32), x.device)[:, None] for part in (rows, columns))
        cropped = rows @ x.to(torch.float32) @ columns.transpose(2, 3)
        return cropped.round_().clamp_(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else cropped


AUGMENTATIONS: dict[str, Augmentation] = {a.name: a for a in (CropFlip(), RandomResizedCrop())}


def find_augmentation(written: str) -> Augmentation:
    """Return an augmentation by its name, or random resized crops as `random-resized-crop:SMALLEST:INTERPOLATION`."""
    name, *parameters = written.split(":")
    if not parameters:
        return AUGMENTATIONS[name]
    smallest, interpolation = parameters
    return RandomResizedCrop(None, float(smallest), next((name for name in FILTERS if name == interpolation), None))


CUBIC = -0.5  # the parameter a of PIL's bicubic kernel


def resize(x: Tensor, size: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """Resize float32 images x [N, C, H, W] to [N, C, size, size].

    The shorter side becomes `size`, and the middle of the longer side is cut out. Bicubic results may leave the range
    of x.
    """
    height, width = x.shape[2:]
    if (height, width) == (size, size):
        return x
    shorter = min(height, width)
    shape = [size * side // shorter for side in (height, width)]
    if interpolation == "nearest":
        x = F.interpolate(x, shape, mode="nearest-exact")
    else:
        x = F.interpolate(x, shape, mode=interpolation, align_corners=False, antialias=antialias)
    top, left = (round((side - size) / 2) for side in shape)
    return x[:, :, top:top + size, left:left + size]


def windows(begin: Tensor, length: Tensor, side: int, out: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the matrices [N, out, side] that resize a part of each column of pixels to `out` pixels.

    Row i holds the weights of the input pixels for output pixel i: the kernel, centered at the position of pixel i in
    the part. The kernel is stretched if the part shrinks (antialiasing), and normalized over the
    pixels of the part.

    Args:
        begin: first pixel of each part, int64 [N].
        length: number of pixels of each part, int64 [N].
        side: number of pixels of the column.
        out: number of pixels of the result.
        kernel: PIL's kernel of the interpolation, `cubic` or `linear`.
    """
    step = length.double()[:, None, None] / out
    stretch = step.clamp(min=1)
    # As in PIL, the window of pixels around the center is cut off at the ends of the part.
    center = (torch.arange(out, dtype=torch.float64)[:, None] + 0.5) * step
    pixel = torch.arange(side, dtype=torch.float64) - begin[:, None, None]
    weights = kernel((pixel + 0.5 - center) / stretch)
    weights = weights.masked_fill((pixel < 0) | (pixel >= length[:, None, None]), 0)
    return weights / weights.sum(2, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Return Keys's cubic convolution kernel at x, with a = -0.5."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def linear(x: Tensor) -> Tensor:
    """Return the kernel of linear interpolation at x, a triangle."""
    return (1 - x.abs()).clamp(min=0)


CHANNEL_AXIS = 1
IMAGE_DIMS = 4


@dataclass(frozen=True)
class Prepare:
    """Turns raw samples into inputs of the model: uint8 -> [0, 1], resized, then (x - mean) / std per channel.

    Tokens (`clbench.core.tokens`) are inputs already.

    Args:
        mean: one number per channel (axis 1), or none.
        std: likewise.
        size: pixels along each side to which images are resized; None: images are not resized.
        interpolation: the interpolation for resizing.
        antialias: see `Preprocessing`.
        channels: number of channels to which gray images are repeated; None: they are not repeated.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int | None = None
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    channels: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return float32 inputs [N, *input_shape] of raw samples x [N, ...], on the same device; x is not changed.

        Tokens, int32 [N, L], are returned unchanged.
        """
        if tokens.is_text(x):
            return x
        image = x.dtype == torch.uint8
        out = x.to(torch.float32)
        if image:
            out.div_(255)
        if self.size is not None:
            out = resize(out, self.size, self.interpolation, self.antialias)
            out = out.clamp(0, 1) if image else out  # bicubic results may exceed the range
        if self.channels is not None:
            out = out.expand(-1, self.channels, -1, -1)
        if self.mean:
            # In place if possible: new memory costs more than arithmetic.
            is_copy = out is not x and self.channels is None and self.size is None
            if is_copy and len(self.mean) > 1 and x.ndim == IMAGE_DIMS and out.permute(0, 2, 3, 1).is_contiguous():
                # Photos from files are channels last. Whole rows are faster than the few channels of one pixel.
                rows, width = out.permute(0, 2, 3, 1).flatten(2), out.shape[3]
                mean, std = (broadcast_along(values * width, 2, x.device) for values in (self.mean, self.std))
                rows.sub_(mean).div_(std)
            else:
                mean, std = broadcast_along(self.mean, x.ndim, x.device), broadcast_along(self.std, x.ndim, x.device)
                out = (out.sub_(mean) if is_copy else out - mean).div_(std)
        if x.ndim != IMAGE_DIMS:
            return out
        # Channels last: convolutions are faster in this layout, and no value changes. Not by `memory_format`, which
        # vmap does not support.
        return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@functools.cache
def broadcast_along(values: tuple[float, ...], dims: int, device: torch.device) -> Tensor | float:
    """Return a single number, or numbers shaped to broadcast along the channels of a tensor with `dims` dimensions.

    The tensor is made once, because sending it waits for the device.
    """
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, device=device).view(-1, *[1] * (dims - CHANNEL_AXIS - 1))
