"""The log of a run folder, `looks.jsonl`: which seeds were requested, and which seeds each report has shown.

Statistical tests assume that the number of seeds, or a rule for adding seeds, was fixed in advance. The results do not
show whether it was, so the log records it. A line `asked` says that a run requested seeds of a setting for the first
time. A line `report` says that a report shows other seeds than the report before it. Resuming an interrupted run
requests no new seeds, nor does a new method on the same seeds. A report with a single seed per method does not count,
because it contains no test on which the decision to continue could depend.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clbench.core.errors import StoreError
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import sequence
from clbench.results.records import Record
from clbench.results.store import Store

FILE = "looks.jsonl"
Line = dict[str, Any]


def read(folder: Path) -> list[Line]:
    """Return the lines of a folder's log in order, or no lines if there is no log.

    Raises:
        StoreError: the file cannot be read or is not such a log.
    """
    path = folder / FILE
    try:
        *complete, _ = path.read_text(encoding="utf-8").split("\n")  # an interrupted process leaves half a line
        lines = [json.loads(line) for line in complete if line.strip()]
        if wrong := [line for line in lines if not isinstance(line, dict) or "event" not in line]:
            raise ValueError(f"a line without event: {wrong[0]}")
        return lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is no log of reports ({error}): move it away") from error


def setting_id(setting: tuple[str, ...]) -> str:
    """Return the identifier of a setting in the log: 12 hexadecimal digits."""
    return hashlib.sha256("\n".join(setting).encode()).hexdigest()[:12]


def note(folder: Path, records: Sequence[Record], new: bool = True) -> None:
    """Log which seeds a report shows if they differ from the seeds of the last report.

    Args:
        folder: the run folder that contains the report.
        records: the records that the report shows.
        new: whether to create a log if there is none. A report of an old folder does not create one.

    Raises:
        StoreError: the log cannot be read or written.
    """
    if not new and not (folder / FILE).exists():
        return
    last_seeds = {line["setting"]: line["seeds"] for line in read(folder) if line["event"] == "report"}
    _append(folder, [line for line in _report_lines(records) if last_seeds.get(line["setting"]) != line["seeds"]])


def ask(folder: Path, planned: Sequence[PlannedTrial], seeds: Sequence[int],
        records: Mapping[str, Record]) -> list[PlannedTrial]:
    """Log the seeds that a run requests, and return its trials with the seeds that earlier reports had shown.

    Args:
        folder: the run folder.
        planned: trials of the run.
        seeds: all seeds of the experiment. `planned` may be a shard or a round of it.
        records: records of the folder by key. If the folder has a report but no log, its report is assumed to have
            shown them.

    Raises:
        StoreError: the log cannot be read or written.
    """
    lines, new_lines = read(folder), []
    if not lines and records and any(folder.glob("report.*")):
        recorded_seeds: dict[str, set[int]] = {}
        for record in records.values():
            recorded_seeds.setdefault(setting_id(record.trial.environment), set()).add(record.trial.seed)
        new_lines = [*(_request_line(setting, sorted(seeds_there)) for setting, seeds_there in recorded_seeds.items()),
                     *_report_lines([*records.values()])]
    requested_seeds: dict[str, set[int]] = {}
    for plan in planned:
        setting_seeds = requested_seeds.setdefault(setting_id(plan.trial.environment), set())
        setting_seeds |= {plan.trial.seed, *(sequence(seeds, plan.until.most) if plan.until else seeds)}
    for setting, setting_seeds in requested_seeds.items():
        logged_seeds: set[int] = set()
        for line in (*lines, *new_lines):
            if line["event"] == "asked" and line["setting"] == setting:
                logged_seeds.update(line["seeds"])
        if unlogged_seeds := sorted(setting_seeds - logged_seeds):
            new_lines.append(_request_line(setting, unlogged_seeds))
    _append(folder, new_lines)
    seen_before = _seeds_shown_before((*lines, *new_lines))
    return [replace(plan, seen=seen_before.get((setting_id(plan.trial.environment), plan.trial.seed), ()))
            for plan in planned]


def forget(store: Store, made: bool) -> None:
    """Remove a log that was created for a run that could not start, unless the folder has records or running trials."""
    if made and not store.locks.exists() and not any(store.records.glob("*.json")):
        with contextlib.suppress(OSError):  # for example, the folder was removed, which ended the run
            (store.directory / FILE).unlink()


def _request_line(setting: str, seeds: Sequence[int]) -> Line:
    return {"event": "asked", "time": _now(), "setting": setting, "seeds": list(seeds)}


def _report_lines(records: Sequence[Record]) -> Iterator[Line]:
    """Yield a `report` line for each setting with the seeds of each method that have a result."""
    by_setting: dict[str, dict[str, list[int]]] = {}
    for record in records:
        if record.status == "done":
            by_label = by_setting.setdefault(setting_id(record.trial.environment), {})
            by_label.setdefault(record.label, []).append(record.trial.seed)
    for setting, by_label in by_setting.items():
        yield {"event": "report", "time": _now(), "setting": setting,
               "seeds": {label: sorted(set(seeds)) for label, seeds in sorted(by_label.items())}}


def _seeds_shown_before(lines: Sequence[Line]) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return, by setting and seed, which seeds reports had shown when that seed was first requested."""
    seen_before: dict[tuple[str, int], tuple[int, ...]] = {}
    shown_by_setting: dict[str, set[int]] = {}
    for line in lines:
        setting = line["setting"]
        if line["event"] == "report":
            shown_seeds = shown_by_setting.setdefault(setting, set())
            for seeds in line["seeds"].values():
                if len(seeds) > 1:
                    shown_seeds.update(seeds)
        else:
            for seed in line["seeds"]:
                seen_before.setdefault((setting, seed), tuple(sorted(shown_by_setting.get(setting, ()))))
    return seen_before


def _append(folder: Path, lines: Sequence[Line]) -> None:
    if not lines:
        return
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_half_line(path)
        with open(path, "a", encoding="utf-8") as file:  # lines are written at once, so that processes do not mix them
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _remove_half_line(path: Path) -> None:
    """Remove an incomplete last line, which an interrupted process or a full disk leaves."""
    if path.exists() and (rest := path.read_bytes().rpartition(b"\n")[2]):
        os.truncate(path, path.stat().st_size - len(rest))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
