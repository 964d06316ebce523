"""Import objects by name: entry points, targets of declarations, and names of a package when they are first used.

This module imports only the standard library and `clbench.core.errors`. So `clbench --help` and `import clbench` are
quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from clbench.core.errors import ClbenchError, PluginError

DISABLE = "CLBENCH_DISABLE_PLUGINS"  # entry points that are not loaded: names or patterns, separated by commas


def read(group: str) -> dict[str, str]:
    """Return the entry points of a group: `module:attribute` by name.

    If several entry points have the same name, the first value in alphabetical order is returned. The result equals
    that of `importlib.metadata.entry_points`, whose import takes 30 ms, a third of the time of `clbench --help`.
    """
    values_by_name: dict[str, list[str]] = {}
    seen = set()
    for place in sys.path:
        for folder in sorted([*Path(place).glob("*.dist-info"), *Path(place).glob("*.egg-info")]):
            distribution = re.sub("[-_.]+", "_", folder.stem.partition("-")[0]).lower()
            if distribution in seen:  # shadowed by an earlier folder of `sys.path`
                continue
            seen.add(distribution)
            section = ""
            with contextlib.suppress(OSError):
                for line in (folder / "entry_points.txt").read_text(encoding="utf-8").splitlines():
                    name, equals, value = map(str.strip, line.partition("="))
                    if name.startswith("["):
                        section = name
                    elif section == f"[{group}]" and equals and not name.startswith("#"):
                        values_by_name.setdefault(name, []).append(value)
    return {name: min(values) for name, values in sorted(values_by_name.items())}


def package_of(value: str | Callable[..., Any]) -> str:
    """Return the outermost package of a target: `module:attribute`, or a class or function itself."""
    return re.split("[.:]", value if isinstance(value, str) else value.__module__, maxsplit=1)[0]


def disabled(name: str, value: str) -> bool:
    """Return whether CLBENCH_DISABLE_PLUGINS names an entry point or its package; clbench itself is never disabled."""
    package = package_of(value)
    patterns = [pattern.strip() for pattern in os.environ.get(DISABLE, "").split(",")]
    return package != "clbench" and any(fnmatchcase(name, pattern) or fnmatchcase(package, pattern)
                                        for pattern in patterns)


def resolve(target: object, kind: str) -> Any:
    """Import and return the object that `module:attribute` names; return a class or function unchanged."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ClbenchError:
        raise
    except (Exception, SystemExit) as error:  # any error of the module becomes one line
        from clbench.core.user_code import format_error, users_place

        package = package_of(target)
        is_missing = isinstance(error, ImportError | AttributeError) and not users_place(error, package)
        reason = str(error) if is_missing else format_error(error, package)
        raise PluginError(f"{kind}: cannot load {target}: {reason}") from error


def builder(info: Any, kind: str) -> Any:
    """Return the function that builds a benchmark or model from its options.

    If the declaration is for a pattern of names (`any_name`), the name is already bound as the first argument.
    """
    build = resolve(info.build, f"{kind} {info.name!r}")
    return partial(build, info.name) if info.any_name else build


def lazy(package: str, homes: Mapping[str, Sequence[str]], old: Mapping[str, str] | None = None,
         ) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: the `__name__` of the package.
        homes: the names that each module provides, by the module's full name.
        old: the module that still provides each old name, by the old name.
    """
    home = dict(old or {})
    for module, names in homes.items():
        home |= dict.fromkeys(names, module)

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(home.keys() - (old or {}).keys())
