"""Photos in folders, as torchvision's ImageFolder has them: which files there are, and what folders say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError
from clbench.data.own.samples import Labelled, locate, some
from clbench.data.own_options import ImagesOptions

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")  # names of the folders of parts


@dataclass(frozen=True)
class Photos:
    """Files of one part of the data, and what their folders say of them."""

    files: tuple[Path, ...]
    labelled: Labelled


def find_photos(name: str, options: ImagesOptions, data_dir: Path) -> tuple[Photos, Photos | None, list[str]]:
    """Return the photos of `images:DIR`, the training or only part and the test part if there is one, and notes.

    Raises:
        DataError: no such folder, no photos in it, or folders that do not lie as the options say.
    """
    root = locate(name, data_dir)
    where = f"benchmark {name!r}"
    if not root.is_dir():
        raise DataError(f"{where}: {root} is a file; images:DIR wants a folder with a folder of photos for each class")
    notes: list[str] = []
    if not any(_folders(root / TRAIN)):
        if parts := [n for n in TESTS if any(_folders(root / n))]:
            notes.append(f"folder {parts[0]!r} was read as a class, because there is no folder 'train' next to it")
        return _part(root, options, where, notes), None, notes
    tests = [n for n in TESTS if any(_folders(root / n))]
    strange = [f.name for f in _folders(root) if f.name not in (TRAIN, *tests[:1])]
    if strange:
        notes.append(f"folders next to {TRAIN!r} that were not used: {some(strange)}")
    if tests and tests[0] != TESTS[0]:
        notes.append(f"the test part is the folder {tests[0]!r}")
    train = _part(root / TRAIN, options, where, notes)
    return train, _part(root / tests[0], options, where, notes) if tests else None, notes


def image_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return all photos that `images:DIR` reads."""
    train, test, _ = find_photos(name, ImagesOptions.stored(options), data_dir)
    return [*train.files, *(test.files if test else ())]


def _part(root: Path, options: ImagesOptions, where: str, notes: list[str]) -> Photos:
    """Return the photos under a folder; notes are added."""
    depth = 2 if options.tasks_from == "folders" else 1  # folders that tell task and class
    files, others, shallow, deep = [], 0, 0, 0
    for path in sorted(_files(root)):
        inner = len(path.relative_to(root).parts) - 1
        if path.suffix.lower() not in SUFFIXES:
            others += 1
        elif inner < depth:
            shallow += 1
        else:
            files.append(path)
            deep += inner > depth
    layout = "a folder for each task and in it one for each class" if depth > 1 else "a folder for each class"
    if not files:
        problem = (f"the {shallow} photos in it lie outside such folders" if shallow else
                   f"there are no photos in it ({', '.join(sorted(SUFFIXES))})")
        raise DataError(f"{where}: {root} needs {layout}, but {problem}: move the photos into such folders")
    if shallow:
        notes.append(f"{shallow} photos in {root} were left out: they do not lie in {layout}")
    if others:
        notes.append(f"{others} files in {root} were left out: they are no photos by their names")
    inside = [path.relative_to(root).parts for path in files]
    if deep and depth == 1 and options.groups_from == "files":
        notes.append(f"{deep} photos lie in folders within those of their classes (tasks_from=folders takes the outer "
                     "folders for tasks, groups_from=folders the inner ones for groups)")
    groups = None
    if options.groups_from == "folders":
        groups = ["/".join(parts[depth:-1]) or "/".join(parts) for parts in inside]
        if not deep:
            raise DataError(f"{where}: groups_from = folders needs folders within those of the classes in {root}")
    return Photos(tuple(files), Labelled([parts[depth - 1] for parts in inside],
                                         [parts[0] for parts in inside] if depth > 1 else None, groups))


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, but hidden ones, by name; none if it is not there."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path) -> Iterator[Path]:
    """Yield the files under a folder at any depth, but hidden ones; links are followed, as ImageFolder does."""
    for path in root.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
