"""Summaries of run folders, and removal of unused files from them and from the cache of streams."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.core.errors import ClbenchError, StoreError
from clbench.core.files import NoLocks, lock
from clbench.core.registry import Registry
from clbench.results.records import Record
from clbench.results.store import ITEMS, Store

FINAL_STATUSES = ("done", "diverged")  # runs do not replace these records, so their checkpoints are unused


@dataclass(frozen=True)
class RunFacts:
    """A summary of a run folder."""

    folder: Path
    settings: tuple[str, ...]  # benchmark, scenario and model of its records, each once
    methods: int
    seeds: int
    states: Counter[str]  # records by status
    unreadable: int  # number of files in the folder of records that are not valid records
    running: int  # number of trials that a process is running now
    resumable: int  # number of trials with a checkpoint and without a final record
    last: datetime.datetime | None  # when the last trial began
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """An unused file or folder, its size, and why it is unused."""

    path: Path
    bytes: int
    why: str


def survey(folder: Path) -> RunFacts:
    """Return a summary of a run folder.

    Raises:
        StoreError: the folder cannot be read.
    """
    store = Store(folder)
    records, problems = store.read()
    trials = [record.trial for record in records]
    settings = dict.fromkeys(f"{t.benchmark.name} {t.scenario}, {t.model.name}" for t in trials)
    running, finished = _find_locked(store), {record.key for record in records if record.status in FINAL_STATUSES}
    return RunFacts(
        folder, tuple(settings), len({record.label for record in records}), len({t.seed for t in trials}),
        Counter(record.status for record in records), len(problems), len(running),
        len({path.name for path in _entries(store.checkpoints)} - finished - running),
        max((record.provenance.started for record in records), default=None), size_of(folder))


def _find_locked(store: Store) -> set[str]:
    """Return the keys of the trials that a process has locked."""
    keys = set()
    for path in _entries(store.locks):
        try:
            acquired = lock(path)
        except (NoLocks, OSError):  # it is unknown whether the trial is running
            keys.add(path.stem)
            continue
        if acquired is None:
            keys.add(path.stem)
        else:
            acquired.release()
    return keys


def garbage(folders: Sequence[Path], data_dir: Path, registry: Registry) -> list[Garbage]:
    """Return the unused files in run folders and in the cache of streams.

    Unused files are: checkpoints of trials that have ended since, exported files of trials without a record and
    without a checkpoint, scores of items without a record, and cached streams that no trial of these folders would read
    with the installed code. Files that a running process may need are not included: no streams while a trial without a
    record is running, because only a record names the stream.

    Raises:
        StoreError: a run folder cannot be read.
    """
    unused: list[Garbage] = []
    records: list[Record] = []
    all_recorded = True
    for folder in folders:
        store = Store(folder)
        stored, _ = store.read()
        records += stored
        running = _find_locked(store)
        finished = {record.key for record in stored if record.status in FINAL_STATUSES}
        resumable = {path.name for path in _entries(store.checkpoints)} - finished
        all_recorded &= running <= {record.key for record in stored}
        trial_keys = {path.stem for path in _entries(store.records)} | resumable | running
        unused += [_garbage(path, "checkpoint of a trial that is over") for path in _entries(store.checkpoints)
                   if path.name in finished - running and not _is_newer(path, store.path(path.name))]
        unused += [_garbage(path, "exported by a trial that has no record") for path in _entries(store.artifacts)
                   if path.name not in trial_keys]
        without_scores = {record.key for record in stored if record.item_scores is None}
        unused += [_garbage(path, "scores of items that no record has") for path in _entries(store.records)
                   if path.name.endswith(ITEMS) and (key := path.name.removesuffix(ITEMS)) not in running
                   and (key in without_scores or not store.path(key).exists())]  # a record may be unreadable here
    if not all_recorded:
        return unused
    used = _streams(records, data_dir, registry)
    unused += [_garbage(path, "cached stream that none of these runs uses; it can be built again")
               for path in _entries(data_dir / "streams") if path.suffix == ".safetensors" and path.stem not in used]
    return unused


def _streams(records: Iterable[Record], data_dir: Path, registry: Registry) -> set[str]:
    """Return the names of the cached streams that the trials of records would read."""
    from clbench.data import stream_cache
    from clbench.data.contents import data_files

    benchmarks = {(str(r.trial.benchmark), r.trial.seed): r.trial.benchmark for r in records}
    used = set()
    for (_, seed), benchmark in benchmarks.items():
        try:
            info = registry.benchmark(benchmark.name)
            place = data_files(info, benchmark.options, data_dir).place if info.cached else ""
            used.add(stream_cache.key_of(benchmark, seed, registry, place) or "")
        except ClbenchError:  # without the benchmark or its files, no trial can read its stream
            continue
    return used


def remove(unused: Iterable[Garbage]) -> int:
    """Remove unused files and return the number of freed bytes.

    Raises:
        StoreError: a file cannot be removed; the files before it have been removed.
    """
    freed = 0
    for entry in unused:
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {entry.path}: {error.strerror or error}") from None
        freed += entry.bytes
    return freed


def _garbage(path: Path, why: str) -> Garbage:
    return Garbage(path, size_of(path), why)


def _is_newer(checkpoint: Path, record: Path) -> bool:
    """Return whether a checkpoint is of a trial that is being trained again, so its record is older."""
    return any(status.st_mtime_ns > record.stat().st_mtime_ns for status in _files_in(checkpoint))


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    return sum(status.st_size for status in _files_in(path))


def _files_in(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, or of all files in a folder; files that other processes remove are left out."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            status = file.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield status


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder in order, without hidden ones; an empty list if it does not exist."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
