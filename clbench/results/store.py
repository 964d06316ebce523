"""The store: a run folder with one JSON file per trial. Writes are atomic, and copying files merges folders.

For objectives without classes, a second file `<key>.items.npz` has the scores of single items. The record has its hash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from pydantic import ValidationError

from clbench.core.errors import StoreError
from clbench.core.files import readable_name, sweep, write_atomically
from clbench.results.records import Record

MARK = ".seen-by-nodes-"  # prefix of the files by which cluster nodes recognize the folder, present during a run
MARK_SECONDS = 30 * 86400.0  # longer than any run
DEPTH = 3  # levels of subfolders in which run folders are searched
ITEMS = ".items.npz"  # suffix of files of item scores
MODEL, STATE = "model.safetensors", "state.safetensors"  # files in a trial's artifacts that `--keep` saves
KEY_START = 4  # smallest number of characters of a key that name a trial
LISTED = 4  # largest number of trials that an error names


@dataclass(frozen=True)
class Problem:
    """A file among the records that this clbench cannot use. It is reported and not changed."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.path} is left alone: {self.reason}"


def match_records(records: Iterable[Record], trial: str | None) -> list[Record]:
    """Return the records that match a trial's name. None matches all.

    A name is `label/seed`, `label/scenario/seed` or the beginning of a key. A trial that continues another has the same
    label, which then matches only the original trial.
    """
    all_records = list(records)
    if trial is None:
        return all_records
    matches = [r for r in all_records if trial in (r.name, r.name_with_scenario)]
    return ([r for r in matches if r.trial.continues is None] or matches or
            [r for r in all_records if len(trial) >= KEY_START and r.key.startswith(trial)])


def list_trials(records: Sequence[Record], near: str = "") -> str:
    """Return the names and keys of a few trials for an error, and the number of the others.

    The trials whose names are most similar to `near` come first. A name has the scenario if it is ambiguous without it.
    """
    scenarios: dict[str, set[str]] = {}
    for record in records:
        scenarios.setdefault(record.name, set()).add(record.trial.scenario)
    names = [(r.name_with_scenario if len(scenarios[r.name]) > 1 else r.name, r.key) for r in records]
    names.sort(key=lambda name: -SequenceMatcher(None, near.casefold(), name[0].casefold()).ratio())
    listed, others = ", ".join(f"{name} ({key})" for name, key in names[:LISTED]), len(names) - LISTED
    return f"{listed} and {others} other{'s' if others > 1 else ''}" if others > 0 else listed or "(none)"


def other_weights(record: Record, contents: dict[str, str]) -> str:
    """Describe what is wrong with the published weights of a record. The text is empty if nothing is wrong.

    Args:
        record: the record of a trial.
        contents: content hashes of the weights of earlier records, by the hash of their name. The hash of this record's
            weights is added.
    """
    weights, content = record.trial.weights, record.provenance.weights
    if weights is None or not content or contents.setdefault(weights.sha256, content) == content:
        return ""
    return (f"its weights {weights.path} had the content {content[:16]}, those of earlier records "
            f"{contents[weights.sha256][:16]}: one name must stand for one content")


