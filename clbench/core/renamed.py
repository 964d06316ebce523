"""Old names of members that plugins call or override: they work until clbench 0.3, with a DeprecationWarning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

REMOVED_IN = "0.3"
# Modules whose frames `warn` skips.
BETWEEN = {__name__, "abc", "clbench.core.entry_points", "clbench.core.hookspecs", "importlib._bootstrap"}
Class = TypeVar("Class", bound=type)


def warn(old: str, new: str) -> None:
    """Issue a DeprecationWarning at the line that uses an old name, once for each such line."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in BETWEEN:
        frame = frame.f_back
    warnings.warn_explicit(f"{old} is {new} now; the old name is to be removed in clbench {REMOVED_IN}",
                           DeprecationWarning, frame.f_code.co_filename, frame.f_lineno,
                           frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {}))


class Renamed:
    """A class's member under its old name, as in `frozen = Renamed("frozen_modules")`."""

    def __init__(self, new: str) -> None:
        """Store the new name."""
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        """Store the attribute's name as the old name."""
        self.old = name

    def __get__(self, instance: object | None, owner: type) -> Any:
        """Return the member with the new name.

        A class that overrides the old name reaches this method by `super()`. The lookup then starts after that class.
        """
        warn(f"{owner.__name__}.{self.old}", self.new)
        target: Any = owner if instance is None else instance
        overriding = [cls for cls in owner.__mro__ if vars(cls).get(self.old, self) is not self]
        return getattr(super(overriding[-1], target) if overriding else target, self.new)


def list_new_names(cls: type) -> dict[str, str]:
    """Return the new name of each member that has an old one."""
    new_names: dict[str, str] = {}
    for base in cls.__mro__:
        new_names |= {old: member.new for old, member in vars(base).items() if isinstance(member, Renamed)}
    return new_names


def old_classes(module: Mapping[str, Any], names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which gives its classes by their old names.

    Args:
        module: its `globals()`.
        names: the new name of each class, by the old one.
    """
    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        warn(f"{module['__name__']}.{name}", names[name])
        return module[names[name]]

    return get


class OldNames:
    """Base of classes with `Renamed` members. A subclass that overrides an old name also overrides the new name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Copy what a class defines under an old name to the new name."""
        super().__init_subclass__(**kwargs)
        for old, new in list_new_names(cls).items():
            for members in map(vars, cls.__mro__):
                if new in members:
                    break
                if old in members and not isinstance(members[old], Renamed):
                    warn(f"{cls.__name__}.{old}", new)
                    setattr(cls, new, members[old])
                    break


def old_keywords(cls: Class) -> Class:
    """Make the constructor of a class accept the old names of its `Renamed` members."""
    construct, names = cls.__init__, list_new_names(cls)  # type: ignore[misc]

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for old in names.keys() & kwargs.keys():
            warn(f"{cls.__name__}({old}=...)", names[old])
            kwargs[names[old]] = kwargs.pop(old)
        construct(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    return cls
