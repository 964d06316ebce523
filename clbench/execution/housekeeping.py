"""Run folders at a glance, and what in them and in the cache of streams nothing refers to any more."""

from __future__ import annotations

import datetime
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.core.errors import ClbenchError, StoreError
from clbench.core.files import NoLocks, lock
from clbench.core.registry import Registry
from clbench.results.records import Record
from clbench.results.store import Store

KEPT = ("done", "diverged")  # records that no run replaces, so that their checkpoints are of no use


@dataclass(frozen=True)
class RunFacts:
    """What there is to know of a run folder without training anything."""

    folder: Path
    settings: tuple[str, ...]  # benchmark, scenario and model of its records, each once
    methods: int
    seeds: int
    states: Counter[str]  # records by status
    unreadable: int  # files among the records that are none
    running: int  # trials that some process is running now
    begun: int  # trials with a checkpoint and no record, to be gone on with
    last: datetime.datetime | None  # when the last trial began
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing refers to, its size, and why."""

    path: Path
    bytes: int
    why: str


def survey(folder: Path) -> RunFacts:
    """Return what there is to know of a run folder.

    Raises:
        StoreError: it cannot be read.
    """
    store = Store(folder)
    records, problems = store.read()
    trials = [record.trial for record in records]
    settings = dict.fromkeys(f"{t.benchmark.name} {t.scenario}, {t.model.name}" for t in trials)
    running, finished = _running(store), {record.key for record in records if record.status in KEPT}
    return RunFacts(
        folder, tuple(settings), len({record.label for record in records}), len({t.seed for t in trials}),
        Counter(record.status for record in records), len(problems), len(running),
        len({path.name for path in _inside(store.checkpoints)} - finished - running),
        max((record.provenance.started for record in records), default=None), size_of(folder))


def _running(store: Store) -> set[str]:
    """Return the keys of the trials that some process has locked."""
    found = set()
    for path in _inside(store.locks):
        try:
            taken = lock(path)
        except (NoLocks, OSError):  # nobody can tell: it may be running
            found.add(path.stem)
            continue
        if taken is None:
            found.add(path.stem)
        else:
            taken.release()
    return found


def garbage(folders: Sequence[Path], data_dir: Path, registry: Registry) -> list[Garbage]:
    """Return what in run folders and in the cache of streams nothing refers to.

    Checkpoints of trials that are over; what trials without a record and a checkpoint have exported; cached streams
    that no record of these folders was made of, by the code that is installed. What a running process may need is left
    alone.

    Raises:
        StoreError: a run folder cannot be read.
    """
    found: list[Garbage] = []
    records: list[Record] = []
    for folder in folders:
        store = Store(folder)
        own, _ = store.read()
        records += own
        running, over = _running(store), {record.key for record in own if record.status in KEPT}
        begun = {path.name for path in _inside(store.checkpoints)} - over
        known = {path.stem for path in _inside(store.records)} | begun | running
        found += [_garbage(path, "checkpoint of a trial that is over") for path in _inside(store.checkpoints)
                  if path.name in over - running]
        found += [_garbage(path, "exported by a trial that has no record") for path in _inside(store.artifacts)
                  if path.name not in known]
    used = _streams(records, data_dir, registry)
    found += [_garbage(path, "cached stream that none of these runs uses; it can be built again")
              for path in _inside(data_dir / "streams") if path.suffix == ".safetensors" and path.stem not in used]
    return found


def _streams(records: Iterable[Record], data_dir: Path, registry: Registry) -> set[str]:
    """Return the names of the cached streams that records' trials would read."""
    from clbench.data import cache
    from clbench.data.contents import data_files

    wanted = {(str(r.trial.benchmark), r.trial.seed): r.trial.benchmark for r in records}
    used = set()
    for (_, seed), benchmark in wanted.items():
        try:
            info = registry.benchmark(benchmark.name)
            place = data_files(info, benchmark.options, data_dir).place if info.cached else ""
            used.add(cache.key_of(benchmark, seed, registry, place) or "")
        except ClbenchError:  # the benchmark, or its files, are not there any more: nothing reads its stream
            continue
    return used


def remove(found: Iterable[Garbage]) -> int:
    """Remove what nothing refers to and return how many bytes that freed.

    Raises:
        StoreError: something cannot be removed; what comes before it is gone.
    """
    freed = 0
    for one in found:
        try:
            if one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {one.path}: {error.strerror or error}") from None
        freed += one.bytes
    return freed


def _garbage(path: Path, why: str) -> Garbage:
    return Garbage(path, size_of(path), why)


def size_of(path: Path) -> int:
    """Return the bytes that a file, or all files in a folder, take."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _inside(folder: Path) -> list[Path]:
    """Return what is in a folder, in order; nothing if it is not there."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
