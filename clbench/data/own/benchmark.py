"""An Avalanche benchmark of one's own samples, once they are read and divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clbench.data.avalanche.benchmarks import LAYOUT, Layout, of_tasks
from clbench.data.datasets import Images
from clbench.data.own.dividing import Division, divide
from clbench.data.own.samples import Labelled
from clbench.data.own_options import TaskOptions


def own_benchmark(x: Tensor, labelled: Labelled, options: TaskOptions, seed: int, where: str, *,
                  x_test: Tensor | None = None, test: Labelled | None = None, layout: Layout | None = None) -> Any:
    """Return an Avalanche benchmark of labelled samples; its `Layout` has class names and notes.

    Args:
        x: inputs [N, ...], of the training part if there is a test part.
        labelled: labels and, if the data name them, tasks and groups of x.
        options: how they are divided.
        seed: of the trial; for the order of classes alone.
        where: names the data in errors.
        x_test: inputs of the test part [M, ...]; None: a share of x is held out.
        test: labels, tasks and groups of the test part.
        layout: what else there is to say, notes above all; those on the division are put after its own.

    Raises:
        DataError: as `divide` raises it.
    """
    return built(divide(labelled, test, options, seed, where), x, x if x_test is None else x_test, layout or Layout())


def built(division: Division, x_train: Tensor, x_test: Tensor, layout: Layout) -> Any:
    """Return an Avalanche benchmark of divided samples; `x_test` is `x_train` where the test is held out of it."""
    train, test = ([Images(x[torch.from_numpy(rows)], torch.from_numpy(y[rows])) for rows in tasks]
                   for x, y, tasks in ((x_train, division.y_train, division.train),
                                       (x_test, division.y_test, division.test)))
    benchmark = of_tasks(train, test)
    twice = describe_copies([part.x for part in train], [part.x for part in test])
    setattr(benchmark, LAYOUT, replace(layout, class_names=division.classes, orders=division.orders,
                                       test_rows=tuple(torch.tensor(rows) for rows in division.test),
                                       notes=(*layout.notes, *division.notes, *twice)))
    return benchmark


def describe_copies(train: Sequence[Tensor], test: Sequence[Tensor]) -> list[str]:
    """Return a note on how many test samples are copies of training samples; none if none is."""
    repeated = copies(train, test)
    tested = sum(map(len, test))
    return [f"{repeated} of {tested} test samples are exact copies of training samples"] if repeated else []


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
