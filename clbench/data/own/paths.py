"""Find the files below a folder of the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from clbench.core.errors import DataError
from clbench.core.files import readable_name


def files_below(root: Path, outer: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files under a folder at any depth, except hidden ones; links are followed, as in ImageFolder.

    Args:
        root: the folder.
        outer: the folders that contain it, without links.

    Raises:
        DataError: a link leads to a folder that contains it, so that all files would be read many times.
    """
    outer |= {root.resolve()}
    for path in root.iterdir():
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            if path.is_symlink() and path.resolve() in outer:
                raise DataError(f"{path} is a link to a folder that contains it; remove the link")
            yield from files_below(path, outer)
        else:
            yield path


def data_files(place: Path, suffixes: Iterable[str], deep: bool = True) -> list[Path]:
    """Return a file itself, or the files with one of the suffixes that are not hidden, sorted.

    Args:
        place: a file or a folder.
        suffixes: the suffixes in lower case.
        deep: whether files at any depth are returned (see `files_below`), or only those in the folder itself.
    """
    if place.is_file():
        return [place]
    return sorted(path for path in (files_below(place) if deep else place.iterdir())
                  if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file())


def files_by_stem(folder: Path, suffixes: Iterable[str], where: str) -> dict[str, Path]:
    """Return the files in a folder with one of the suffixes, sorted, by their names without suffix.

    Raises:
        DataError: two files differ in their suffixes only.
    """
    files: dict[str, Path] = {}
    for path in data_files(folder, suffixes, deep=False):
        name = readable_name(path.stem)
        if other := files.get(name):
            raise DataError(f"{where}: {folder} has both {readable_name(other.name)} and {readable_name(path.name)}; "
                            "remove or rename one of them")
        files[name] = path
    return files
