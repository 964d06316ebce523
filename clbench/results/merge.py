"""The records of several run folders as those of one study: merged by key, conflicts named and never mixed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.core.errors import StoreError
from clbench.results import diff
from clbench.results.records import Record
from clbench.results.store import Problem, Store, run_folders

MOST_SHOWN = 20  # of the run folders that an error lists


@dataclass(frozen=True)
class Merged:
    """Each trial's record once, in the order of the folders, then of their trials' starts."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]  # files that are no records
    notes: tuple[str, ...]  # where one record was taken for another


def merge_runs(folders: Sequence[Path], command: str = "clbench report") -> Merged:
    """Read run folders and merge their records by key.

    Two records of a trial must agree in what the trial gave; labels may differ, the first folder's counts. A record of
    a failed trial gives way to one that is not, as it does when a run goes on.

    Args:
        folders: the run folders.
        command: what the user runs, to be shown with each run folder that lies below one without records.

    Raises:
        StoreError: records of a trial conflict (all that do are named), or a folder has none or cannot be read.
    """
    found: dict[str, tuple[Record, Path]] = {}
    problems: list[Problem] = []
    conflicts: list[str] = []
    notes: list[str] = []
    for folder in folders:
        records, bad = Store(folder).read()
        problems += bad
        if not records:
            raise StoreError(_no_records(folder, command))
        for record in records:
            first, home = found.setdefault(record.key, (record, folder))
            if first.outcome() == record.outcome() and not diff.curve_difference(first, record):
                if record.curve and not (first.curve and first.curve.every <= record.curve.every):
                    found[record.key] = record, folder  # of one result the record that tells more
                continue
            if "failed" in (first.status, record.status):
                if record.status != "failed":
                    found[record.key] = record, folder
                if first.status != record.status:
                    failed, kept = (home, folder) if first.status == "failed" else (folder, home)
                    notes.append(f"{name(record)} failed in {failed}; its record in {kept} counts")
            else:
                conflicts.append(f"{name(record)} differs between {home} and {folder} (record {record.key}): "
                                 + "; ".join(diff.differences(first, record)))
    if conflicts:
        conflicts.append("different records of one trial cannot be combined: leave one of the folders out, or move "
                         "one of the records away (clbench diff A B shows the differences)")
        raise StoreError("\n".join(conflicts))
    return Merged(tuple(record for record, _ in found.values()), tuple(problems), tuple(notes))


def _no_records(folder: Path, command: str) -> str:
    """Say that a folder has no records, and which run folders below it may be meant."""
    inner = run_folders([folder]) if folder.is_dir() and not (folder / "records").is_dir() else []
    if not inner:
        return f"no records in {folder / 'records'}; clbench run --out {folder} makes some"
    more = [f"... and {len(inner) - MOST_SHOWN} more: clbench runs {folder}"] if len(inner) > MOST_SHOWN else []
    return "\n".join([f"no records in {folder / 'records'}, but there are run folders below {folder}; choose one:",
                      *(shlex.join([*command.split(), str(path)]) for path in inner[:MOST_SHOWN]), *more])


def name(record: Record) -> str:
    """Return what a line calls a trial."""
    trial = record.trial
    return f"{record.label}, seed {trial.seed} ({trial.benchmark.name}, {trial.scenario}, {trial.model.name})"


def by_method(records: Sequence[Record]) -> list[Record]:
    """Return records with those of a method together, methods in the order in which they were first run."""
    labels = list(dict.fromkeys(r.label for r in records))
    return sorted(records, key=lambda r: labels.index(r.label))
