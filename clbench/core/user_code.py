"""Functions and classes that a user names as `package.module:function` or `path/to/file.py:function`.

`place` and `users_place` return the file and line of user code that an exception comes from.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any, get_type_hints

from clbench.core.errors import ClbenchError, DataError, SpecError, guess
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import NoOptions, Options

CLBENCH = Path(__file__).parents[1]  # clbench
INSTALLED = ("site-packages", "dist-packages")
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def format_error(error: BaseException, *packages: str) -> str:
    """Return an exception as one line: its type, its message, and in parentheses its `place`, if that is known.

    A `ClbenchError` is explained by its message, so its type is left out, and its place if that is in clbench.
    """
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    if isinstance(error, ClbenchError):
        location = users_place(error, *packages)
    else:
        location, text = place(error, *packages), ": ".join(filter(None, [type(error).__name__, text]))
    return f"{text} ({location})" if location else text


def place(error: BaseException, *packages: str) -> str:
    """Return `file:line in function` of the deepest frame of user code, or else of the deepest frame, or else "".

    User code is all code outside of clbench, Python's library and installed packages. The given packages count as user
    code too, because plugins may be installed. For a file that cannot be compiled it is the line of the syntax error.

    Args:
        error: the exception.
        packages: outermost packages (`clbench_mine`) that count as user code, even if they are installed.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shorten_path(error.filename)}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    return users_place(error, *packages) or (_file_and_line(*frames[-1]) if frames else "")


def users_place(error: BaseException, *packages: str) -> str:
    """Return `file:line in function` of the deepest frame of user code, or "" if there is no such frame."""
    user_frames = [entry for entry in traceback.walk_tb(error.__traceback__) if _is_users(entry[0], packages)]
    return _file_and_line(*user_frames[-1]) if user_frames else ""


def place_of_function(function: Callable[..., Any]) -> str:
    """Return `file:line` of the definition of a function, or "" if it is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{_shorten_path(code.co_filename)}:{code.co_firstlineno}" if code else ""


def _file_and_line(frame: FrameType, line: int) -> str:
    """Return a frame as `file:line in function`."""
    function = frame.f_code.co_name
    return f"{_shorten_path(frame.f_code.co_filename)}:{line}" + (f" in {function}" if function.isidentifier() else "")


def _is_users(frame: FrameType, packages: tuple[str, ...]) -> bool:
    """Return whether a frame belongs to user code."""
    file = Path(frame.f_code.co_filename)
    if CLBENCH in file.parents:
        return False
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
        return True
    if not file.is_absolute() or set(INSTALLED) & set(file.parts):
        return False  # frozen code, and code run by `exec`, has no path
    return not any(library in file.parents for library in LIBRARIES)


def _shorten_path(filename: str) -> str:
    """Return a path relative to the current directory if it is below it, or else unchanged."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return filename


SUFFIX = ".py"
STRATEGY = "clbench.strategy.base:Strategy"  # a name, so that listing methods does not import it


def file_of(name: str) -> Path | None:
    """Return the file that `path/to/file.py:function` names, None for `package.module:function`."""
    path = name.rpartition(":")[0]
    return Path(path) if path.endswith(SUFFIX) else None


@contextmanager
def extend_import_path(name: str) -> Iterator[None]:
    """Put a folder on the import path inside the block: that of a named file, or else the current directory.

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
    """Return the function or class that a name refers to; a file runs again at each call, a module is imported once.

    Args:
        name: `package.module:function` or `path/to/file.py:function`; a relative path begins in the current directory.
        kind: what the function returns, for error messages: "benchmark".

    Raises:
        DataError: the module, file or function does not exist, or it is not a function.
        Exception: an error of the module or the file.
    """
    source, _, attribute = name.rpartition(":")
    file = file_of(name)
    module = _module(source, name, kind) if file is None else _run(file, name, kind)
    description = f"module {source!r}" if file is None else source
    if not hasattr(module, attribute):
        callable_names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{kind} {name!r}: {description} has no {attribute!r}{guess(attribute, callable_names)}")
    function = getattr(module, attribute)
    if not callable(function):
        raise DataError(f"{kind} {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def strategy_info(name: str) -> StrategyInfo:
    """Return the declaration of a strategy class by `package.module:Class` or `path/to/file.py:Class`.

    If a hook in the class's module declares it, that declaration is used. Otherwise the options class is taken from the
    annotation in the class (`options: MyOptions`).

    Raises:
        DataError: as `load_function`, or the name does not refer to a strategy class.
    """
    with extend_import_path(name):
        strategy = load_function(name, "method")
    if not isinstance(strategy, type) or not any(f"{c.__module__}:{c.__name__}" == STRATEGY for c in strategy.__mro__):
        raise DataError(f"method {name!r}: {name.rpartition(':')[2]!r} is no subclass of clbench.Strategy")
    hook = getattr(sys.modules[strategy.__module__], "clbench_strategies", None)
    infos: Sequence[StrategyInfo] = hook() if hook else ()
    declared = [info for info in infos if target(info.strategy) == target(strategy)]
    if declared:
        return replace(declared[0], name=name, strategy=strategy, names_code=True)
    owner = next(cls for cls in strategy.__mro__ if "options" in inspect.get_annotations(cls))
    # Only this annotation is evaluated. Others may use names that are imported for type checkers only.
    annotation = SimpleNamespace(__annotations__={"options": inspect.get_annotations(owner)["options"]})
    options = get_type_hints(annotation, vars(sys.modules[owner.__module__]), dict(vars(owner)))["options"]
    return StrategyInfo(name, strategy, next(iter((strategy.__doc__ or "").strip().splitlines()), ""),
                        options if isinstance(options, type) and issubclass(options, Options) else NoOptions,
                        names_code=True)


def target(thing: str | Callable[..., Any]) -> str:
    """Return `module:attribute` of a class or function; return a text unchanged."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


