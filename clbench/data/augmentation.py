"""Random crop and flip: drawn per sample, applied to a whole batch on its device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from clbench.core.device import send

PADDING = 4  # pixels of zeros on each side before the crop


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

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return images x [N, C, H, W] shifted and flipped by draws [N, 3]; x itself is not changed."""
        draws = send(draws, x.device)
        height, width = x.shape[2:]
        rows = draws[:, :1] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device).expand(len(x), -1)
        columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns) + draws[:, 1:2]
        padded = F.pad(x, [PADDING] * 4)
        number = torch.arange(len(x), device=x.device)[:, None, None]
        # Indexed on both sides of the channels, which thus come out last: the layout convolutions are fastest in.
        return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


AUGMENTATIONS = {CropFlip.name: CropFlip()}
