"""Samples with random transforms: drawn anew, item by item, each time they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clbench.device import send
from clbench.strategy import Samples


class LiveSamples(Samples):
    """Samples that an Avalanche data set draws anew for every batch; `x` is one draw of each, and stays that.

    Draws come from the global generators, which the harness seeds for every task of every trial.
    """

    redrawn = True

    def __init__(self, x: Tensor, y: Tensor, tasks: Tensor, draw: Callable[[int], Tensor]) -> None:
        """Keep one draw x [N, ...] with its labels, and `draw(i)`, a new draw of sample i as it is stored."""
        super().__init__(x, y, tasks)
        object.__setattr__(self, "draw", draw)

    draw: Callable[[int], Tensor]

    @property
    def index_device(self) -> torch.device:
        """Return the host, where samples are drawn one by one."""
        return torch.device("cpu")

    def drawn(self, index: Tensor) -> Tensor:
        """Return new draws of the inputs at `index` (int64 [M]), on the host."""
        return torch.stack([self.draw(i) for i in index.tolist()])

    def take(self, index: Tensor) -> Samples:
        """Return new draws of the samples at `index` (int64 [M])."""
        there = send(index, self.y.device)
        return Samples(send(self.drawn(index), self.x.device), self.y[there], self.tasks[there])

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied to another process: what is under an Avalanche data set often cannot be."""
        raise TypeError("samples with random transforms cannot be pickled")
