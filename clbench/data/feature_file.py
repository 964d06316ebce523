"""Write files of features, which `arrays:FILE` reads; an interrupted command continues from stored parts.

Keys are X_train, y_train, task_train and X_test, y_test, task_test, and group_train if samples have groups. Neither the
parts nor the file are ever held in memory as a whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clbench.core import files
from clbench.core.errors import SpecError, StoreError

Array = npt.NDArray[Any]
JOB = "job.json"  # file in the folder of parts that describes their job
BYTES = 4  # per number
PIECE = 2**24  # bytes that are written at once
NAMES = "class_names"


class Parts:
    """Rows of D float32 numbers, written batch by batch to a folder next to the output file.

    Args:
        out: the output file that the rows will become.
        job: everything that determines the numbers, as JSON values. Rows of another job are removed.
        width: D, the numbers per row.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], width: int) -> None:
        """Set the folder, without creating it."""
        self.folder = out.with_name(f"{out.name}.parts")
        self.job = json.dumps(job, sort_keys=True)
        self.width = width
        self.out = out

    @contextlib.contextmanager
    def lock_folder(self) -> Iterator[bool]:
        """Lock the folder, and yield whether it already has rows of this job; remove it if the block succeeds.

        Raises:
            StoreError: another process has locked the folder, or the folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = files.lock(self.folder / "lock")
        except files.NoLocks:
            lock = None
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error.strerror}") from None
        else:
            if lock is None:
                raise StoreError(f"another clbench embed is writing {self.out}; wait for it, or name another --out")
        try:
            yield self._resume_job()
            self._clear()
        finally:
            if lock is not None:
                lock.release()
        with contextlib.suppress(OSError):  # the lock's release has usually removed it
            self.folder.rmdir()

    def _resume_job(self) -> bool:
        """Remove the rows of any other job, and return whether the folder already belongs to this job."""
        file = self.folder / JOB
        if file.exists() and file.read_text(encoding="utf-8") == self.job:
            return True
        self._clear()
        files.write_atomically(file, self.job)
        return False

    def _clear(self) -> None:
        """Remove all files except the lock."""
        for file in self.folder.iterdir():
            if file.name != "lock":
                file.unlink()

    def path(self, part: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"X_{part}.f32"

    def rows(self, part: str) -> int:
        """Return how many whole rows a part has."""
        path = self.path(part)
        return path.stat().st_size // (BYTES * self.width) if path.exists() else 0

    @contextlib.contextmanager
    def appending(self, part: str, rows: int) -> Iterator[Callable[[Array], None]]:
        """Yield a function that appends float32 rows [n, D] to the first `rows` rows of a part; drop later rows."""
        with open(self.path(part), "ab") as file:
            file.truncate(BYTES * self.width * rows)

            def append(values: Array) -> None:
                file.write(np.ascontiguousarray(values, np.float32).data)
                file.flush()

            yield append

    def array(self, part: str) -> Array:
        """Return the rows of a part, memory-mapped."""
        return np.memmap(self.path(part), np.float32, "r", shape=(self.rows(part), self.width))


def check_suffix(out: Path) -> None:
    """Raise a SpecError if the suffix of the output file is not supported."""
    if out.suffix not in WRITERS:
        raise SpecError(f"--out {out}: features are kept as {' or '.join(WRITERS)}; give it a name that ends so")


def write_features(out: Path, arrays: Mapping[str, Array], facts: Mapping[str, str], class_names: tuple[str, ...] = (),
                   ) -> None:
    """Write arrays as safetensors or npz, depending on the file's suffix; the write is atomic.

    Args:
        out: the output file.
        arrays: the arrays by key.
        facts: descriptions to store with the arrays: as metadata in safetensors, as arrays of text in an npz.
        class_names: the names of labels 0, 1, ... They are stored under the key `class_names`: as a JSON list in
            safetensors, as an array of text in an npz.
    """
    files.write_atomically(out, lambda file: WRITERS[out.suffix](file, arrays, facts, class_names))


def _safetensors(file: BinaryIO, arrays: Mapping[str, Array], facts: Mapping[str, str],
                 class_names: tuple[str, ...]) -> None:
    """Write safetensors, a piece at a time (the library's own writer copies all arrays first)."""
    metadata = {**facts, **({NAMES: json.dumps(class_names)} if class_names else {})}
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))  # so that each is aligned
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": f"{ {'f': 'F', 'i': 'I'}[array.dtype.kind]}{8 * array.itemsize}",
                        "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        flat = array.reshape(-1)
        for begin in range(0, len(flat), PIECE // array.itemsize):
            file.write(np.ascontiguousarray(flat[begin:begin + PIECE // array.itemsize]).data)


def _npz(file: BinaryIO, arrays: Mapping[str, Array], facts: Mapping[str, str], class_names: tuple[str, ...]) -> None:
    """Write an npz, which numpy does a piece at a time."""
    texts = {name: np.array(text) for name, text in facts.items()}
    names = {NAMES: np.array(class_names)} if class_names else {}
    np.savez(file, **arrays, **texts, **names)  # type: ignore[arg-type]


WRITERS = {".safetensors": _safetensors, ".npz": _npz}
