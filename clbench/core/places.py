"""The place in user code that an exception comes from, for error lines with file and line."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import FrameType

CLBENCH = Path(__file__).parents[1]  # clbench
INSTALLED = ("site-packages", "dist-packages")
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def format_error(error: BaseException, *packages: str) -> str:
    """Return an exception as one line: its type, its message, and in parentheses its `place`, if that is known."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    where = place(error, *packages)
    return ": ".join(filter(None, [type(error).__name__, " ".join(text.split())])) + (f" ({where})" if where else "")


def place(error: BaseException, *packages: str) -> str:
    """Return `file:line in function` of the deepest frame of user code, or else of the deepest frame, or else "".

    User code is all code outside of clbench, Python's library and installed packages. The given packages count as user
    code too, because plugins may be installed. For a file that cannot be compiled it is the line of the syntax error.

    Args:
        error: the exception.
        packages: outermost packages (`clbench_mine`) that count as user code, even if they are installed.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    return users_place(error, *packages) or (_written(*frames[-1]) if frames else "")


def users_place(error: BaseException, *packages: str) -> str:
    """Return `file:line in function` of the deepest frame of user code, or "" if there is no such frame."""
    user_frames = [entry for entry in traceback.walk_tb(error.__traceback__) if _is_users(entry[0], packages)]
    return _written(*user_frames[-1]) if user_frames else ""


def _written(frame: FrameType, line: int) -> str:
    """Return a frame as `file:line in function`."""
    function = frame.f_code.co_name
    return f"{_short(frame.f_code.co_filename)}:{line}" + (f" in {function}" if function.isidentifier() else "")


def _is_users(frame: FrameType, packages: tuple[str, ...]) -> bool:
    """Return whether a frame belongs to user code."""
    file = Path(frame.f_code.co_filename)
    if CLBENCH in file.parents:
        return False
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
        return True
    if not file.is_absolute() or set(INSTALLED) & set(file.parts):
        return False  # what is frozen or made by exec has no path
    return not any(library in file.parents for library in LIBRARIES)


def _short(filename: str) -> str:
    """Return a path relative to the current directory if it is below it, or else unchanged."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return filename