def name_of(thing: Callable[..., Any]) -> str:
    """Return a name for `load_function` by which every process finds a function or class.

    Raises:
        SpecError: there is no such name; the message says why.
    """
    module, attribute = thing.__module__, getattr(thing, "__qualname__", "")
    loaded_module = sys.modules.get(module)
    if not attribute or getattr(loaded_module, attribute, None) is not thing:
        raise SpecError(f"{attribute or type(thing).__name__} is not at the top level of a module; define it there")
    file = getattr(loaded_module, "__file__", None)
    if module != "__main__":
        return f"{_relative(Path(file)) if file and _needs_path(module, file) else module}:{attribute}"
    if not file or not file.endswith(SUFFIX) or not Path(file).is_file():
        raise SpecError(f"{attribute} is defined in this session; put it into a file (a notebook makes one by "
                        "%%writefile my_file.py) and import it from there")
    if not _is_guarded(file):
        raise SpecError(f"{_relative(Path(file))}, where {attribute} is defined, would run all over again when it is "
                        "imported; put the call of clbench under `if __name__ == \"__main__\":`")
    spec = getattr(loaded_module, "__spec__", None)  # exists after `python -m package.module`
    return f"{spec.name if spec else _relative(Path(file))}:{attribute}"


def _relative(file: Path) -> str:
    """Return a file's path, relative to the current directory if it is below it."""
    current_folder, path = Path.cwd(), Path(os.path.abspath(file))
    return (path.relative_to(current_folder) if path.is_relative_to(current_folder) else path).as_posix()


def _needs_path(module: str, file: str) -> bool:
    """Return whether other processes cannot import a module by its name, such as a file in the folder of a script."""
    folder = os.path.dirname(os.path.abspath(file))
    roots = [os.getcwd(), *sysconfig.get_paths().values(), *site.getsitepackages(),
             *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.path.basename(file) == module + SUFFIX and folder not in map(os.path.abspath, roots)


def _is_guarded(file: str) -> bool:
    """Return whether the lines that a script executes now are all under `if __name__ == "__main__":`."""
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
    """Raise a `DataError` if `path/to/file.py:function` names a benchmark's file that does not exist."""
    if file := file_of(name):
        _require(file, name, "benchmark")


def _require(path: Path, name: str, kind: str) -> None:
    """Raise a `DataError` with similar names if a file does not exist."""
    file = path.absolute()
    if not file.exists():
        candidates = [str(path.with_name(sibling.name)) for sibling in file.parent.glob(f"*{SUFFIX}")]
        raise DataError(f"{kind} {name!r}: no file {file}{guess(str(path), candidates)}")


def _module(module: str, name: str, kind: str) -> ModuleType:
    """Import and return a module; if it does not exist, the error suggests a file of that name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not (module == error.name or module.startswith(error.name + ".")):
            raise
        files = [path for path in (module + SUFFIX, module.replace(".", "/") + SUFFIX) if Path(path).is_file()]
        hint = f"; for the file give {files[0]}:{name.rpartition(':')[2]}" if files else ""
        raise DataError(f"{kind} {name!r}: there is no module {error.name!r} in {os.getcwd()}, and none is installed"
                        f"{hint}") from error


def _run(path: Path, name: str, kind: str) -> ModuleType:
    """Return a module made by running a file."""
    file = path.absolute()
    _require(path, name, kind)
    try:
        code = file.read_bytes()
    except OSError as error:
        raise DataError(f"{kind} {name!r}: cannot read {file}: {error.strerror or error}") from None
    # The stem alone may be the name of another module (data.py, test.py), or not be valid as a name of a module.
    module_name = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    return run_as_module(module_name, file, code)


def run_as_module(name: str, file: Path, code: bytes) -> ModuleType:
    """Run a file's code as a module of that name and return the module; an earlier module of that name is replaced.

    Args:
        name: the name under which the module can be imported afterwards, unless the code raises.
        file: the absolute path of the file.
        code: the content of the file.

    Raises:
        BaseException: an error of the code.
    """
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(file)))
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # declarations ("name:attribute"), data classes and pickles use this entry
    try:
        # dont_inherit: else this file's `from __future__ import annotations` would hold for the user's too.
        exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
