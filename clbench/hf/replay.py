"""Mix samples of old tasks into the training data of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np

from clbench.core.errors import SpecError

Data = TypeVar("Data")


def replay_mix(new: Data, old: Data | Sequence[Data], share: float, seed: int) -> Data:
    """Return the new items and replayed old ones, shuffled, so that about `share` of the result is replayed.

    Each new item occurs once. For n new items, `round(n * share / (1 - share))` old items are added. They are divided
    equally among the old tasks; the seed decides which tasks add one more item if there is a remainder. Items of a task
    are drawn without replacement. If a task has too few items, they are repeated, and their counts differ by at most 1.

    Args:
        new: the new task: a `datasets.Dataset` or a list of items.
        old: an old task of the same type, or a list of old tasks. A list of lists is a list of tasks.
        share: fraction of replayed items in the result, at least 0 and less than 1.
        seed: seed of the drawn items and of the order, not negative. The global random generators are not used.

    Returns:
        A new `datasets.Dataset` with the columns and the format of `new`, or a new list of the same objects.

    Raises:
        SpecError: `share` is out of bounds, a task is empty or of another type, or its columns differ from those of
            `new`. The columns of a list are the keys of its dictionaries.
        ValueError: the seed is negative.
    """
    if not 0 <= share < 1:
        raise SpecError(f"share {share}: expected at least 0 and less than 1")
    tasks: list[Any] = list(cast("Sequence[Any]", old)) if _are_tasks(old) else [old]
    _check("the new task", new, new)
    for number, task in enumerate(tasks, start=1):
        _check(f"old task {number}", task, new)
    order = _draw_order(len(cast(Any, new)), [len(task) for task in tasks], share, seed)
    if isinstance(new, list):
        items = [*new, *chain.from_iterable(tasks)]
        return cast(Data, [items[i] for i in order])
    from datasets import concatenate_datasets

    mixed = concatenate_datasets([new, *tasks]).select(order)  # without a format if the formats differ
    form = cast(Any, new).format
    mixed.set_format(form["type"], form["columns"], form["output_all_columns"], **form["format_kwargs"])
    return cast(Data, mixed)


def _draw_order(new: int, old: Sequence[int], share: float, seed: int) -> list[int]:
    """Return the indices of the result's items, in random order, in the concatenation of the new and all old tasks.

    Args:
        new: number of new items.
        old: number of items of each old task.
        share: fraction of old items in the result.
        seed: seed of the draws.
    """
    draw = np.random.default_rng(seed)
    each, extra = divmod(round(new * share / (1 - share)), len(old))
    counts = np.full(len(old), each)
    counts[draw.permutation(len(old))[:extra]] += 1
    chosen, start = [np.arange(new)], new
    for size, count in zip(old, counts.tolist(), strict=True):
        rounds = [start + draw.permutation(size) for _ in range(-(-count // size))]
        chosen.append(np.concatenate([*rounds, np.arange(0)])[:count])
        start += size
    order: list[int] = draw.permutation(np.concatenate(chosen)).tolist()
    return order


def _is_dataset(value: object) -> bool:
    """Return whether a value is a `datasets.Dataset`, without importing that library."""
    return any((kind.__module__, kind.__name__) == ("datasets.arrow_dataset", "Dataset") for kind in type(value).mro())


def _are_tasks(old: object) -> bool:
    """Return whether a value is a sequence of tasks, and not a single task."""
    return isinstance(old, list | tuple) and any(isinstance(part, list) or _is_dataset(part) for part in old)


def _check(name: str, task: Any, new: Any) -> None:
    """Check that a task can be mixed with the new one."""
    if not (isinstance(task, list) or _is_dataset(task)):
        raise SpecError(f"{name}: expected a datasets.Dataset or a list, found {type(task).__name__}")
    if _is_dataset(task) != _is_dataset(new):
        raise SpecError(f"{name}: it is a {type(task).__name__}, and the new task a {type(new).__name__}; make "
                        "both the same")
    if not len(task):
        raise SpecError(f"{name} is empty")
    columns, expected = _columns(task), _columns(new)
    if columns.keys() != expected.keys():
        raise SpecError(f"{name}: it has {_join(columns)}, and the new task {_join(expected)}; make both the same")
    if different := [column for column in columns if columns[column] != expected[column]]:
        column = different[0]
        raise SpecError(f"{name}: its column {column!r} is {columns[column]}, and that of the new task "
                        f"{expected[column]}; cast(new.features) of datasets changes it")


def _columns(task: Any) -> dict[Any, Any]:
    """Return the columns of a `Dataset` with their types, or the keys or types of the items of a list."""
    if _is_dataset(task):
        return dict(task.features)
    return dict.fromkeys(chain.from_iterable(item if isinstance(item, Mapping) else [type(item)] for item in task))


def _join(columns: Mapping[Any, Any]) -> str:
    """Return columns or types of items as text for an error message."""
    names = sorted(f"items of type {column.__name__}" if isinstance(column, type) else f"column {column!r}"
                   for column in columns)
    return ", ".join(names) or "no columns"
