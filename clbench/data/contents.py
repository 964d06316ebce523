"""Hashes of the data files of a benchmark; a file is read again only if its size or its times have changed.

An index next to the cached streams (`streams/files-*.json`) stores the hash and the size of every file, and the times
of the last change of its content and of its status. The second time changes with every write and no program can set
it. It therefore reveals a file that was replaced by another one with the same size and modification time.

Neither time reveals some problems: a failing disk, a clock that was set back, a file system without status times. To
find these, clbench reads all files again (`verify`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clbench.core.entry_points import resolve
from clbench.core.errors import ClbenchError, DataError, list_names, typed_message
from clbench.core.files import read_hash, write_atomically
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.registry import Registry
from clbench.experiment.trial import Resolved

FORMAT = 1
SETTLED_NS = 2 * 10**9  # a file that changed this shortly before it was read may change again with the same time
UNSETTLED = [-1, -1, -1]  # no file has this size and these times, so a file with this entry is always read again
Entries = dict[str, list[Any]]  # by absolute path: size, two times in ns, hash


@dataclass(frozen=True)
class DataFiles:
    """The data files that a benchmark reads.

    Args:
        paths: absolute paths by file name. The name is a path below the data folder, or the path as it was listed.
        place: the innermost folder that contains all listed files; empty for named files below the data folder.
        listed: whether the benchmark lists all its files, so that a missing file is a change. Named files may be
            removed after they have been read.
    """

    paths: Mapping[str, str]
    place: str = ""
    listed: bool = False


@dataclass(frozen=True)
class Contents:
    """Hashes of the contents of a benchmark's files, and notes on how they were read.

    Listed files, of which there may be many, share one hash. It also covers their names, because another name or
    folder may mean another class. `by_name` has the hash of each file.
    """

    hashes: Mapping[str, str]
    notes: tuple[str, ...] = ()
    by_name: Mapping[str, str] = field(default_factory=dict)

    def differ_from(self, others: Mapping[str, str]) -> bool:
        """Return whether a current file is missing from `others` or has another hash there."""
        return any(others.get(name) != digest for name, digest in self.hashes.items())


def data_files(info: BenchmarkInfo, options: Mapping[str, Any], data_dir: Path) -> DataFiles:
    """Return the data files that a benchmark reads: the named files that exist, or the files that it lists.

    Raises:
        DataError: the benchmark cannot list its files.
    """
    if not (isinstance(info.files, str) or callable(info.files)):
        named = ((name, os.path.abspath(data_dir / name)) for name in info.files)
        return DataFiles({name: path for name, path in named if os.path.exists(path)})
    return listed_files(_call_declared(info.files, info, options, data_dir, "its files cannot be listed"))


def listed_files(files: Iterable[Any]) -> DataFiles:
    """Return the `DataFiles` of the paths that a benchmark lists."""
    paths = {name: os.path.abspath(name) for name in map(str, files)}
    return DataFiles(paths, _find_common_folder(paths.values()), listed=True)


def check_data(benchmark: Resolved, data_dir: Path, registry: Registry) -> None:
    """Check a benchmark's data by the function `check` of its declaration, without importing torch.

    Raises:
        DataError: the data are missing or wrong.
    """
    info = registry.benchmark(benchmark.name)
    if info.check:
        _call_declared(info.check, info, benchmark.options, data_dir, "its data cannot be checked")


def _call_declared(function: str | Callable[..., Any], info: BenchmarkInfo, options: Mapping[str, Any], data_dir: Path,
                   problem: str) -> Any:
    """Call a function of the declaration with name, options and data folder; report any error in one line."""
    where = f"benchmark {info.name!r}"
    try:
        return resolve(function, where)(info.name, options, data_dir)
    except ClbenchError:
        raise
    except Exception as error:
        raise DataError(f"{where}: {problem} ({typed_message(error)})") from error


def _find_common_folder(paths: Iterable[str]) -> str:
    """Return the innermost folder that contains all files; empty if there are no files or several drives."""
    try:
        return os.path.commonpath({os.path.dirname(path) for path in paths})
    except ValueError:
        return ""


def index_of(folder: Path, benchmark: str, files: DataFiles) -> Path:
    """Return the path of the index that stores the hashes of a benchmark's files, in the folder of cached streams."""
    name = hashlib.sha256(json.dumps([benchmark, files.place]).encode()).hexdigest()[:16]
    return folder / f"files-{name}.json"


def contents_of(files: DataFiles, index: Path, verify: bool = False) -> Contents:
    """Return the hashes of files, and store them in the index if it can be written.

    Args:
        files: the data files of a benchmark.
        index: the file of hashes; it need not exist.
        verify: whether to read files again although their size and times are the same.

    Raises:
        DataError: a file cannot be read.
    """
    stored_entries = _read(index)
    entries: Entries = {}
    changed = []  # files with another hash but the same size and times
    for path in files.paths.values():
        stored_entry = stored_entries.get(path)
        try:
            state = _state(path)
            if stored_entry is not None and stored_entry[:3] == state and not verify:
                entries[path] = stored_entry
                continue
            start = time.time_ns()
            digest = read_hash(path)
        except OSError as error:
            raise DataError(f"data file {path} cannot be read: {error.strerror or error}") from None
        if stored_entry is not None and stored_entry[:3] == state and stored_entry[3] != digest:
            changed.append(path)
        is_stable = max(state[1:]) < start - SETTLED_NS
        entries[path] = [*(state if is_stable else UNSETTLED), digest]
    notes = []
    if changed:
        notes.append(f"{list_names(changed, 1)}: other content than before, though size and times are the same")
    if any(stored_entries.get(path) != entry for path, entry in entries.items()):
        # Other options of the benchmark read other files of the folder.
        others = {path: entry for path, entry in stored_entries.items() if path not in entries and os.path.exists(path)}
        try:
            index.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(index, json.dumps({"format": FORMAT, "files": {**others, **entries}}))
        except OSError as error:
            notes.append(f"hashes of data files could not be kept in {index.parent} ({error.strerror or error}); every "
                         "run reads the files again")
    by_name = {name: entries[path][3] for name, path in files.paths.items()}
    return Contents(_combine_hashes(by_name) if files.listed else by_name, tuple(notes), by_name)


def _state(path: str) -> list[int]:
    """Return a file's size and the times at which its content and its status changed last."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _combine_hashes(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return one hash of all listed files."""
    return {"files": hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()}


def _read(index: Path) -> Entries:
    """Return the entries of an index; none if it is missing or damaged, because files can be read again."""
    try:
        document = json.loads(index.read_bytes())
        if document["format"] != FORMAT or not all(_is_entry(entry) for entry in document["files"].values()):
            return {}
        entries: Entries = document["files"]
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_entry(entry: Any) -> bool:
    """Return whether an entry of an index has the right form: three numbers and a hash."""
    return isinstance(entry, list) and len(entry) == 4 and isinstance(entry[3], str)
