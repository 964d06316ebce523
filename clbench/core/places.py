"""Where in a plugin's own code an exception comes from, for error lines that name file and line."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import FrameType

OURS = Path(__file__).parents[1]  # clbench
INSTALLED = ("site-packages", "dist-packages")
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def said(error: BaseException, *own: str) -> str:
    """Return an exception as one line: its type, its message, and `place` in brackets where that is known."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    where = place(error, *own)
    return ": ".join(filter(None, [type(error).__name__, " ".join(text.split())])) + (f" ({where})" if where else "")


def place(error: BaseException, *own: str) -> str:
    """Return `file:line in function` of the deepest frame of a user's code, else of the deepest frame, else "".

    A user's code is what is neither clbench, nor Python's library, nor installed, but for the packages named: those of
    plugins may be installed. A file that cannot be compiled has no frame but its own line.

    Args:
        error: as it was caught.
        own: outermost packages (`clbench_mine`) that count as a user's code wherever they are.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    return users_place(error, *own) or (_written(*frames[-1]) if frames else "")


def users_place(error: BaseException, *own: str) -> str:
    """Return what `place` does, "" where no frame is of a user's code."""
    theirs = [found for found in traceback.walk_tb(error.__traceback__) if _is_users(found[0], own)]
    return _written(*theirs[-1]) if theirs else ""


def _written(frame: FrameType, line: int) -> str:
    """Return a frame as `file:line in function`."""
    function = frame.f_code.co_name
    return f"{_short(frame.f_code.co_filename)}:{line}" + (f" in {function}" if function.isidentifier() else "")


def _is_users(frame: FrameType, own: tuple[str, ...]) -> bool:
    """Tell whether a frame is of a user's code."""
    file = Path(frame.f_code.co_filename)
    if OURS in file.parents:
        return False
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in own:
        return True
    if not file.is_absolute() or set(INSTALLED) & set(file.parts):
        return False  # what is frozen or made by exec has no path
    return not any(library in file.parents for library in LIBRARIES)


def _short(filename: str) -> str:
    """Return a path relative to the current directory where it lies below, else as it is."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return filename
