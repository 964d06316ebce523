"""Raw samples as inputs of the model: scaled, resized, standardised."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.pretrained import Interpolation
from clbench.data.resizing import resize

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
