"""Raw samples as inputs of the model: scaled, resized, standardised."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.core import tokens
from clbench.core.pretrained import Interpolation

CUBIC = -0.5  # the parameter a of PIL's bicubic kernel


def resize(x: Tensor, size: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """Return images [N, C, size, size] of images x [N, C, H, W], float32.

    The shorter side becomes `size`; of a longer one the middle is taken. A bicubic result may leave the range of x.
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


def windows(begin: Tensor, length: Tensor, side: int, out: int) -> Tensor:
    """Return the matrices [N, out, side] that resize a part of each column of pixels to `out` pixels, bicubic.

    Row i holds the weights of the pixels of which output pixel i is made: PIL's bicubic kernel (a = -0.5) around the
    place of i in the part, as wide as the part is shrunk (antialias), normalised over the pixels of the part.

    Args:
        begin: first pixel of each part, int64 [N].
        length: pixels of each part, int64 [N].
        side: pixels of the column.
        out: pixels of the result.
    """
    step = length.double()[:, None, None] / out
    stretch = step.clamp(min=1)
    # Within the part, as PIL has it: a window of whole pixels around the centre, cut off at the part's ends.
    centre = (torch.arange(out, dtype=torch.float64)[:, None] + 0.5) * step
    pixel = torch.arange(side, dtype=torch.float64) - begin[:, None, None]
    weights = cubic((pixel + 0.5 - centre) / stretch)
    weights = weights.masked_fill((pixel < 0) | (pixel >= length[:, None, None]), 0)
    return weights / weights.sum(2, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Return Keys's cubic convolution kernel at x, with a = -0.5."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


CHANNEL_AXIS = 1
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
            # In place if possible: new memory costs more than arithmetic.
            is_copy = out is not x and self.channels is None and self.size is None
            out = (out.sub_(mean) if is_copy else out - mean).div_(std)
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
