"""Build streams from user data that were read and divided: streams of classes, or of numeric targets.

Numeric targets are standardized by the mean and the population standard deviation of the first task's training targets,
so that published learning rates fit any unit. Metrics and predictions are in the target's unit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor

from clbench.core.errors import DataError, list_names
from clbench.core.objective import REGRESSION, format_digits
from clbench.data.datasets import STATISTICS
from clbench.data.own.dividing import Division, Rows, divide
from clbench.data.own.samples import Labeled, as_number, sort_names
from clbench.data.own_options import TaskOptions
from clbench.data.photo_files import Photos
from clbench.data.raw import RawStream, Split

IMAGE_BATCH_DIMS = 4  # [N, C, H, W]
LISTED = 20  # task names that a note lists before it counts the others
ROUNDING = 1e-12  # standard deviation, relative to the largest value, that is an effect of rounding
Inputs = Sequence[Tensor | Photos]  # of each task


def own_benchmark(x: Tensor, labeled: Labeled, options: TaskOptions, seed: int, where: str, *,
                  x_test: Tensor | None = None, test: Labeled | None = None, augment: str = "",
                  notes: Sequence[str] = ()) -> RawStream:
    """Return the stream of labeled samples.

    Args:
        x: inputs [N, ...], of the training part if there is a test part.
        labeled: labels and, if the data name them, tasks and groups of x.
        options: the options for the division.
        seed: the trial's seed, used only for the order of classes.
        where: the name of the data in errors.
        x_test: inputs of the test part [M, ...]; None: a share of x is held out.
        test: labels, tasks and groups of the test part.
        augment: the augmentation of training images (`prepare.find_augmentation`), empty for none.
        notes: how inputs were read; notes on the division are appended.

    Raises:
        DataError: `divide` raises an error, or options of images are given for samples that are not images.
    """
    if augment and x.dim() != IMAGE_BATCH_DIMS:
        raise DataError(f"{where}: augment is for images, and its samples are {list(x.shape[1:])}; leave augment out")
    mean, std = mean_and_deviation(options, x, where)
    division = divide(labeled, test, options, seed, where)
    train_x, test_x = ([part[torch.from_numpy(rows)] for rows in tasks] for part, tasks in
                       ((x, division.train), (x if x_test is None else x_test, division.test)))
    return label_stream(division, train_x, test_x, mean=mean, std=std, augment=augment, notes=notes)


def mean_and_deviation(options: TaskOptions, x: Tensor | Photos, where: str
                       ) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation of each channel by which the options normalize images; empty for none.

    Raises:
        DataError: the options ask for ImageNet's, and the inputs x [N, ...] are not color images of bytes.
    """
    if getattr(options, "normalize", "none") != "imagenet":
        return (), ()
    mean, std = STATISTICS["ImageNet"]
    if x.dtype != torch.uint8 or len(x.shape) != IMAGE_BATCH_DIMS or x.shape[1] != len(mean):
        raise DataError(f"{where}: normalize = imagenet is for color images of bytes, and its samples are "
                        f"{list(x.shape[1:])} of {x.dtype}; choose normalize=none")
    return mean, std


def label_stream(division: Division, train: Inputs, test: Inputs, *, mean: Sequence[float] = (),
                 std: Sequence[float] = (), augment: str = "", notes: Sequence[str] = ()) -> RawStream:
    """Return the stream of divided samples with classes.

    Args:
        division: the result of `divide`.
        train: inputs [N, ...] of each task's training samples, in the order of `division`.
        test: inputs of each task's test samples, likewise.
        mean: the means by which inputs are standardized; empty if they are not.
        std: the standard deviations, likewise.
        augment: the augmentation of training images (`prepare.find_augmentation`), empty for none.
        notes: how inputs were read.
    """
    train_splits = tuple(Split(x, torch.from_numpy(division.y_train[rows]), groups=groups) for x, rows, groups in
                         zip(train, division.train, train_groups(division), strict=True))
    test_splits = tuple(Split(x, torch.from_numpy(division.y_test[rows]), rows=torch.from_numpy(rows))
                        for x, rows in zip(test, division.test, strict=True))
    copy_notes = describe_copies(*([x.hashes if isinstance(x, Photos) else x for x in part] for part in (train, test)))
    return RawStream(train_splits, test_splits, division.orders, tuple(mean), tuple(std),
                     (*notes, *describe_tasks(division.tasks), *division.notes, *describe_names(division), *copy_notes),
                     augment, division.classes)


