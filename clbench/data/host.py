"""Training samples that stay in the host's memory, where a device has no room for the whole stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clbench.device import send
from clbench.strategy import Samples


class HostSamples(Samples):
    """Samples whose inputs lie on the host and whose labels lie on the device; batches are copied when asked for.

    A batch is gathered into pinned memory and copied from there while the device goes on with what it is doing. What
    is pinned is the batch and not the data, so these may be memory-mapped and larger than the host's memory, too.
    """

    def __init__(self, host: Tensor, y: Tensor, tasks: Tensor) -> None:
        """Keep inputs [N, ...] of the host, and labels and tasks [N] of the device."""
        for name, value in (("host", host), ("y", y), ("tasks", tasks)):
            object.__setattr__(self, name, value)

    host: Tensor

    @property
    def x(self) -> Tensor:
        """Return all inputs on the device: of one task, which may fit where the stream does not."""
        return self.host.to(self.y.device)

    @property
    def index_device(self) -> torch.device:
        """Return the host."""
        return self.host.device

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M]), on the device."""
        device = self.y.device
        pinned = device.type == "cuda"
        x = torch.empty(len(index), *self.host.shape[1:], dtype=self.host.dtype, pin_memory=pinned)
        torch.index_select(self.host, 0, index.to(self.host.device), out=x)
        there = send(index, device)
        return Samples(x.to(device, non_blocking=True), self.y[there], self.tasks[there])

    def chunks(self, size: int) -> Iterator[Samples]:
        """Yield the samples in order, so many at a time, on the device."""
        for x, y, tasks in zip(*(torch.split(c, size) for c in (self.host, self.y, self.tasks)), strict=True):
            yield Samples(send(x, y.device), y, tasks)
