"""Download the files of a data set, check them and unpack them; runs never call these functions."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from clbench.core.data_sets import MISSING, PRESENT, DataSet, Download, Needed
from clbench.core.errors import DataError
from clbench.core.files import NoLocks, lock, make_folder, read_hash

PIECE = 1 << 20  # bytes that are read at a time
TIMEOUT = 60.0  # seconds without an answer until a download is given up
PARTIAL = ".part"  # suffix of a download that is not complete

Progress = Callable[[int, int], object]  # receives the bytes so far and in total; a total of 0 is unknown


def fetch(download: Download, data: DataSet, data_dir: Path, progress: Progress) -> None:
    """Download a file into the data folder, check its SHA-256, and unpack an archive.

    A download that was interrupted is continued. An archive is removed after everything was unpacked.

    Raises:
        DataError: there is no connection, the file has another hash, or the archive cannot be unpacked.
        StoreError: the data folder cannot be written.
    """
    target = (data_dir if download.is_archive else data_dir / data.folder) / download.name
    make_folder(target.parent, "choose another data folder with --data")
    download_lock = None
    with contextlib.suppress(NoLocks, OSError):
        download_lock = lock(target.with_name(target.name + ".lock"))
        if download_lock is None:
            raise DataError(f"another process is downloading {target}; wait until it has finished")
    try:
        _fetch(download, data, data_dir, target, progress)
    finally:
        if download_lock is not None:
            download_lock.release()


def _fetch(download: Download, data: DataSet, data_dir: Path, target: Path, progress: Progress) -> None:
    try:
        if not (target.is_file() and read_hash(target) == download.sha256):
            partial = target.with_name(target.name + PARTIAL)
            _download(download, partial, progress)
            if (digest := read_hash(partial)) != download.sha256:
                partial.unlink()
                raise DataError(f"{download.url} has the SHA-256 {digest} and should have {download.sha256}, so it was "
                                "removed. Try again; if the published file has changed, clbench does not know it")
            partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{download.url} could not be downloaded to {target} ({reason}); clbench continues a partial "
                        "download when you try again") from error
    if download.is_archive:
        unpack(target, data.folder, data_dir)
        target.unlink()


def find_pending(downloads: Sequence[Download], needed: Sequence[Needed], root: Path, data_dir: Path) -> list[Download]:
    """Return the downloads that provide missing files, and the archives that were not unpacked completely.

    A folder with wrong content is not downloaded again, because the user may have changed it: `clbench data` says that
    it must be removed first. A file with another hash is.

    Args:
        downloads: the downloads of a benchmark.
        needed: the files and folders that the benchmark reads. Those that no other download provides, and that
            the user does not get by hand, are in its archive.
        root: the folder of the data set.
        data_dir: the data folder, which holds archives until they are unpacked.
    """
    paths_to_fetch = {item.path for item in needed if not item.by_hand and
                      ((status := item.check(root)[0]) == MISSING or (item.sha256 and status != PRESENT))}
    archived_paths = paths_to_fetch - {download.name for download in downloads if not download.is_archive}
    return [download for download in downloads if
            (bool(archived_paths) or any((data_dir / (download.name + end)).exists() for end in ("", PARTIAL))
             if download.is_archive else download.name in paths_to_fetch)]


def unpack(archive: Path, folder: str, into: Path) -> None:
    """Unpack one folder of an archive; a member that would be written elsewhere is an error (tarfile's filter `data`).

    Raises:
        DataError: the archive cannot be unpacked safely, or has no such folder.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError(f"this Python cannot unpack archives safely; unpack {archive} by tar in {into}, or update "
                        "Python to 3.10.12 or later")
    temporary = into / f"{folder}{PARTIAL}"  # so that all files in the final folder are complete
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.name.removeprefix("./").partition("/")[0] == folder:
                    opened.extract(member, temporary, filter="data")
        if not (temporary / folder).is_dir():
            raise DataError(f"{archive} has no folder {folder}")
        for path in sorted((temporary / folder).iterdir()):
            _replace(path, into / folder / path.name)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked in {into} ({error}); make space or remove the archive, and try "
                        "again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(path: Path, target: Path) -> None:
    """Move a file or folder to a target; an existing target is removed first."""
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)


def _download(download: Download, partial: Path, progress: Progress) -> None:
    """Download a file; continue an earlier attempt if the server supports it."""
    begin = partial.stat().st_size if partial.exists() else 0
    if download.size and begin >= download.size:
        return
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if begin and error.code == 416:  # nothing is left to download: the file is complete, or wrong
            return
        error.close()
        raise OSError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error
    with contextlib.closing(response):
        continued = response.status == 206
        total = int(response.headers.get("Content-Length") or 0) + (begin if continued else 0)
        received = begin if continued else 0
        with partial.open("ab" if continued else "wb") as file:
            while piece := response.read(PIECE):
                file.write(piece)
                received += len(piece)
                progress(received, total)
    if received < total:
        raise OSError(f"the connection ended after {received:,} of {total:,} bytes")
