"""File locks that die with the process that holds them, however it dies; none where the system has none."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ATTEMPTS = 100  # at a file that others make and remove at the same time
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without them


class NoLocks(Exception):
    """The system or the file system has no file locks."""


class Lock:
    """A lock that this process holds until `release`, or its end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Hold what `lock` took."""
        self.path = path
        self.descriptor = descriptor

    def release(self) -> None:
        """Remove the file while it is still locked, then let go."""
        with contextlib.suppress(OSError):  # the folder may be gone; closing is what frees the lock
            self.path.unlink()
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # if it was the last


def lock(path: Path) -> Lock | None:
    """Take the lock of that path, or return None at once where another holds it.

    Raises:
        NoLocks: there is no such thing here.
        OSError: the file cannot be made.
    """
    if fcntl is None:
        raise NoLocks
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileExistsError, FileNotFoundError):  # another made or removed the folder just now
            if attempt == ATTEMPTS - 1:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                raise NoLocks from None
            raise
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return Lock(path, descriptor)
        os.close(descriptor)  # its holder removed the file while we opened it: what we locked is no longer there
    return None
