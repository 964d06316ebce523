"""The validation split: a share of the training samples stands in for the test samples, which are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from clbench import seeds
from clbench.data.raw import RawStream, Split
from clbench.errors import DataError

REDRAWN = "validation samples are one draw of each from the random training transforms"


def hold_out(raw: RawStream, share: float, seed: int, name: str) -> RawStream:
    """Return a stream whose test samples are held out of its training samples; the test samples it had are gone.

    Which ones depends on the seed alone, so it is the same for all methods. The draw for a class does not depend on the
    task: where tasks show the same images (permuted, rotated), the same ones are held out of all.

    Args:
        raw: the benchmark.
        share: of each class's samples in each task, in (0, 1); at least one, and at least one is left to train on.
        seed: of the trial.
        name: of the benchmark, for errors.

    Raises:
        DataError: a class with a single sample in a task.
    """
    train: list[Split] = []
    test: list[Split] = []
    for task, split in enumerate(raw.train):
        if split.permutation is None:
            kept, held = choose(split.y, share, seed, f"benchmark {name!r}: training experience {task}")
            xs = split.x[kept], split.x[held]  # shared with the permuted tasks that follow
        train.append(Split(xs[0], split.y[kept], split.permutation, _draw(split, kept)))
        test.append(Split(xs[1], split.y[held], split.permutation))
    return replace(raw, train=tuple(train), test=tuple(test),
                   notes=(*raw.notes, *([REDRAWN] if raw.redrawn else [])))


def choose(y: Tensor, share: float, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Return the rows that stay and the rows that are held out, both int64 and ascending, of labels y [N]."""
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y).tolist():
        rows = (y == label).nonzero().squeeze(1)
        if len(rows) < 2:
            raise DataError(f"{where} has one sample of class {label}; a validation split needs two of each class")
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        order = torch.randperm(len(rows), generator=seeds.generator(seed, "validation", label))
        held[rows[order[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def _draw(split: Split, rows: Tensor) -> Callable[[int], Tensor] | None:
    """Return what draws a kept sample anew, where the split's samples are drawn anew."""
    draw = split.draw
    return None if draw is None else lambda index: draw(int(rows[index]))
