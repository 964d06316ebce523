"""Benchmarks for the tests, used as `helpers.tiny_benchmarks:NAME`."""

import random

import numpy as np
import torch


def flat():
    """Return two tasks of flat vectors (no images)."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(0)
    parts = [(torch.rand(40, 12, generator=generator), torch.arange(40) % 2 + 2 * task) for task in range(2)]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0], complete_test_set_only=False)


def flipping():
    """Return two tasks of images whose training samples are flipped and shifted sideways at random."""
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import TensorDataset
    from torchvision.transforms import Compose, RandomHorizontalFlip

    def flipped(x):
        return x.flip(-1) if random.random() < 0.5 else x

    def shifted(x):
        return x.roll(np.random.randint(6), -1)

    x = torch.rand(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, torch.arange(80) % 4)
    data.targets = data.tensors[1].tolist()
    return nc_benchmark(data, data, 2, task_labels=False, shuffle=False, eval_transform=None,
                        train_transform=Compose([RandomHorizontalFlip(), flipped, shifted]))


def shifting():
    """Return three tasks with the same four classes whose images drift from task to task (scenario domain)."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(3, 4, 1, 6, 6, generator=generator)

    def part(task, samples):
        y = torch.arange(samples) % 4
        return (centres[task][y] + 0.6 * torch.randn(samples, 1, 6, 6, generator=generator)).clamp(0, 1), y

    return tensors_benchmark(train_tensors=[part(task, 150) for task in range(3)],
                             test_tensors=[part(task, 80) for task in range(3)], task_labels=[0] * 3,
                             complete_test_set_only=False)
