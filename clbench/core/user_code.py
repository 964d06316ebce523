"""Functions that a user names as `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from clbench.core.errors import DataError, guess

SUFFIX = ".py"


def file_of(name: str) -> Path | None:
    """Return the file that `path/to/file.py:function` names, None for `package.module:function`."""
    path = name.rpartition(":")[0]
    return Path(path) if path.endswith(SUFFIX) else None


@contextmanager
def importable(name: str) -> Iterator[None]:
    """Let modules of the current directory be imported inside, as `python -m` does; beside a file, those of its folder.

    Args:
        name: `package.module:function` or `path/to/file.py:function`, or any other name.
    """
    file = file_of(name)
    added = [os.getcwd() if file is None else str(file.absolute().parent)]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def load_function(name: str, kind: str) -> Callable[[], Any]:
    """Return what a name stands for. A file is run anew, under a module's name of its own; a module is imported once.

    Args:
        name: `package.module:function` or `path/to/file.py:function`; a relative path begins in the current directory.
        kind: of thing that it makes, for errors: "benchmark".

    Raises:
        DataError: there is no such module, file or function, or it is no function.
        Exception: whatever the module or the file raises.
    """
    where, _, attribute = name.rpartition(":")
    file = file_of(name)
    found = _module(where, name, kind) if file is None else _run(file, name, kind)
    shown = f"module {where!r}" if file is None else where
    if not hasattr(found, attribute):
        known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{kind} {name!r}: {shown} has no {attribute!r}{guess(attribute, known)}")
    function = getattr(found, attribute)
    if not callable(function):
        raise DataError(f"{kind} {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def check_file(name: str, options: Mapping[str, Any], data_dir: Path) -> None:
    """Raise a `DataError` if `path/to/file.py:function` names a benchmark's file that is not there."""
    if file := file_of(name):
        _require(file, name, "benchmark")


def _require(path: Path, name: str, kind: str) -> None:
    """Raise a `DataError` if a file is not there, with one that may be meant."""
    file = path.absolute()
    if not file.exists():
        near = [str(path.with_name(other.name)) for other in file.parent.glob(f"*{SUFFIX}")]
        raise DataError(f"{kind} {name!r}: no file {file}{guess(str(path), near)}")


def _module(module: str, name: str, kind: str) -> ModuleType:
    """Return a module, imported; where there is none, say whether a file of that name is meant."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not (module == error.name or module.startswith(error.name + ".")):
            raise
        files = [path for path in (module + SUFFIX, module.replace(".", "/") + SUFFIX) if Path(path).is_file()]
        hint = f"; for the file give {files[0]}:{name.rpartition(':')[2]}" if files else ""
        raise DataError(f"{kind} {name!r}: no module {error.name!r} here or installed (looked in {os.getcwd()} too)"
                        f"{hint}") from error


def _run(path: Path, name: str, kind: str) -> ModuleType:
    """Return a module made by running a file."""
    file = path.absolute()
    _require(path, name, kind)
    try:
        code = file.read_bytes()
    except OSError as error:
        raise DataError(f"{kind} {name!r}: cannot read {file}: {error.strerror or error}") from None
    # The stem alone may be the name of another module (data.py, test.py), or none that does for a module.
    own = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    return run_as_module(own, file, code)


def run_as_module(name: str, file: Path, code: bytes) -> ModuleType:
    """Return a module of that name, made by running a file's code; one that was made before is replaced.

    Args:
        name: under which it can be imported afterwards; not if the code raises.
        file: absolute.
        code: its content.

    Raises:
        BaseException: whatever the code raises.
    """
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(file)))
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # "name:attribute" in declarations leads here, and data classes and pickles look here
    try:
        # dont_inherit: else this file's `from __future__ import annotations` would hold for the user's too.
        exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
