"""Photos that a file lists with their labels: lines `PATH LABEL`, or YAML with `data` and `targets`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError, MissingDataError
from clbench.data.own.samples import Labelled, PhotoFiles, in_order

YAML = (".yaml", ".yml")
TRIED = 100  # photos whose paths tell which leading folders are not below the folder of the photos

Entries = tuple[tuple[str, str], ...]  # path and label of each photo


def find_lists(names: Sequence[str], root: Path, data_dir: Path, where: str) -> list[Path]:
    """Return files of lists; they are searched in the folder of the photos, the working directory and the data folder.

    Raises:
        MissingDataError: one is in none of these.
    """
    lists = []
    for name in names:
        places = [folder / Path(name).expanduser() for folder in (root, Path.cwd(), data_dir)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingDataError(f"{where}: there is no list {' and no '.join(map(str, dict.fromkeys(places)))}")
        lists.append(path)
    return lists


def listed_photos(root: Path, train: Sequence[Path], test: Sequence[Path], where: str, tasks: bool = False
                  ) -> tuple[PhotoFiles, PhotoFiles]:
    """Return the training and test photos that files list, in their order.

    Leading folders of all paths that are not below the root are left out: `data/imagenet-r/n01/a.jpg` is
    `n01/a.jpg` in the folder `imagenet-r`. If each label has photos in folders of one name and no other label has, this
    is the name of the class; classes come in the order of their labels.

    Args:
        root: folder of the photos.
        train: lists of training photos.
        test: lists of test photos; there may be none.
        where: names the benchmark in errors.
        tasks: whether the outer folder of each path is its task.

    Raises:
        DataError: a list cannot be read, or names photos that are not there.
    """
    parts = [[entry for path in lists for entry in read_list(path, where)] for lists in (train, test)]
    entries, names = [*parts[0], *parts[1]], " and ".join(path.name for path in [*train, *test])
    if not parts[0]:
        raise DataError(f"{where}: {names} lists no photos")
    inside = _below(root, [path for path, _ in entries])
    files = [root / path for path in inside]
    if missing := [path for path, file in zip(inside, files, strict=True) if not file.is_file()]:
        raise MissingDataError(f"{where}: {len(missing)} of {len(files)} photos that {names} lists are not in {root}; "
                               f"the first is {missing[0]}. Add them, or check that the list belongs to this folder")
    if tasks and (shallow := [path for path in inside if "/" not in path]):
        raise DataError(f"{where}: outer folders are tasks, and {shallow[0]} in {names} lies in none")
    labels, classes = _named([label for _, label in entries], [file.parent.name for file in files])
    outer = [path.partition("/")[0] for path in inside]
    count = len(parts[0])
    first, second = (PhotoFiles(tuple(files[part]), Labelled(labels[part], outer[part] if tasks else None,
                                                             classes=classes))
                     for part in (slice(count), slice(count, None)))
    return first, second


def read_list(path: Path, where: str) -> Entries:
    """Return path and label of each photo that a file lists.

    Raises:
        DataError: the file cannot be read, or is not such a list.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise MissingDataError(f"{where}: there is no list {path}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"{where}: cannot read the list {path}: {reason}") from error


@functools.lru_cache(maxsize=32)
def _read(path: Path, changed: int, size: int) -> Entries:
    """Return what a file lists; `changed` and `size` tell when it has to be read again."""
    if path.suffix.lower() in YAML:
        return _from_yaml(path)
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            photo, _, label = line.strip().rpartition(" ")
            if not photo:
                raise ValueError(f"line {number} is {line.strip()!r}, expected PATH LABEL")
            entries.append((photo.strip(), label))
    return tuple(entries)


def _from_yaml(path: Path) -> Entries:
    """Return what a YAML file lists: `data` are paths, `targets` their labels."""
    try:
        import yaml
    except ImportError:
        raise DataError(f"{path.name} is YAML, which needs PyYAML: pip install pyyaml") from None
    try:
        with path.open("rb") as file:
            content: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(file).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML ({error})") from None
    if not isinstance(content, dict) or not {"data", "targets"} <= content.keys():
        raise ValueError("expected the keys data (paths) and targets (labels)")
    data, targets = content["data"], content["targets"]
    if not isinstance(data, list) or not isinstance(targets, list) or len(data) != len(targets):
        raise ValueError("data and targets must be lists of the same length")
    return tuple((str(photo), str(label)) for photo, label in zip(data, targets, strict=True))


def _below(root: Path, paths: Sequence[str]) -> list[str]:
    """Return paths without leading folders, the same number of all, that are not below the root."""
    parts = [re.split(r"[\\/]+", path.removeprefix("./")) for path in paths]
    tried = parts[:TRIED]
    cut = next((leading for leading in range(max(map(len, tried)))
                if any((root / "/".join(part[leading:])).is_file() for part in tried if part[leading:])), 0)
    return ["/".join(part[cut:]) for part in parts]


def _named(labels: list[str], folders: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return labels as names of folders, and these in the order of the labels, if they say the same."""
    pairs = set(zip(labels, folders, strict=True))
    name = dict(pairs)
    if len(name) != len(pairs) or len({folder for _, folder in pairs}) != len(pairs):
        return labels, ()
    return [name[label] for label in labels], tuple(name[label] for label in in_order(name))
