"""Where data sets and cached streams are kept (no torch here, so that the command line can say it)."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_data_dir() -> Path:
    """Return the folder that CLBENCH_DATA names, else `clbench` in the user's cache folder."""
    named = os.environ.get("CLBENCH_DATA")
    if named:
        return Path(named).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        return Path(xdg).expanduser() / "clbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "clbench"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "clbench"
    return Path.home() / ".cache" / "clbench"