class Store:
    """The records of a run folder, `<directory>/records/<key>.json`."""

    def __init__(self, directory: Path) -> None:
        """Store the folder's path. Nothing is read or created yet."""
        self.directory = directory
        self.records = directory / "records"
        self.artifacts = directory / "artifacts"  # by key of the trial: files that strategies export
        self.checkpoints = directory / "checkpoints"  # by key of the trial: the state from which it resumes
        self.locks = directory / "locks"  # a file for each trial that is being run

    def path(self, key: str) -> Path:
        """Return the path of the record with that key, which need not exist."""
        return self.records / f"{key}.json"

    def items_path(self, key: str) -> Path:
        """Return the path of the item scores of the record with that key, which need not exist."""
        return self.records / f"{key}{ITEMS}"

    def read(self, contents: dict[str, str] | None = None) -> tuple[list[Record], list[Problem]]:
        """Return all records in the order in which their trials started, and all files that cannot be used.

        A record whose file of item scores is missing or damaged is returned without these scores.

        Args:
            contents: content hashes of published weights in other folders, as for `other_weights`; None if there are
                none.

        Raises:
            StoreError: the folder exists but cannot be listed.
        """
        records, problems = [], []
        for path in self._files():
            record_or_problem = read_record(path)
            if isinstance(record_or_problem, Record):
                record, damaged = self._with_items(record_or_problem)
                records.append(record)
                problems += damaged
            else:
                problems.append(record_or_problem)
        records.sort(key=lambda r: (r.provenance.started, r.key))
        contents = {} if contents is None else contents
        checked = [(record, other_weights(record, contents)) for record in records]
        problems += [Problem(self.path(record.key), problem) for record, problem in checked if problem]
        return [record for record, problem in checked if not problem], problems

    def get(self, key: str) -> Record | None:
        """Return the record of that key, or None if there is none.

        Raises:
            StoreError: a file of that name exists but is not that record.
        """
        record = self._record(key)
        return record and self._with_items(record)[0]

    def _record(self, key: str) -> Record | None:
        """Return the record of that key without the scores of its items, or None if there is none."""
        if not os.path.lexists(self.path(key)):
            return None
        record_or_problem = read_record(self.path(key))
        if isinstance(record_or_problem, Problem):
            raise StoreError(f"{record_or_problem}, so the trial's record cannot be written there: move the file away "
                             "and run again")
        return record_or_problem

    def _with_items(self, record: Record) -> tuple[Record, list[Problem]]:
        """Return a record with the scores of its items, and the problems with the file of the scores."""
        if record.item_scores is None:
            return record, []
        path = self.items_path(record.key)
        consequence = f"so the statistics of {record.name} are without scores of single items"
        try:
            scores = record.item_scores.with_file(path.read_bytes())
        except OSError as error:
            return record, [Problem(path, f"it cannot be read ({error.strerror or error}), {consequence}")]
        if scores is None:
            return record, [Problem(path, f"it is damaged or of another record, {consequence}")]
        return record.model_copy(update={"item_scores": scores}), []

    def check_writable(self) -> list[Path]:
        """Create the folder, check that it is writable, and remove incomplete files of killed processes.

        Returns the folders that had to be created, innermost first, for `forget`.

        Raises:
            StoreError: no file can be created there, or its path is not UTF-8, which messages to workers must be.
        """
        path = str(self.directory.absolute())
        if (readable_path := readable_name(path)) != path:
            raise StoreError(f"the path of the run folder is not UTF-8: {readable_path}; choose another folder with "
                             "--out")
        created_folders = [p for p in (self.records, *self.records.parents) if not p.exists()]
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.records, prefix=".probe-", suffix=".tmp") as probe:
                probe.write(b"clbench")
                probe.flush()
        except OSError as error:
            self.forget(created_folders)
            raise self.error(error) from None
        sweep((*self.records.glob(".*.tmp"), *self.artifacts.glob("*/**/.*.tmp")))
        sweep(self.directory.glob(f"{MARK}*"), MARK_SECONDS)
        return created_folders

    @staticmethod
    def forget(made: Sequence[Path]) -> None:
        """Remove the folders that were created and are still empty."""
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty, or was never created
                folder.rmdir()

    def write(self, record: Record) -> Path:
        """Write a record and return its path. It replaces an older record of the same trial.

        Raises:
            StoreError: the disk is full or the folder cannot be written (then nothing has changed), or a file of that
                name is not a record.
        """
        path = self.path(record.key)
        self._record(record.key)
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            # Scores come first: a record then never names a file that was not written.
            if record.item_scores is not None and record.item_scores.content:
                write_atomically(self.items_path(record.key), record.item_scores.file)
            text = record.model_dump_json(by_alias=True, indent=1, exclude={"item_scores": {"content"}})
            write_atomically(path, text + "\n")
            if record.item_scores is None:
                self.items_path(record.key).unlink(missing_ok=True)
        except OSError as error:
            raise self.error(error) from None
        return path

    def remove_checkpoint(self, key: str) -> None:
        """Remove the checkpoint of the trial with that key."""
        shutil.rmtree(self.checkpoints / key, ignore_errors=True)  # remaining files do no harm, and will be overwritten
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()  # if it was the last

    def clear(self, key: str) -> None:
        """Remove the exported files of the trial with that key, unless the trial will resume from a checkpoint."""
        if not (self.checkpoints / key).exists():
            shutil.rmtree(self.artifacts / key, ignore_errors=True)  # remaining files will be overwritten

    def _files(self) -> Sequence[Path]:
        try:
            return sorted(path for path in self.records.iterdir()
                          if not path.name.startswith(".") and not path.name.endswith(ITEMS))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"cannot read {self.records}: {error.strerror}; choose another folder") from None

    def error(self, error: OSError) -> StoreError:
        """Return an error that says what went wrong with the folder and what to do."""
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):  # Windows has no EDQUOT
            return StoreError(f"the disk is full, so {self.records} cannot be written: free some space and run the "
                              "same command again")
        reason = error.strerror or error
        return StoreError(f"cannot write to {self.records}: {reason}; choose another folder with --out")


def read_record(path: Path) -> Record | Problem:
    """Read one file and return its record, or the problem if it is not a valid record."""
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        return Problem(path, error.strerror or str(error))
    except ValidationError as error:
        first_error = error.errors()[0]
        location = ".".join(map(str, first_error["loc"]))
        message = ("this clbench does not know this field; if a newer clbench wrote the file, update clbench"
                   if first_error["type"] == "extra_forbidden" else first_error["msg"].removeprefix("Value error, "))
        return Problem(path, f"not a record ({location + ': ' if location else ''}{message})")
    if path.name != f"{record.key}.json":
        return Problem(path, f"its name is not that of its trial, {record.key}.json")
    return record


def run_folders(places: Iterable[Path]) -> list[Path]:
    """Return the run folders among the given folders and below them, in alphabetical order.

    Raises:
        StoreError: a folder does not exist.
    """
    folders: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise StoreError(f"there is no folder {place}: check the path")
        folders |= dict.fromkeys(sorted(_find_runs(place, DEPTH)))
    return list(folders)


def _find_runs(place: Path, depth: int) -> Iterator[Path]:
    if not os.access(place, os.R_OK | os.X_OK):  # folders of other users are skipped
        return
    if (place / "records").is_dir():
        yield place
    elif depth:
        for inner in place.iterdir():
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _find_runs(inner, depth - 1)
