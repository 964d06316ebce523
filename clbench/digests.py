"""Hashes of what lies on disk: the content of a file, the source code of a package."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content; a file whose size and time are as they were is not read again.

    Raises:
        OSError: it cannot be read.
    """
    status = os.stat(path)
    return _of_content(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.cache
def _of_content(path: str, _mtime_ns: int, _size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@functools.cache
def of_code(module: ModuleType) -> str:
    """Return a hash of all source files of a package, or of a module that is a file; empty where there are none.

    They are read once: a process goes on with the code that it has imported, whatever becomes of the files.
    """
    digest, found = hashlib.sha256(), False
    for name, path in _files(module):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
        found = True
    return digest.hexdigest() if found else ""


def _files(module: ModuleType) -> Iterator[tuple[str, Path]]:
    """Yield the source files of a module, each with its name in the package."""
    file = getattr(module, "__file__", None)
    if hasattr(module, "__path__"):
        for folder in module.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                yield path.relative_to(folder).as_posix(), path
    elif file is not None:
        yield Path(file).name, Path(file)
