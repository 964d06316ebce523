"""Labelled: samples as a format is read, before they are divided; and where files are looked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core.errors import DataError, MissingDataError
from clbench.data.avalanche.benchmarks import LAYOUT, Layout, of_tasks
from clbench.data.datasets import Images
from clbench.data.own.dividing import Division, divide
from clbench.data.own_options import OwnOptions


def own_benchmark(x: Tensor, labelled: Labelled, options: OwnOptions, seed: int, where: str, *,
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
    repeated = copies([part.x for part in train], [part.x for part in test])
    tested = sum(map(len, division.test))
    twice = [f"{repeated} of {tested} test samples are exact copies of training samples"] if repeated else []
    setattr(benchmark, LAYOUT, replace(layout, class_names=division.classes, orders=division.orders,
                                       test_rows=tuple(torch.tensor(rows) for rows in division.test),
                                       notes=(*layout.notes, *division.notes, *twice)))
    return benchmark


def copies(train: Sequence[Tensor], test: Sequence[Tensor]) -> int:
    """Return how many test samples have the same bytes as some training sample."""
    known = {hash(row.tobytes()) for x in train for row in x.numpy()}
    candidates = [row.tobytes() for x in test for row in x.numpy() if hash(row.tobytes()) in known]
    if not candidates:
        return 0
    wanted = set(candidates)
    real = {content for x in train for row in x.numpy() if (content := row.tobytes()) in wanted}
    return sum(content in real for content in candidates)


SHOWN = 5  # names that a note or an error lists before it counts the others


@dataclass(frozen=True)
class Labelled:
    """Labels, tasks and groups of N samples, as text.

    Args:
        labels: each sample's class.
        tasks: each sample's task; None if the data do not name tasks.
        groups: each sample's group; a group is never divided between training and test. None if there are no groups.
        classes: all classes in their natural order. If empty, classes are sorted by name, and numbers by size.
    """

    labels: Sequence[str]
    tasks: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    classes: tuple[str, ...] = ()


def as_text(values: Iterable[Any]) -> list[str]:
    """Return labels, tasks or groups as text: 3 and 3.0 are both `3`, bytes are UTF-8."""
    out = []
    for value in values:
        if hasattr(value, "item"):  # a number or text of NumPy, which is not imported for this
            value = value.item()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        out.append(value.decode() if isinstance(value, bytes) else str(value))
    return out


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted: by size if all are numbers, else as text.

    >>> in_order(["10", "9", "10"]), in_order(["b", "a"])
    (['9', '10'], ['a', 'b'])
    """
    distinct = sorted(set(names))
    try:
        return sorted(distinct, key=float)
    except ValueError:
        return distinct


def some(names: Iterable[str]) -> str:
    """Return names as text, the first few of them and how many others there are."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def locate(name: str, data_dir: Path) -> Path:
    """Return the file or folder that a benchmark named `kind:PATH` reads: from here on, else from the data folder.

    Raises:
        MissingDataError: it is in neither place.
    """
    written = name.partition(":")[2]
    if not written:
        raise DataError(f"benchmark {name!r} names no file or folder; write {name.partition(':')[0]}:PATH")
    path = Path(written).expanduser()
    places = [path] if path.is_absolute() else [Path.cwd() / path, data_dir / path]
    for place in places:
        if place.exists():
            return place
    raise MissingDataError(f"benchmark {name!r}: there is no {' and no '.join(map(str, places))}; check the path, "
                           "which may also be relative to the folder of data sets (--data)")
