"""Images resized in batches on their device, as PIL resizes them one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
