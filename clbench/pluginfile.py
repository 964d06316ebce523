"""A plugin that is one Python file, used without packaging it (`--plugin FILE`)."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from clbench.errors import PluginError


def load(path: Path) -> tuple[ModuleType, str]:
    """Run a plugin's file as a module named after it; return the module and the SHA-256 of what was run.

    A file that was loaded before is run anew: it may have changed. Its folder is not searched for imports, so the hash
    covers all of the plugin.

    Raises:
        PluginError: it cannot be read, raises, or has a name that does not do for a module or is another module's.
    """
    name, file = path.stem, path.absolute()
    try:
        code = file.read_bytes()
    except OSError as error:
        raise PluginError(f"cannot read the plugin {path}: {error.strerror or error}") from None
    if not name.isidentifier():
        raise PluginError(f"plugin {path}: {name!r} does not do as a module's name; letters, digits and _ do")
    taken = _home(name)
    if taken and not (Path(taken).exists() and file.samefile(taken)):
        raise PluginError(f"plugin {path}: {name!r} is the name of another module ({taken}); rename the file")
    loader = SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # "name:attribute" in its declarations leads here
    try:
        # Not inherited: `from __future__ import annotations` above, which would make text of the plugin's annotations.
        exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # whatever somebody else's file raises becomes one line
        del sys.modules[name]
        raise PluginError(f"plugin {path}: {_where(error, file)}") from error
    return module, hashlib.sha256(code).hexdigest()


def _home(name: str) -> str | None:
    """Return where the module of that name comes from, None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return name
    return (spec.origin or name) if spec else None


def _where(error: BaseException, file: Path) -> str:
    """Return an error as one line, with the file's line that led to it."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")
