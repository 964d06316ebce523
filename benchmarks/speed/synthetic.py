"""Streams of any length for `scaling.py`, with two classes per task and tasks of equal size."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.data import TensorDataset

TRAIN, TEST = 250, 50  # number of images per class
NOISE = 64


def stream(tasks: int) -> Any:
    """Return an Avalanche benchmark of noisy copies of one random image per class."""
    from avalanche.benchmarks import nc_benchmark

    generator = torch.Generator().manual_seed(0)
    classes = 2 * tasks
    images = torch.randint(0, 256 - NOISE, (classes, 1, 28, 28), generator=generator)

    def draw(count: int) -> TensorDataset:
        noise = torch.randint(0, NOISE, (classes, count, 1, 28, 28), generator=generator)
        return TensorDataset((images[:, None] + noise).to(torch.uint8).flatten(0, 1),
                             torch.arange(classes).repeat_interleave(count))

    return nc_benchmark(draw(TRAIN), draw(TEST), tasks, task_labels=False, shuffle=False,
                        fixed_class_order=list(range(classes)))


tasks_2, tasks_4, tasks_5, tasks_10, tasks_20, tasks_50 = (partial(stream, count) for count in (2, 4, 5, 10, 20, 50))
