"""Files: atomic writes, locks, hashes, removal of files that killed processes left, and the folder of data sets."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from clbench.core.errors import ClbenchError, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).resolve().parents[1]  # the folder of clbench itself
ATTEMPTS = 100  # to open a file that others create and remove at the same time
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks
PIECE = 2**20  # bytes that are read at a time
STALE_SECONDS = 3600.0  # a temporary file older than this was left by a killed process
Files = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]  # one file, or several


def as_list(files: Files) -> list[str | os.PathLike[str]]:
    """Return the paths of one file or of several."""
    return [files] if isinstance(files, str | os.PathLike) else list(files)


def make_folder(folder: Path, advice: str) -> None:
    """Create a folder and its parents unless it exists. `advice` says what to do if that is not possible.

    Raises:
        StoreError: the folder cannot be created, or no file can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreError(f"cannot write to the folder {folder}: {error.strerror or error}; {advice}") from error


@contextlib.contextmanager
def explain_unreadable(advice: str, kind: type[ClbenchError] = StoreError) -> Iterator[None]:
    """Raise a one-line error that ends with `advice` if the block cannot read a file or folder.

    Raises:
        ClbenchError: of the class `kind`.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot read {error.filename}: {error.strerror or error}; {advice}") from None


def require_new_folder(folder: Path, advice: str) -> None:
    """Check that a folder does not exist yet, or is empty.

    Raises:
        StoreError: it is a file, has files, or cannot be read; the error ends with `advice`.
    """
    with explain_unreadable(advice):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is not an empty folder; {advice}")


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content; a file with the same size and time as before is not read again.

    Raises:
        OSError: it cannot be read.
    """
    status = os.stat(path)
    return _hash_content(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.cache
def _hash_content(path: str, _mtime_ns: int, _size: int) -> str:
    return read_hash(path)


def read_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, read a piece at a time; OSError if it cannot be read."""
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """Return a SHA-256 of the names and contents of files, in their order; OSError if one cannot be read."""
    return hashlib.sha256("\n".join(f"{path.name} {hash_file(path)}" for path in paths).encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file (text as UTF-8) atomically: after a crash, and for readers, it is either the old or the new one.

    If the content is too large for memory, pass a function that writes it to the open file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if os.name == "posix":  # the directory entry has to reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in the place of `~`; `~` stays if there is no such user."""
    return Path(os.path.expanduser(path))


def default_data_dir() -> Path:
    """Return the folder that CLBENCH_DATA names, else `clbench` in the user's cache folder.

    Raises:
        StoreError: the user has no home folder.
    """
    named = os.environ.get("CLBENCH_DATA")
    if named:
        return expand_home(named)
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        return expand_home(xdg) / "clbench"
    if (home := expand_home("~")) == Path("~"):
        raise StoreError("this user has no home folder for data sets: name a folder with --data or CLBENCH_DATA")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "clbench"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "clbench"
    return home / ".cache" / "clbench"


def sweep(paths: Iterable[Path], age: float = STALE_SECONDS) -> None:
    """Remove files that have not been written to for `age` seconds; files that cannot be removed stay."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - path.stat().st_mtime > age:
                path.unlink()


class NoLocks(Exception):
    """The system or the file system has no file locks."""


class Lock:
    """A lock that this process holds until `release` or until it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Store the path and the descriptor of the file that `lock` has opened and locked."""
        self.path = path
        self.descriptor = descriptor

    def release(self) -> None:
        """Remove the file while it is still locked, then unlock it."""
        with contextlib.suppress(OSError):  # the folder may be gone; closing the file unlocks it
            self.path.unlink()
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # if this was the last lock in it


def lock(path: Path) -> Lock | None:
    """Acquire the lock at a path; return None immediately if another process holds it.

    Raises:
        NoLocks: the system or the file system has no file locks.
        OSError: the file cannot be made.
    """
    if fcntl is None:
        raise NoLocks
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileExistsError, FileNotFoundError):  # another process made or removed the folder just now
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
        os.close(descriptor)  # its holder removed the file while we opened it, so we locked a file that is gone
    return None


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a path inside the block, after waiting until no other process holds it.

    If the file system has no locks, or the file cannot be created, the block runs without a lock. So the work inside
    must be safe if several processes do it at the same time.

    Args:
        path: path of the lock file, which exists only while the lock is held.
    """
    acquired = None
    with contextlib.suppress(NoLocks, OSError):
        while (acquired := lock(path)) is None:
            time.sleep(0.1)
    try:
        yield
    finally:
        if acquired is not None:
            acquired.release()


def distinct_names(paths: Iterable[Path]) -> list[str]:
    """Return the shortest end of each path that no other path has, such as `a/test.jsonl` and `b/test.jsonl`."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    ends = [next((part[-n:] for n in range(1, len(part)) if sum(other[-n:] == part[-n:] for other in parts) == 1), part)
            for part in parts]
    return [Path(*end).as_posix() for end in ends]


def readable_name(name: str) -> str:
    """Return the name of a file or folder with each byte that is not UTF-8 as an escape, so that it can be saved.

    >>> readable_name("ch\\udce8vre")
    'ch\\\\xe8vre'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def as_utf8(text: str) -> str:
    """Return a text with an escape for each character that UTF-8 cannot encode, as in names of files."""
    return text.encode(errors="backslashreplace").decode()


def run_folder_name(file: Path | None, benchmark: str) -> str:
    """Return the default name of an experiment's run folder: that of its file, or else of its benchmark.

    >>> run_folder_name(Path("studies/mine.toml"), "split-mnist"), run_folder_name(None, "images:a/Bäume")
    ('mine', 'images-a-Bäume')
    """
    return file.stem if file else re.sub(r"[^\w.-]+", "-", benchmark)