def train_groups(division: Division) -> tuple[Tensor | None, ...]:
    """Return the groups of each task's training samples as numbers, int64 [N]; None if samples have no groups."""
    if division.groups is None:
        return (None,) * len(division.train)
    numbers = torch.from_numpy(np.unique(np.array(division.groups), return_inverse=True)[1])
    return tuple(numbers[torch.from_numpy(rows)] for rows in division.train)


def describe_tasks(names: Sequence[str]) -> list[str]:
    """Return a note with the names of the tasks, because reports number them; empty if they have no names."""
    return [f"the tasks in order are {list_names(names, LISTED)}"] if names else []


def describe_names(division: Division) -> list[str]:
    """Return notes on classes, tasks and groups whose names may mean the same: only their spelling differs."""
    notes = []
    kinds = {"classes": division.classes, "tasks": division.tasks, "groups": sort_names(division.groups or ())}
    for kind, names in kinds.items():
        by_meaning: dict[str | Decimal, list[str]] = {}
        for name in names:
            plain = " ".join(unicodedata.normalize("NFC", name).casefold().split())
            by_meaning.setdefault(plain if as_number(plain) is None else Decimal(plain), []).append(name)
        if similar := [" / ".join(spellings) for spellings in by_meaning.values() if len(spellings) > 1]:
            notes.append(f"{kind} that differ only in how their names are written: {list_names(similar)}; give them "
                         "one name if they are the same")
    return notes


def describe_copies(train: Sequence[Tensor], test: Sequence[Tensor]) -> list[str]:
    """Return a note on the number of test samples that are copies of training samples; empty if there are none."""
    repeated = copies(train, test)
    test_count = sum(map(len, test))
    return [f"{repeated} of {test_count} test samples are exact copies of training samples"] if repeated else []


def copies(train: Sequence[Tensor], test: Sequence[Tensor]) -> int:
    """Return how many test samples have the same bytes as some training sample."""
    train_hashes = set(map(hash, _contents(train)))
    candidates = [content for content in _contents(test) if hash(content) in train_hashes]
    if not candidates:
        return 0
    copied_contents = set(candidates).intersection(_contents(train))
    return sum(content in copied_contents for content in candidates)


def _contents(inputs: Sequence[Tensor]) -> Iterator[bytes]:
    """Yield the bytes of each sample."""
    for x in inputs:
        for sample in x.numpy():
            yield sample.tobytes()


def target_stream(division: Division, x: Sequence[Tensor], targets: Sequence[Tensor], name: str, *,
                  mean: Sequence[float] = (), std: Sequence[float] = (), notes: Sequence[str] = ()) -> RawStream:
    """Return the stream of samples with numeric targets.

    Args:
        division: the result of `divide_targets`.
        x: inputs [N, ...] of the samples and, if there is one, of the test part.
        targets: targets float64 [N], likewise.
        name: the name of the target.
        mean: the means by which inputs are standardized; empty if they are not.
        std: the standard deviations, likewise.
        notes: how inputs were read.
    """
    first_targets = targets[0][torch.from_numpy(division.train[0])]
    center, spread = float(first_targets.mean()), float(first_targets.std(correction=0))
    if spread <= ROUNDING * float(first_targets.abs().max()):
        spread = 1.0

    def splits(part: int, tasks: Sequence[Rows]) -> tuple[Split, ...]:
        scaled = ((targets[part] - center) / spread).float()
        rows = [torch.from_numpy(np.ascontiguousarray(of_task)) for of_task in tasks]
        return tuple(Split(x[part][chosen], scaled[chosen]) for chosen in rows)

    train = tuple(replace(split, groups=groups) for split, groups in
                  zip(splits(0, division.train), train_groups(division), strict=True))
    test = tuple(replace(split, rows=torch.from_numpy(rows)) for split, rows in
                 zip(splits(-1, division.test), division.test, strict=True))
    copy_notes = describe_copies(*([split.x for split in part if isinstance(split.x, Tensor)]
                                   for part in (train, test)))
    target = (f"the target is {name}; training standardizes it by mean {format_digits(center)} and deviation "
              f"{format_digits(spread)} of the first task's {len(first_targets)} training samples, and metrics are in "
              "its unit")
    return RawStream(train, test, division.orders, tuple(mean), tuple(std),
                     (*notes, target, *division.notes, *describe_names(division), *copy_notes),
                     objective=REGRESSION.name, task_names=division.tasks, target=(center, spread))
