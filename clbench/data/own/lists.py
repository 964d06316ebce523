"""Find photos and their labels, in folders as for torchvision's ImageFolder, or in a file that lists them.

Such a file has lines `PATH LABEL`, or is YAML with `data` and `targets`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError, MissingDataError, list_names
from clbench.core.files import expand_home, readable_name
from clbench.data.own.paths import files_below
from clbench.data.own.samples import Labeled, PhotoFiles, as_number, locate, sort_names
from clbench.data.own_options import ImagesOptions

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
TRAIN, TESTS = "train", ("test", "val", "valid", "validation")  # names of the folders of parts
YAML = (".yaml", ".yml")
MOST = 0.9  # share of the photos in inner folders above which it is not clear if outer folders are classes
TRIED = 100  # paths that are searched for leading folders outside the folder of the photos

Entries = tuple[tuple[str, str], ...]  # path and label of each photo


def find_photos(name: str, options: ImagesOptions, data_dir: Path) -> tuple[PhotoFiles, PhotoFiles | None, list[str]]:
    """Return the training photos (or all photos) of `images:DIR`, the test photos (or None), and notes.

    Raises:
        DataError: the folder does not exist or has no photos, or its folders do not fit the options.
    """
    root = locate(name, data_dir)
    where = f"benchmark {name!r}"
    if not root.is_dir():
        raise DataError(f"{where}: {root} is a file; images:DIR wants a folder with a folder of photos for each class")
    notes = list[str]()
    if options.train_list:
        lists = [find_lists(names, root, data_dir, where) for names in (options.train_list, options.test_list)]
        train, test = listed_photos(root, lists[0], lists[1], where, options.tasks_are_named)
        if not train.labeled.classes and all(as_number(label) is not None for label in train.labeled.labels):
            notes.append("the numbers of the lists are the names of the classes, because numbers and folders do not "
                         "match one to one")
        return train, test if lists[1] else None, notes
    tasks, groups = options.tasks_are_named, options.groups_from == "folders"
    if not any(_folders(root / TRAIN)):
        if parts := [n for n in TESTS if any(_folders(root / n))]:
            notes.append(f"folder {parts[0]!r} was read as a class, because there is no folder 'train' next to it")
        return photos_in(root, where, notes, tasks, groups), None, notes
    tests = [n for n in TESTS if any(_folders(root / n))]
    unused_folders = [readable_name(f.name) for f in _folders(root) if f.name not in (TRAIN, *tests[:1])]
    if unused_folders:
        notes.append(f"folders next to {TRAIN!r} that were not used: {list_names(unused_folders)}")
    if tests and tests[0] != TESTS[0]:
        notes.append(f"the test part is the folder {tests[0]!r}")
    train = photos_in(root / TRAIN, where, notes, tasks, groups)
    return train, photos_in(root / tests[0], where, notes, tasks, groups) if tests else None, notes


def image_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return all files that `images:DIR` reads: photos, and lists of photos."""
    images = ImagesOptions.stored(options)
    train, test, _ = find_photos(name, images, data_dir)
    return files_of_parts(name, images, data_dir, train, test)


def files_of_parts(name: str, options: ImagesOptions, data_dir: Path, train: PhotoFiles, test: PhotoFiles | None
                   ) -> list[Path]:
    """Return the files of both parts, as `find_photos` has found them, and the lists that the options name."""
    lists = find_lists([*options.train_list, *options.test_list], locate(name, data_dir), data_dir,
                       f"benchmark {name!r}")
    return [*train.files, *(test.files if test else ()), *lists]


