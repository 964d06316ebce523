"""Which results of a run folder still stand: looked at before anything is reused, without training anything."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clbench.core import identity
from clbench.core.errors import ClbenchError, PluginError, StaleError
from clbench.core.registry import Registry
from clbench.data.contents import check_data
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Trial
from clbench.results import provenance
from clbench.results.records import DIGITS, Record
from clbench.results.staleness import CodeNow, by_reason, changed, changed_parts, packages_of

OnStale = Literal["refuse", "rerun", "keep"]  # what is done with results that do not stand
Note = Callable[[str], None]  # is told what the user is to read at once
LONG = 2.0  # seconds of looking at data that are worth a word


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass
class Standing:
    """What does not stand: why, by the key of each trial; and what the user is told beside it."""

    reasons: dict[str, list[str]] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)  # what records have not that the run asks for, as flags
    notes: list[str] = field(default_factory=list)

    def settle(self, key: str) -> None:
        """Note that a trial has a record that stands."""
        self.reasons.pop(key, None)
        self.lacking.pop(key, None)


def look(planned: Sequence[PlannedTrial], records: Mapping[str, Record], registry: Registry,
         data_dir: Path, verify: bool = False, note: Note = silent) -> Standing:
    """Compare the records of planned trials with the code that is installed and the data that are there now.

    Records of older versions, which do not tell their code or data, stand. So do those of another clbench, which is
    told. A benchmark that is not cached is built to look at its data, if there are records of it. With `verify` all
    data files are read. `note` hears of a benchmark that takes long to read, while it is read.

    Raises:
        PluginError: code was edited after this process had imported it.
    """
    refuse_edited([p.trial for p in planned], registry)
    standing = Standing()
    done = [record for p in planned if (record := records.get(p.trial.key)) and record.status != "failed"]
    now = CodeNow(registry)
    data = _data_of([r for r in done if "benchmark" not in changed_parts(r, now.of(r.trial))], registry, data_dir,
                    standing.notes, verify, note)
    for record in done:
        if reasons := changed(record, now.of(record.trial), data.get(record.key, "")):
            standing.reasons[record.key] = reasons
    standing.notes += other_clbench(done)
    return standing


def check_inputs(trials: Sequence[Trial], settings: ExecutionSettings, registry: Registry) -> None:
    """Check that the data of trials to be run are there, before anything slow is imported or started.

    Workers of a cluster may have data that this machine has not.

    Raises:
        DataError: they are not there, or cannot be right.
    """
    if settings.executor == "local":
        for benchmark in {str(t.benchmark): t.benchmark for t in trials}.values():
            check_data(benchmark, settings.data_dir, registry)


def refuse_edited(trials: Sequence[Trial], registry: Registry) -> None:
    """Raise a `PluginError` where code of trials is not what this process has imported, so what runs is not known."""
    names = dict.fromkeys(name for t in trials for own in packages_of(t, registry).values() for name in own)
    if old := identity.edited(*names):
        raise PluginError(f"{' and '.join(old)} {'was' if len(old) == 1 else 'were'} edited after this Python process "
                          "imported it, so the old code would run: restart Python")


def refusal(stale: Mapping[str, list[str]], records: Mapping[str, Record], folder: Path) -> StaleError:
    """Return the error that lists what is stale, with the ways out."""
    lines = by_reason((records[key], reasons) for key, reasons in stale.items())
    count = f"{len(stale)} result{'s' if len(stale) > 1 else ''} in {folder}"
    return StaleError("\n".join([f"{count} {'are' if len(stale) > 1 else 'is'} stale, because code or data have "
                                 "changed since, so nothing was trained. Use --rerun to train them again, or "
                                 "--keep-stale to keep them, marked in the table (in Python: stale = \"rerun\" or "
                                 "\"keep\")", *lines]))


def other_clbench(done: Sequence[Record]) -> list[str]:
    """Return a note on results of another version or commit of clbench itself, which are reused all the same."""
    if not done:
        return []
    now = provenance.versions()["clbench"], provenance.git_commit()
    found = Counter((r.provenance.versions.get("clbench", "unknown"), r.provenance.git) for r in done)
    found.pop(now, None)
    if not found:
        return []
    names = ", ".join(_clbench(*made_by) for made_by in found)
    return [f"{sum(found.values())} results were made by {names}, and this is {_clbench(*now)}. clbench keeps them"]


def _clbench(version: str, commit: str | None) -> str:
    if not commit:
        return f"clbench {version}"
    commit, plus, dirty = commit.partition("+")
    return f"clbench {version} at commit {commit[:10]}{plus}{dirty}"


def _data_of(records: Sequence[Record], registry: Registry, data_dir: Path, notes: list[str],
             verify: bool, note: Note) -> dict[str, str]:
    """Return the hash of the data that there are now for the trials of records that tell theirs, as far as known."""
    told = [r for r in records if r.stream and r.stream.data]
    if not told:
        return {}
    from clbench.data import cache

    found: dict[str, str] = {}
    by_benchmark: dict[tuple[str, int], str] = {}
    for record in told:
        benchmark = record.trial.benchmark
        seed = record.trial.seed if cache.depends_on_seed(benchmark, registry) else 0
        if (str(benchmark), seed) not in by_benchmark:
            by_benchmark[str(benchmark), seed] = _digest(record.trial, seed, data_dir, registry, notes,
                                                                verify, note)
        found[record.key] = by_benchmark[str(benchmark), seed]
    return found


def _digest(trial: Trial, seed: int, data_dir: Path, registry: Registry, notes: list[str], verify: bool,
            note: Note) -> str:
    """Return the hash of a benchmark's data: from the head of its cached stream, else after reading it."""
    from clbench.data import cache

    began = time.monotonic()
    aim = f"reading {trial.benchmark.name}, to know whether its results still stand"
    try:
        with _noted_if_long(aim, note):
            if known := cache.known_digest(trial.benchmark, seed, data_dir, registry, verify):
                return known[:DIGITS]
            from clbench.data.datasets import without_downloads
            from clbench.data.stream import read_benchmark

            with without_downloads(), _forgetting(packages_of(trial, registry).get("benchmark", ())):
                digest = read_benchmark(trial.benchmark, seed, data_dir, registry, verify).digest[:DIGITS]
    except ClbenchError as error:
        notes.append(f"whether the data of {trial.benchmark.name} are still those of its results is not known: {error}")
        return ""
    if (took := time.monotonic() - began) > LONG:
        notes.append(f"{aim}, took {took:.1f} s")
    return digest


@contextmanager
def _noted_if_long(aim: str, note: Note) -> Iterator[None]:
    """Say what is going on inside if it takes longer than `LONG` seconds."""
    timer = threading.Timer(LONG, note, [f"{aim} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _forgetting(packages: Sequence[str]) -> Iterator[None]:
    """Forget modules of packages that are imported inside: they may be edited before they are imported to be run."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if any(name == own or name.startswith(f"{own}.") for own in packages):
                del sys.modules[name]
