"""The log of a run folder, `looks.jsonl`: which seeds were asked for, and which each report has shown.

Tests suppose a number of seeds that was fixed beforehand, or a rule. Whether it was cannot be seen in the results, so
it is written down: a line `asked` where a run asks for seeds of a setting that none had asked for, and a line `report`
where a report shows other seeds than the one before. A run that is interrupted and goes on asks for nothing new, nor
does a new method on the same seeds. A report of a single seed per method counts for nothing: no test can be made of it,
so no claim depends on whether one goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clbench.core.errors import StoreError
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import sequence
from clbench.results.records import Record

FILE = "looks.jsonl"
Line = dict[str, Any]


def read(folder: Path) -> list[Line]:
    """Return the lines of a folder's log, in their order; none where there is no log.

    Raises:
        StoreError: it cannot be read, or is no such log.
    """
    path = folder / FILE
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is no log of reports ({error}): move it away") from error


def setting_id(setting: tuple[str, ...]) -> str:
    """Return what the log calls a setting: 12 hexadecimal digits."""
    return hashlib.sha256("\n".join(setting).encode()).hexdigest()[:12]


def note(folder: Path, records: Sequence[Record], new: bool = True) -> None:
    """Log that a report shows these records, where it shows other seeds than the last one.

    Args:
        folder: the run folder, which holds the report.
        records: that are shown.
        new: whether to begin a log where there is none; a report of an old folder does not.

    Raises:
        StoreError: the log cannot be read or written.
    """
    if not new and not (folder / FILE).exists():
        return
    last = {line["setting"]: line["seeds"] for line in read(folder) if line["event"] == "report"}
    _append(folder, [line for line in _shown(records) if last.get(line["setting"]) != line["seeds"]])


def ask(folder: Path, planned: Sequence[PlannedTrial], seeds: Sequence[int],
        records: Mapping[str, Record]) -> list[PlannedTrial]:
    """Log the seeds that a run asks for, and return its trials with the seeds that reports had shown before.

    Args:
        folder: the run folder.
        planned: trials of the run.
        seeds: all that the experiment asks for; `planned` may be a part of it, or a round.
        records: of the folder, by key. Where it has a report and no log, they are taken for what it has shown.

    Raises:
        StoreError: the log cannot be read or written.
    """
    lines, fresh = read(folder), []
    if not lines and records and any(folder.glob("report.*")):
        by_setting: dict[str, set[int]] = {}
        for record in records.values():
            by_setting.setdefault(setting_id(record.trial.setting), set()).add(record.trial.seed)
        fresh = [*(_asked(setting, sorted(own)) for setting, own in by_setting.items()),
                 *_shown([*records.values()])]
    wanted: dict[str, set[int]] = {}
    for one in planned:
        own = wanted.setdefault(setting_id(one.trial.setting), set())
        own |= {one.trial.seed, *(sequence(seeds, one.until.most) if one.until else seeds)}
    for setting, all_seeds in wanted.items():
        before = {s for line in (*lines, *fresh) if line["event"] == "asked" and line["setting"] == setting
                  for s in line["seeds"]}
        if new := sorted(all_seeds - before):
            fresh.append(_asked(setting, new))
    _append(folder, fresh)
    seen = _seen((*lines, *fresh))
    return [replace(one, seen=seen.get((setting_id(one.trial.setting), one.trial.seed), ())) for one in planned]


def forget(folder: Path, made: bool) -> None:
    """Remove the log of a folder that was made for a run which could not begin."""
    if made:
        with contextlib.suppress(OSError):  # the folder is gone, say, which is what ended the run
            (folder / FILE).unlink()


def _asked(setting: str, seeds: Sequence[int]) -> Line:
    return {"event": "asked", "time": _now(), "setting": setting, "seeds": list(seeds)}


def _shown(records: Sequence[Record]) -> Iterator[Line]:
    """Yield a line for each setting: the seeds with a result of each method."""
    found: dict[str, dict[str, list[int]]] = {}
    for record in records:
        if record.status == "done":
            by_label = found.setdefault(setting_id(record.trial.setting), {})
            by_label.setdefault(record.label, []).append(record.trial.seed)
    for setting, by_label in found.items():
        yield {"event": "report", "time": _now(), "setting": setting,
               "seeds": {label: sorted(set(seeds)) for label, seeds in sorted(by_label.items())}}


def _seen(lines: Sequence[Line]) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the seeds that reports had shown when a seed was first asked for, by setting and seed."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    shown: dict[str, set[int]] = {}
    for line in lines:
        setting = line["setting"]
        if line["event"] == "report":
            shown.setdefault(setting, set()).update(s for seeds in line["seeds"].values() if len(seeds) > 1
                                                    for s in seeds)
        else:
            for seed in line["seeds"]:
                found.setdefault((setting, seed), tuple(sorted(shown.get(setting, ()))))
    return found


def _append(folder: Path, lines: Sequence[Line]) -> None:
    if not lines:
        return
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:  # a line is one write, so processes do not mix theirs
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