def photos_in(root: Path, where: str, notes: list[str], tasks: bool = False, groups: bool = False) -> PhotoFiles:
    """Return the photos under a folder, which has a folder for each class, in the order of ImageFolder.

    Args:
        root: the folder.
        where: the name of the benchmark in errors.
        notes: a list to which notes on skipped files are appended.
        tasks: whether the outer folders are tasks, and the folders in them classes.
        groups: whether the folders in those of the classes are groups.

    Raises:
        DataError: there are no photos, or they are not in such folders.
    """
    depth = 2 if tasks else 1  # levels of folders that name task and class
    files, skipped, shallow, deep = [], list[str](), 0, 0
    for path in sorted(files_below(root)):
        folder_count = len(path.relative_to(root).parts) - 1
        if path.suffix.lower() not in SUFFIXES:
            skipped.append(path.suffix.lower())
        elif folder_count < depth:
            shallow += 1
        else:
            files.append(path)
            deep += folder_count > depth
    layout = "a folder for each task and in it one for each class" if depth > 1 else "a folder for each class"
    if not files:
        problem = ("the photos in it lie outside such folders" if shallow else
                   f"there are no photos in it ({', '.join(sorted(SUFFIXES))})")
        raise DataError(f"{where}: {root} needs {layout}, but {problem}: move the photos into such folders")
    class_folders = [folder for outer in _folders(root) for folder in (_folders(outer) if tasks else [outer])]
    with_photos = {root.joinpath(*path.relative_to(root).parts[:depth]) for path in files}
    if empty := [folder.relative_to(root).as_posix() for folder in class_folders if folder not in with_photos]:
        notes.append(f"no photos in the folders: {readable_name(list_names(empty))}")
    if shallow:
        notes.append(f"photos in {readable_name(str(root))} that do not lie in {layout} were left out: {shallow}")
    if skipped:
        kinds = readable_name(list_names(sorted({suffix or "no suffix" for suffix in skipped})))
        notes.append(f"files in {readable_name(str(root))} that do not have the suffix of a photo were left out: "
                     f"{len(skipped)} ({kinds})")
    relative_parts = [path.relative_to(root).parts for path in files]
    if deep and depth == 1 and not groups:
        inner_names = {folder: {parts[1] for parts in relative_parts if parts[0] == folder and len(parts) > depth + 1}
                       for folder in {parts[0] for parts in relative_parts}}
        first, *others = inner_names.values()
        if deep >= MOST * len(files) and others and all(inner == first for inner in others):
            parts = "; name them train and test if they are the parts of the data"
            raise DataError(f"{where}: all folders in {root} have the same folders ({list_names(sorted(first))}); add "
                            "tasks_from=folders if the outer folders are tasks and the inner ones classes, or "
                            "groups_from=folders if the outer folders are classes and the inner ones groups" +
                            f"; photos outside the inner folders: {len(files) - deep}" * (deep < len(files)) +
                            (parts if any(name.lower().startswith(TRAIN) for name in inner_names) else ""))
        notes.append(f"photos in folders within those of the classes: {deep} (tasks_from=folders takes the outer "
                     "folders for tasks, groups_from=folders the inner ones for groups)")
    names = None
    if groups:
        names = [readable_name("/".join(parts[depth:-1]) or "/".join(parts)) for parts in relative_parts]
        if not deep:
            raise DataError(f"{where}: groups_from = folders needs folders within those of the classes in {root}")
    labels, outer = ([readable_name(parts[place]) for parts in relative_parts] for place in (depth - 1, 0))
    return PhotoFiles(tuple(files), Labeled(labels, outer if depth > 1 else None, names))


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder except hidden ones, sorted by name; none if the folder does not exist."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_lists(names: Sequence[str], root: Path, data_dir: Path, where: str) -> list[Path]:
    """Return the paths of list files, searched in the photos' folder, the working directory and the data folder.

    Raises:
        MissingDataError: a list is in none of these folders.
    """
    lists = []
    for name in names:
        places = [folder / expand_home(name) for folder in (root, Path.cwd(), data_dir)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingDataError(f"{where}: there is no list {' and no '.join(map(str, dict.fromkeys(places)))}")
        lists.append(path)
    return lists


def listed_photos(root: Path, train: Sequence[Path], test: Sequence[Path], where: str, tasks: bool = False
                  ) -> tuple[PhotoFiles, PhotoFiles]:
    """Return the training and test photos of list files, in the order of the lists.

    Leading folders that are not below the root are removed from all paths: `data/imagenet-r/n01/a.jpg` becomes
    `n01/a.jpg` if the root is `imagenet-r`. If labels and names of folders match one to one, the names of the folders
    become the names of the classes. Classes come in the order of their labels.

    Args:
        root: the folder of the photos.
        train: lists of training photos.
        test: lists of test photos; may be empty.
        where: the name of the benchmark in errors.
        tasks: whether the outer folder of each path is its task.

    Raises:
        DataError: a list cannot be read, or names photos that do not exist.
    """
    parts = [[entry for path in lists for entry in read_list(path, where)] for lists in (train, test)]
    entries, names = [*parts[0], *parts[1]], " and ".join(path.name for path in [*train, *test])
    if not parts[0]:
        raise DataError(f"{where}: {names} lists no photos")
    relative_paths = _strip_roots(root, [path for path, _ in entries])
    files = [root / path for path in relative_paths]
    if missing := [path for path, file in zip(relative_paths, files, strict=True) if not file.is_file()]:
        raise MissingDataError(f"{where}: {len(missing)} of {len(files)} photos that {names} lists are not in {root}; "
                               f"the first is {missing[0]}. Add them, or check that the list belongs to this folder")
    if tasks and (shallow := [path for path in relative_paths if "/" not in path or path.startswith(("/", "../"))]):
        raise DataError(f"{where}: outer folders are tasks, and {shallow[0]} in {names} lies in none")
    labels, classes = _match_names([label for _, label in entries], [readable_name(file.parent.name) for file in files])
    outer = [readable_name(path.partition("/")[0]) for path in relative_paths]
    count = len(parts[0])
    train_files, test_files = (PhotoFiles(tuple(files[part]), Labeled(labels[part], outer[part] if tasks else None,
                                                                      classes=classes))
                               for part in (slice(count), slice(count, None)))
    return train_files, test_files


def read_list(path: Path, where: str) -> Entries:
    """Return path and label of each photo that a file lists.

    Raises:
        DataError: the file cannot be read, or is not a list of photos.
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
    """Return the entries of a list file; `changed` and `size` are only part of the cache's key."""
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
    """Return the entries of a YAML file: `data` are paths, `targets` their labels."""
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


def _strip_roots(root: Path, paths: Sequence[str]) -> list[str]:
    """Return all paths without the leading folders that are not below the root; the number is the same for all."""
    parts = [re.split(r"[\\/]+", _relative(root, path)) for path in paths]
    tried = parts[:TRIED]
    cut = next((leading for leading in range(max(map(len, tried)))
                if any((root / "/".join(part[leading:])).is_file() for part in tried if part[leading:])), 0)
    return ["/".join(part[cut:]) for part in parts]


def _relative(root: Path, path: str) -> str:
    """Return a listed path relative to the root if it is written as absolute or with `..` and lies below the root."""
    if not (Path(path).is_absolute() or ".." in path):
        return path.removeprefix("./")
    full = Path(os.path.normpath(root.absolute() / path))
    return full.relative_to(root.absolute()).as_posix() if full.is_relative_to(root.absolute()) else path


def _match_names(labels: list[str], folders: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return folder names as labels, and these names in label order, if both match; else the labels and no names."""
    pairs = set(zip(labels, folders, strict=True))
    name = dict(pairs)
    if len(name) != len(pairs) or len({folder for _, folder in pairs}) != len(pairs):
        return labels, ()
    return [name[label] for label in labels], tuple(name[label] for label in sort_names(name))
