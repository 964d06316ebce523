"""Functions and classes that a user names as `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from clbench.core.errors import DataError, SpecError, guess
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import NoOptions, Options

SUFFIX = ".py"
STRATEGY = "clbench.strategy.base:Strategy"  # its name: what only lists methods does not import it


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


def strategy_info(name: str) -> StrategyInfo:
    """Return the declaration of a strategy class that is named as a function is.

    It is the one that a hook in its module gives; without a hook, its options are those that the class annotates
    (`options: MyOptions`).

    Raises:
        DataError: as `load_function`, or the name stands for something else.
    """
    with importable(name):
        strategy = load_function(name, "method")
    if not isinstance(strategy, type) or not any(f"{c.__module__}:{c.__name__}" == STRATEGY for c in strategy.__mro__):
        raise DataError(f"method {name!r}: {name.rpartition(':')[2]!r} is no subclass of clbench.Strategy")
    hook = getattr(sys.modules[strategy.__module__], "clbench_strategies", None)
    infos: Sequence[StrategyInfo] = hook() if hook else ()
    declared = [info for info in infos if target(info.strategy) == target(strategy)]
    if declared:
        return replace(declared[0], name=name, strategy=strategy, names_code=True)
    options = get_type_hints(strategy).get("options")
    return StrategyInfo(name, strategy, next(iter((strategy.__doc__ or "").strip().splitlines()), ""),
                        options if isinstance(options, type) and issubclass(options, Options) else NoOptions,
                        names_code=True)


def target(thing: str | Callable[..., Any]) -> str:
    """Return `module:attribute` of a class or function, or of what is given as such a text."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


def name_of(thing: Callable[..., Any]) -> str:
    """Return the name by which every process finds a function or class, as `load_function` takes it.

    Raises:
        SpecError: it has none, and why.
    """
    module, attribute = thing.__module__, getattr(thing, "__qualname__", "")
    found = sys.modules.get(module)
    if not attribute or getattr(found, attribute, None) is not thing:
        raise SpecError(f"{attribute or type(thing).__name__} is not at the top level of a module; define it there")
    file = getattr(found, "__file__", None)
    if module != "__main__":
        return f"{_written(Path(file)) if file and _beside(module, file) else module}:{attribute}"
    if not file or not file.endswith(SUFFIX) or not Path(file).is_file():
        raise SpecError(f"{attribute} is defined in this session; put it into a file (a notebook makes one by "
                        "%%writefile my_file.py) and import it from there")
    if not _guarded(file):
        raise SpecError(f"{_written(Path(file))}, where {attribute} is defined, would run all over again when it is "
                        "imported; put the call of clbench under `if __name__ == \"__main__\":`")
    spec = getattr(found, "__spec__", None)  # of `python -m package.module`
    return f"{spec.name if spec else _written(Path(file))}:{attribute}"


def _written(file: Path) -> str:
    """Return a file's path, from the current directory on if it is below that."""
    here, path = Path.cwd(), Path(os.path.abspath(file))
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _beside(module: str, file: str) -> bool:
    """Tell whether a module is a file that another process does not find by its name: one beside a script, say."""
    folder = os.path.dirname(os.path.abspath(file))
    roots = [os.getcwd(), *sysconfig.get_paths().values(), *site.getsitepackages(),
             *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.path.basename(file) == module + SUFFIX and folder not in map(os.path.abspath, roots)


def _guarded(file: str) -> bool:
    """Tell whether all that the script is executing now stands under `if __name__ == "__main__":`."""
    frame, lines = sys._getframe(), []
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__" and (
                os.path.abspath(frame.f_code.co_filename) == os.path.abspath(file)):
            lines.append(frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    guards = [part for part in ast.parse(Path(file).read_bytes()).body
              if isinstance(part, ast.If) and "__name__" in ast.dump(part.test) and "__main__" in ast.dump(part.test)]
    return bool(lines) and all(any(g.lineno <= line <= (g.end_lineno or 0) for g in guards) for line in lines)


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
