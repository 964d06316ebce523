"""What code does, as a hash: of syntax trees, so that comments, layout, docstrings and the Python version do not count.

One notion of identity serves records (what may be reused), cached streams and checkpoints. It is that of a package: all
of its Python files by their names in it, and its other files by content. A module that is no package is its file alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from clbench.core import entry_points

NOT_READ = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # fields that follow from others
DOCUMENTS = (".md", ".rst", ".pyi", ".pyc", "~")  # endings of files that do not run and are not data
LARGE = 2**24  # bytes: of a larger file the size and both ends count
END = 2**20  # bytes of an end
HEX = 16  # digits of a hash
State = tuple[tuple[str, str, int, int], ...]  # of files: name in the package, path, size, time
_ran: dict[str, tuple[ModuleType | None, State]] = {}  # by name: the module, if it was imported, and its files then


def hash_of(*names: str) -> str:
    """Return the hash of the code of packages, modules or files as it stands on disk; empty where there is none.

    Nothing is imported but what is above a module in its package. Files of the same size and time are not read again.

    Args:
        names: dotted names, or paths that end in `.py`.

    >>> hash_of("no_such_module_of_mine")
    ''
    """
    return _joined({name: _state(name) for name in names})


def running(*names: str) -> str:
    """Return the hash that code had when this process first noted it: what is imported stays, whatever comes after."""
    return _joined({name: note(name) for name in names})


def edited(*names: str) -> list[str]:
    """Return those of the names whose code has changed on disk since this process noted it."""
    return [name for name in names if (old := note(name)) != (new := _state(name)) and _hash(old) != _hash(new)]


def note(name: str) -> State:
    """Note the state of code's files before it is imported, once; without reading them, so that it takes no time.

    A module that was replaced since (a plugin's file that is read anew) is new code, and so is one that was not
    imported by the last time.
    """
    module = sys.modules.get(name)
    before, state = _ran.get(name, (None, ()))
    if name not in _ran or module is None or before not in (module, None):
        state = _state(name)
    _ran[name] = module, state
    return state


def _joined(states: dict[str, State]) -> str:
    found = [(name, _hash(state)) for name, state in sorted(states.items()) if state]
    if len(found) < 2:
        return found[0][1] if found else ""
    return hashlib.sha256(repr(found).encode()).hexdigest()[:HEX]


def _state(name: str) -> State:
    return tuple((inner, str(path), status.st_size, status.st_mtime_ns) for inner, path in _files(name)
                 if (status := path.stat()))


@functools.lru_cache(maxsize=1024)
def _hash(files: State) -> str:
    total = hashlib.sha256()
    for inner, path, size, time in files:
        total.update(f"{inner}\0{_hash_file(path, size, time)}\0".encode())
    return total.hexdigest()[:HEX]


@functools.lru_cache(maxsize=16384)
def _hash_file(path: str, size: int, time: int) -> str:
    """Return the hash of a file that was noted with that size and time; what it was is not known if it has changed."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (size, time):
            return f"changed since it was noted: {size} {time}"
        if path.endswith(".py"):
            return hash_source(file.read())
        if size <= LARGE:
            return hashlib.sha256(file.read()).hexdigest()
        ends = hashlib.sha256(file.read(END) + str(size).encode())
        file.seek(-END, os.SEEK_END)
        ends.update(file.read())
        return ends.hexdigest()


def _files(name: str) -> list[tuple[str, Path]]:
    """Return the files that are a package's or a module's code, each with its name in the package."""
    if name.endswith(".py") and not name.isidentifier() and Path(name).is_file():
        return [(Path(name).name, Path(name))]
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) if module else _find(name)
    file = getattr(module, "__file__", None) or (spec.origin if spec else None)
    folders = getattr(module, "__path__", None) or (spec.submodule_search_locations if spec else None)
    if folders is not None:
        return [found for folder in folders for found in _inside(Path(folder))]
    path = Path(file) if file else None
    return [(path.name, path)] if path is not None and path.is_file() else []


