"""Photos in folders, as torchvision's ImageFolder has them: which files there are, and what folders say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError
from clbench.data.own.lists import find_lists, listed_photos
from clbench.data.own.samples import Labelled, PhotoFiles, locate, some
from clbench.data.own_options import ImagesOptions

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")  # names of the folders of parts


def find_photos(name: str, options: ImagesOptions, data_dir: Path) -> tuple[PhotoFiles, PhotoFiles | None, list[str]]:
    """Return the photos of `images:DIR`, the training or only part and the test part if there is one, and notes.

    Raises:
        DataError: no such folder, no photos in it, or folders that do not lie as the options say.
    """
    root = locate(name, data_dir)
    where = f"benchmark {name!r}"
    if not root.is_dir():
        raise DataError(f"{where}: {root} is a file; images:DIR wants a folder with a folder of photos for each class")
    if options.train_list:
        lists = [find_lists(given, root, data_dir, where) for given in (options.train_list, options.test_list)]
        train, test = listed_photos(root, lists[0], lists[1], where, options.tasks_are_named)
        return train, test if lists[1] else None, []
    notes, tasks, groups = list[str](), options.tasks_are_named, options.groups_from == "folders"
    if not any(_folders(root / TRAIN)):
        if parts := [n for n in TESTS if any(_folders(root / n))]:
            notes.append(f"folder {parts[0]!r} was read as a class, because there is no folder 'train' next to it")
        return photos_in(root, where, notes, tasks, groups), None, notes
    tests = [n for n in TESTS if any(_folders(root / n))]
    strange = [f.name for f in _folders(root) if f.name not in (TRAIN, *tests[:1])]
    if strange:
        notes.append(f"folders next to {TRAIN!r} that were not used: {some(strange)}")
    if tests and tests[0] != TESTS[0]:
        notes.append(f"the test part is the folder {tests[0]!r}")
    train = photos_in(root / TRAIN, where, notes, tasks, groups)
    return train, photos_in(root / tests[0], where, notes, tasks, groups) if tests else None, notes


def image_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return all files that `images:DIR` reads: photos, and lists of photos."""
    images = ImagesOptions.stored(options)
    train, test, _ = find_photos(name, images, data_dir)
    lists = find_lists([*images.train_list, *images.test_list], locate(name, data_dir), data_dir, f"benchmark {name!r}")
    return [*train.files, *(test.files if test else ()), *lists]


def photos_in(root: Path, where: str, notes: list[str], tasks: bool = False, groups: bool = False) -> PhotoFiles:
    """Return the photos under a folder, which has a folder for each class, in the order of ImageFolder.

    Args:
        root: the folder.
        where: names the benchmark in errors.
        notes: on files that were left out; they are added.
        tasks: whether there is a folder for each task, and in it one for each class.
        groups: whether folders within those of classes are groups.

    Raises:
        DataError: no photos, or they do not lie in such folders.
    """
    depth = 2 if tasks else 1  # folders that tell task and class
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
    if deep and depth == 1 and not groups:
        notes.append(f"{deep} photos lie in folders within those of their classes (tasks_from=folders takes the outer "
                     "folders for tasks, groups_from=folders the inner ones for groups)")
    names = None
    if groups:
        names = ["/".join(parts[depth:-1]) or "/".join(parts) for parts in inside]
        if not deep:
            raise DataError(f"{where}: groups_from = folders needs folders within those of the classes in {root}")
    return PhotoFiles(tuple(files), Labelled([parts[depth - 1] for parts in inside],
                                             [parts[0] for parts in inside] if depth > 1 else None, names))


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, but hidden ones, by name; none if it is not there."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path) -> Iterator[Path]:
    """Yield the files under a folder at any depth, but hidden ones; links are followed, as ImageFolder does."""
    for path in root.iterdir():
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
