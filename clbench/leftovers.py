"""Temporary files that killed processes have left behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

STALE_SECONDS = 3600.0  # a temporary file older than this was left by a killed process, not by one that is writing


def sweep(paths: Iterable[Path], age: float = STALE_SECONDS) -> None:
    """Remove those of the files that have not been written for `age` seconds; what cannot be removed stays."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process may be quicker
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