def _find(name: str) -> Any:
    """Return the specification of a module, also of one in the current directory; None if there is none.

    What is above it in its package is imported; an error of that is left to who imports the module.
    """
    here = os.getcwd()
    sys.path.insert(0, here)  # where benchmarks given as `module:function` are looked for
    try:
        return importlib.util.find_spec(name)
    except Exception:
        return None
    finally:
        sys.path.remove(here)


def package_of(module: str) -> str:
    """Return the outermost package of a module that is one, with an `__init__.py`; a path of a file as it is.

    A module in a plain folder (`experiments.streams`) has its folder: what lies beside it may be imported by it.
    """
    if module.endswith(".py"):
        return module
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = _find(name)
        if spec is None or (spec.origin is None and count < len(parts)):
            continue
        folder = ".".join(parts[:count - 1])
        return folder if folder and spec.submodule_search_locations is None else name
    return module


def _inside(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield a package's files: its code, and data beside it. A folder without `__init__.py` may be a working directory.

    Of such a folder only the Python files that lie in it count. Hidden files do not, nor do run folders of clbench.
    """
    whole = (package / "__init__.py").exists()
    for folder, inner, names in os.walk(package):
        inner[:] = sorted(n for n in inner if whole and n != "__pycache__" and not n.startswith("."))
        if "records" in inner and "report.md" in names:
            inner.clear()
            continue
        for name in sorted(names):
            if name.startswith(".") or name.endswith(DOCUMENTS) or not (whole or name.endswith(".py")):
                continue
            path = Path(folder, name)
            yield path.relative_to(package).as_posix(), path


def hash_source(source: bytes) -> str:
    """Return a hash of what Python source says; that of its bytes if it is no Python that this interpreter reads.

    >>> hash_source(b"def f(x):\\n    'Doubles.'\\n    return 2*x") == hash_source(b"def f( x ): return (2*x)  # :-)")
    True
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that the code's author may mend
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return hashlib.sha256(source).hexdigest()[:HEX]
    return hashlib.sha256("\n".join(_walk(tree)).encode()).hexdigest()[:HEX]


def _walk(tree: ast.AST) -> list[str]:
    """Return a syntax tree as words: the type of each node, and its fields with their names.

    Fields that are None or empty are left out, since later Pythons have more of them, such as `type_params`. So are
    statements that do nothing: texts by themselves, docstrings above all, and `pass`.
    """
    words: list[str] = []
    stack: list[Any] = [tree]  # not recursive: source may be nested deeply
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is _Word:
            words.append(item)
        elif isinstance(item, ast.AST):
            words.append(f"<{kind.__name__}")
            stack.append(_CLOSED)
            for name in reversed(item._fields):
                value = getattr(item, name, None)
                if kind is ast.JoinedStr:
                    value = _joined_texts(value)
                if value is None or value == [] or name in NOT_READ or _empty_format(name, value):
                    continue
                stack.append(value)
                stack.append(_Word(name))
        elif kind is list:
            words.append("[")
            stack.append(_ENDED)
            stack.extend(reversed([part for part in item if not _does_nothing(part)]))
        else:
            words.append(f"{kind.__name__} {item!a}")  # !a: which characters repr shows depends on Python's Unicode
    return words


class _Word(str):
    """A word of the hash, told from the texts of a tree."""

    __slots__ = ()


_CLOSED, _ENDED = _Word(">"), _Word("]")


def _does_nothing(statement: object) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str))


def _joined_texts(parts: Any) -> list[Any]:
    """Return the parts of an f-string with neighbouring texts as one and without empty ones: 3.12 splits some."""
    out: list[Any] = []
    for text, run in itertools.groupby(parts, lambda part: isinstance(part, ast.Constant)):
        if not text:
            out += run
        elif whole := "".join(part.value for part in run):
            out.append(ast.Constant(whole))
    return out


def _empty_format(name: str, value: object) -> bool:
    """Tell whether a field is the format of `f"{x:}"`, which some Pythons take for none."""
    return name == "format_spec" and isinstance(value, ast.JoinedStr) and not _joined_texts(value.values)


def names_of(targets: Iterable[str | Callable[..., Any]]) -> tuple[str, ...]:
    """Return the outermost packages of what declarations name, but for clbench itself and a script or notebook."""
    return tuple(sorted({entry_points.package_of(target) for target in targets} - {"clbench", "builtins", "__main__"}))
