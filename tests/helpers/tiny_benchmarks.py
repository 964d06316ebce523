"""Benchmarks for the tests, used as `helpers.tiny_benchmarks:NAME`."""

import os
import random

import numpy as np
import torch


def flat():
    """Return two tasks of flat vectors instead of images."""
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
    """Return three tasks with the same four classes, whose images differ from task to task (scenario domain)."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(1)
    centers = torch.rand(3, 4, 1, 6, 6, generator=generator)

    def part(task, samples):
        y = torch.arange(samples) % 4
        return (centers[task][y] + 0.6 * torch.randn(samples, 1, 6, 6, generator=generator)).clamp(0, 1), y

    return tensors_benchmark(train_tensors=[part(task, 150) for task in range(3)],
                             test_tensors=[part(task, 80) for task in range(3)], task_labels=[0] * 3,
                             complete_test_set_only=False)


def pictures():
    """Return two tasks of small color images (uint8), with two classes each that differ in a colored corner."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(2)

    def part(task, samples):
        y = torch.arange(samples) % 2 + 2 * task
        x = torch.randint(0, 256, (samples, 3, 16, 16), generator=generator, dtype=torch.uint8)
        x[y % 2 == 0, 0, :8, :8] = 255
        x[y % 2 == 1, 2, 8:, 8:] = 255
        return x, y

    return tensors_benchmark(train_tensors=[part(task, 24) for task in range(2)],
                             test_tensors=[part(task, 16) for task in range(2)], task_labels=[0, 0],
                             complete_test_set_only=False)


def photos():
    """Return two tasks of photos (PIL) of several sizes."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from PIL import Image
    from torch.utils.data import Dataset

    class Album(Dataset):
        def __init__(self, first, seed):
            generator = np.random.default_rng(seed)
            self.targets = [first, first + 1] * 4
            self.shots = [Image.fromarray(generator.integers(64, 192, (20 + 3 * i, 26 - 2 * i, 3), np.uint8))
                          for i in range(8)]

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return self.shots[index], self.targets[index]

    return benchmark_from_datasets(train=[make_avalanche_dataset(Album(2 * t, t)) for t in range(2)],
                                   test=[make_avalanche_dataset(Album(2 * t, 9 + t)) for t in range(2)])


def embedded():
    """Return the tasks in the file of features whose path is the environment variable CLBENCH_TEST_FEATURES."""
    from avalanche.benchmarks import tensors_benchmark
    from safetensors.torch import load_file

    found = load_file(os.environ["CLBENCH_TEST_FEATURES"])
    tasks = found["task_train"].unique().tolist()

    def parts(kind):
        return [tuple(found[f"{what}_{kind}"][found[f"task_{kind}"] == task] for what in ("X", "y")) for task in tasks]

    return tensors_benchmark(train_tensors=parts("train"), test_tensors=parts("test"), task_labels=[0] * len(tasks),
                             complete_test_set_only=False)


def shifting_twice():
    """Return the tasks of `shifting` twice in a row."""
    from avalanche.benchmarks import tensors_benchmark

    once = shifting()
    parts = [[(torch.stack([x for x, *_ in e.dataset]), torch.tensor(list(e.dataset.targets))) for e in stream] * 2
             for stream in (once.train_stream, once.test_stream)]
    return tensors_benchmark(train_tensors=parts[0], test_tensors=parts[1], task_labels=[0] * len(parts[0]),
                             complete_test_set_only=False)


def one_test():
    """Return three tasks of two classes each, and one common test set with i + 1 images of each class i."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(3)

    def part(y):
        x = torch.randint(0, 120, (len(y), 3, 16, 16), generator=generator, dtype=torch.uint8)
        x[torch.arange(len(y)), 0, y] += 120
        return x, y

    train = [part(torch.arange(30) % 2 + 2 * task) for task in range(3)]
    test = part(torch.repeat_interleave(torch.arange(6), torch.arange(1, 7)))
    return tensors_benchmark(train_tensors=train, test_tensors=[test], task_labels=[0] * 3,
                             complete_test_set_only=True)
