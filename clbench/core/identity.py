"""The identity of code: a hash of its syntax trees, so comments, layout, docstrings and Python versions do not count.

Records (to decide which may be reused), cached streams and checkpoints share this definition. The hash of a package
covers all of its Python files with their paths inside the package, and its other files by content. The hash of a module
outside a package covers its file only.
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
LARGE = 2**24  # bytes; of a larger file, only the size and both ends are hashed
END = 2**20  # bytes hashed at each end
HEX = 16  # hexadecimal digits of a hash
State = tuple[tuple[str, str, int, int], ...]  # for each file: name in the package, path, size, modification time
_ran: dict[str, tuple[ModuleType | None, State]] = {}  # by name: the module if imported, and its files at that time


def hash_of(*names: str) -> str:
    """Return the hash of the code of packages, modules or files as it is on disk now; empty if there is no code.

    Only the parent packages of a module are imported. Files with unchanged size and time are not read again.

    Args:
        names: dotted names, or paths that end in `.py`.

    >>> hash_of("no_such_module_of_mine")
    ''
    """
    return _join_hashes({name: _state(name) for name in names})


def hash_running(*names: str) -> str:
    """Return the hash that the code had when this process first recorded its state (`note`).

    Imported code stays the same in this process, even if its files change later.
    """
    return _join_hashes({name: note(name) for name in names})


def list_edited(*names: str) -> list[str]:
    """Return the names whose code has changed on disk since this process recorded its state (`note`)."""
    return [name for name in names if (old := note(name)) != (new := _state(name)) and _hash(old) != _hash(new)]


def note(name: str) -> State:
    """Return the state of the files of a module, recorded once before the module is imported. Files are not read.

    The state is recorded again as long as the module is not imported, and if the module was replaced (as when the file
    of a plugin is run again).
    """
    module = sys.modules.get(name)
    recorded_module, state = _ran.get(name, (None, ()))
    if name not in _ran or module is None or recorded_module not in (module, None):
        state = _state(name)
    _ran[name] = module, state
    return state


def _join_hashes(states: dict[str, State]) -> str:
    hashes = [(name, _hash(state)) for name, state in sorted(states.items()) if state]
    if len(hashes) < 2:
        return hashes[0][1] if hashes else ""
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:HEX]


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
    """Return the hash of a file with that recorded size and time, or a message if the file has changed since."""
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
    """Return the files of a package or module, each with its path inside the package."""
    if name.endswith(".py") and not name.isidentifier() and Path(name).is_file():
        return [(Path(name).name, Path(name))]
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) if module else _find(name)
    file = getattr(module, "__file__", None) or (spec.origin if spec else None)
    folders = getattr(module, "__path__", None) or (spec.submodule_search_locations if spec else None)
    if folders is not None:
        return list(itertools.chain.from_iterable(_files_inside(Path(folder)) for folder in folders))
    path = Path(file) if file else None
    return [(path.name, path)] if path is not None and path.is_file() else []


def _find(name: str) -> Any:
    """Return the specification of a module, including modules in the current directory; None if there is none.

    Its parent packages are imported. If that raises, the error is ignored, since importing the module raises it again.
    """
    current_folder = os.getcwd()
    sys.path.insert(0, current_folder)  # benchmarks given as `module:function` may be there
    try:
        return importlib.util.find_spec(name)
    except Exception:
        return None
    finally:
        sys.path.remove(current_folder)


def package_of(module: str) -> str:
    """Return the outermost package with an `__init__.py` that contains a module; return the path of a file unchanged.

    For a module in a folder without `__init__.py` (`experiments.streams`), the folder is returned, because the module
    may import its other files.
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


def _files_inside(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield the code and data files of a package, each with its path inside the package.

    A folder without `__init__.py` may be a working directory, so only the Python files directly in it count. Hidden
    files and run folders of clbench never count.
    """
    is_package = (package / "__init__.py").exists()
    for folder, inner, names in os.walk(package):
        inner[:] = sorted(n for n in inner if is_package and n != "__pycache__" and not n.startswith("."))
        if "records" in inner and "report.md" in names:
            inner.clear()
            continue
        for name in sorted(names):
            if name.startswith(".") or name.endswith(DOCUMENTS) or not (is_package or name.endswith(".py")):
                continue
            if not os.path.isfile(os.path.join(folder, name)):  # a link to a file that does not exist
                continue
            path = Path(folder, name)
            yield path.relative_to(package).as_posix(), path


def hash_source(source: bytes) -> str:
    """Return a hash of the syntax tree of Python source, or of its bytes if this interpreter cannot parse it.

    >>> hash_source(b"def f(x):\\n    'Doubles.'\\n    return 2*x") == hash_source(b"def f( x ): return (2*x)  # :-)")
    True
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about invalid escapes concern only the author of the source
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return hashlib.sha256(source).hexdigest()[:HEX]
    return hashlib.sha256("\n".join(_walk(tree)).encode()).hexdigest()[:HEX]


def _walk(tree: ast.AST) -> list[str]:
    """Return a syntax tree as words: the type of each node, and its fields with their names.

    Fields that are None or empty are left out, because later versions of Python have more of them, such as
    `type_params`. Statements without effect are left out too: docstrings, other string statements and `pass`.
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
    """A word of the hash, as opposed to a string constant of the tree."""

    __slots__ = ()


_CLOSED, _ENDED = _Word(">"), _Word("]")


def _does_nothing(statement: object) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str))


def _joined_texts(parts: Any) -> list[Any]:
    """Return the parts of an f-string with adjacent texts joined and empty ones removed, as Python 3.12 splits some."""
    out: list[Any] = []
    for is_text, run in itertools.groupby(parts, lambda part: isinstance(part, ast.Constant)):
        if not is_text:
            out += run
        elif joined_text := "".join(part.value for part in run):
            out.append(ast.Constant(joined_text))
    return out


def _empty_format(name: str, value: object) -> bool:
    """Return whether a field is the empty format of `f"{x:}"`, which some versions of Python drop."""
    return name == "format_spec" and isinstance(value, ast.JoinedStr) and not _joined_texts(value.values)


def packages_of(targets: Iterable[str | Callable[..., Any]]) -> tuple[str, ...]:
    """Return the outermost packages of declared targets, except clbench itself and a script or notebook."""
    return tuple(sorted({entry_points.package_of(target) for target in targets} - {"clbench", "builtins", "__main__"}))
