"""Labels of samples before they are divided, files of photos, and the search for the file or folder of a benchmark."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError, MissingDataError

SHOWN = 5  # names that a note or an error lists before it counts the others


@dataclass(frozen=True)
class Labeled:
    """Labels, tasks and groups of N samples, as text.

    Args:
        labels: each sample's class.
        tasks: each sample's task; None if the data do not name tasks.
        groups: each sample's group; a group is never divided between training and test. None if there are no groups.
        classes: all classes in their natural order. If empty, classes are sorted by name, and numbers by size.
        task_names: all tasks in their natural order. If empty, tasks are sorted likewise.
    """

    labels: Sequence[str]
    tasks: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    classes: tuple[str, ...] = ()
    task_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhotoFiles:
    """Photos of one part of the data: their files, and their labels, tasks and groups from folders or lists."""

    files: tuple[Path, ...]
    labeled: Labeled


def as_text(values: Iterable[Any]) -> list[str]:
    """Return labels, tasks or groups as text: 3 and 3.0 are both `3`, bytes are UTF-8."""
    out = []
    for value in values:
        if hasattr(value, "item"):  # a number or text of NumPy, checked without importing it
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
    """Return names as text: the first few, and the number of the others."""
    all_names = list(names)
    return ", ".join(all_names[:SHOWN]) + (f" and {len(all_names) - SHOWN} more" if len(all_names) > SHOWN else "")


def untested(orders: Sequence[Sequence[int]], tested: Sequence[Container[int]], tasks: Sequence[str],
             classes: Sequence[str], kind: str = "test") -> list[str]:
    """Return a note on classes of a task without test samples; `tested` has the labels of each task's test samples."""
    without = [classes[c] + (f" ({tasks[t]})" if tasks else "") for t, order in enumerate(orders)
               for c in order if c not in tested[t]]
    return [f"no {kind} samples: {some(without)}"] if without else []


def groups_on_both_sides(train: Labeled, test: Labeled) -> list[str]:
    """Return a note on groups that occur both in the training part and in the test part of the data."""
    if train.groups is None or test.groups is None:
        return []
    shared = in_order(set(train.groups) & set(test.groups))
    return [f"{len(shared)} groups are in training and in test, as the data have it: {some(shared)}"] if shared else []


def has_suffix(path: Path, suffixes: Iterable[str]) -> bool:
    """Return whether a file is not hidden and has one of the suffixes, in lower or upper case."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def files_by_stem(folder: Path, suffixes: Iterable[str], where: str) -> dict[str, Path]:
    """Return the files in a folder with one of the suffixes, sorted, by their names without suffix.

    Raises:
        DataError: two files differ in their suffixes only.
    """
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and has_suffix(path, suffixes)):
        if other := files.get(path.stem):
            raise DataError(f"{where}: {folder} has both {other.name} and {path.name}; remove or rename one of them")
        files[path.stem] = path
    return files


def locate(name: str, data_dir: Path) -> Path:
    """Return the path of a benchmark `kind:PATH`, searched in the working directory, then in the data folder.

    Raises:
        MissingDataError: the path is in neither place.
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
