"""Merge the records of several run folders into those of one study. Conflicting records are reported, never mixed."""

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
    """One record of each trial, ordered by folder and then by the start time of the trials."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]  # files that are no records
    notes: tuple[str, ...]  # where one record was taken for another


def merge_runs(folders: Sequence[Path], command: str = "clbench report") -> Merged:
    """Read run folders and merge their records by key.

    Two records of a trial must have the same outcome. If their labels differ, the label of the first folder counts. A
    record of a failed trial is replaced by a record that did not fail, as when a run is resumed.

    Args:
        folders: the run folders.
        command: the user's command. The error message for a folder without records shows it for each run folder below.

    Raises:
        StoreError: records of a trial conflict (the message names all of them), or a folder has no records or cannot
            be read.
    """
    by_key: dict[str, tuple[Record, Path]] = {}
    problems: list[Problem] = []
    conflicts: list[str] = []
    notes: list[str] = []
    for folder in folders:
        records, bad = Store(folder).read()
        problems += bad
        if not records:
            raise StoreError(_no_records(folder, command))
        for record in records:
            first, first_folder = by_key.setdefault(record.key, (record, folder))
            if first.outcome() == record.outcome() and not diff.curve_difference(first, record):
                if record.curve and not (first.curve and first.curve.every <= record.curve.every):
                    by_key[record.key] = record, folder  # the record with the finer curve contains more
                continue
            if "failed" in (first.status, record.status):
                if record.status != "failed":
                    by_key[record.key] = record, folder
                if first.status != record.status:
                    failed_folder, counted_folder = first_folder, folder
                    if first.status != "failed":
                        failed_folder, counted_folder = folder, first_folder
                    notes.append(f"{name(record)} failed in {failed_folder}; its record in {counted_folder} counts")
            else:
                conflicts.append(f"{name(record)} differs between {first_folder} and {folder} (record {record.key}): "
                                 + "; ".join(diff.differences(first, record)))
    if conflicts:
        conflicts.append("different records of one trial cannot be combined: leave one of the folders out, or move "
                         "one of the records away (clbench diff A B shows the differences)")
        raise StoreError("\n".join(conflicts))
    return Merged(tuple(record for record, _ in by_key.values()), tuple(problems), tuple(notes))


def _no_records(folder: Path, command: str) -> str:
    """Return the message that a folder has no records. It lists the run folders below that the user may have meant."""
    inner = run_folders([folder]) if folder.is_dir() and not (folder / "records").is_dir() else []
    if not inner:
        return f"no records in {folder / 'records'}; clbench run --out {folder} makes some"
    more = [f"... and {len(inner) - MOST_SHOWN} more: clbench runs {folder}"] if len(inner) > MOST_SHOWN else []
    return "\n".join([f"no records in {folder / 'records'}, but there are run folders below {folder}; choose one:",
                      *(shlex.join([*command.split(), str(path)]) for path in inner[:MOST_SHOWN]), *more])


def name(record: Record) -> str:
    """Return the name of a trial for messages."""
    trial = record.trial
    return f"{record.label}, seed {trial.seed} ({trial.benchmark.name}, {trial.scenario}, {trial.model.name})"


def by_method(records: Sequence[Record]) -> list[Record]:
    """Return the records grouped by method. Methods are in the order in which they were first run."""
    labels = list(dict.fromkeys(r.label for r in records))
    return sorted(records, key=lambda r: labels.index(r.label))
