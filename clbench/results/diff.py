"""Compare two records or two runs, and merge the records of several run folders into those of one study.

Conflicting records are reported, never mixed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.core.errors import StoreError
from clbench.core.objective import ACCURACY, METRICS, Metric
from clbench.results import metrics
from clbench.results.curve import Curve, row_after, task_values
from clbench.results.records import Record, item_ids, metric_of
from clbench.results.store import Problem, Store, run_folders

RUN = "RUN"  # stands for a run folder in a command
MOST_SHOWN = 20  # largest number of run folders or files that an error lists


@dataclass(frozen=True)
class Merged:
    """One record of each trial, ordered by folder and then by the start time of the trials."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]  # files that are not used, and why
    notes: tuple[str, ...]  # messages about records that another record replaces


def merge_runs(folders: Sequence[Path], command: Sequence[str] = ("clbench", "report", RUN)) -> Merged:
    """Read run folders and merge their records by key.

    Two records of a trial must have the same outcome. The record of the first folder gets the outputs that only the
    other one has. A record of a failed trial is replaced by a record that did not fail, as when a run is resumed. If
    labels differ, the label of the first folder counts. Records whose published weights have another content than those
    of earlier records are left out and are among the problems.

    Args:
        folders: the run folders.
        command: the words of the user's command, with `RUN` instead of a run folder. The error message for a folder
            without records shows it for each run folder below.

    Raises:
        StoreError: records of a trial conflict (the message names all of them), no record of a folder can be used, or
            a folder cannot be read.
    """
    by_key: dict[str, tuple[Record, Path]] = {}
    problems: list[Problem] = []
    conflicts: list[str] = []
    notes: list[str] = []
    contents: dict[str, str] = {}  # of published weights; one name must stand for one content in all folders
    for folder in folders:
        records, folder_problems = Store(folder).read(contents)
        problems += folder_problems
        if not records:
            raise StoreError(_no_records(folder, folder_problems, command))
        for record in records:
            first, first_folder = by_key.setdefault(record.key, (record, folder))
            if first.outcome() == record.outcome() and not curve_difference(first, record):
                by_key[record.key] = add_outputs(first, record), first_folder
            elif "failed" in (first.status, record.status):
                if record.status != "failed":
                    as_first = record.model_copy(update={"label": first.label, "reference": first.reference})
                    by_key[record.key] = as_first, folder
                if first.status != record.status:
                    failed_folder, counted_folder = first_folder, folder
                    if first.status != "failed":
                        failed_folder, counted_folder = folder, first_folder
                    notes.append(f"{name_trial(first)} failed in {failed_folder}; its record in {counted_folder} "
                                 "counts")
            else:
                conflicts.append(f"{name_trial(record)} differs between {first_folder} and {folder} (record "
                                 f"{record.key}): " + "; ".join(differences(first, record)))
    if conflicts:
        conflicts.append("different records of one trial cannot be combined: leave one of the folders out, or move "
                         "one of the records away (clbench diff A B shows the differences)")
        raise StoreError("\n".join(conflicts))
    return Merged(tuple(record for record, _ in by_key.values()), tuple(problems), tuple(notes))


def add_outputs(record: Record, other: Record) -> Record:
    """Return a record with the outputs that it lacks, and with the finer curve, from another record of the trial.

    The finer curve has more points or, if both have as many, more samples. Outputs are what a run may request beyond R.
    They do not affect training, so both trials trained the same network.
    """
    curves = [curve for curve in (record.curve, other.curve) if curve is not None]
    with_items = other if item_ids(record) is None and item_ids(other) is not None else record
    scores = with_items.item_scores
    if with_items is record and scores is not None and scores.content and other.item_scores is not None:
        scores = scores.with_general_of(other.item_scores, other.general.keys() - record.general.keys())
    return record.model_copy(update={
        "curve": min(curves, key=lambda curve: (curve.every, -sum(curve.samples)), default=None),
        "probe": record.probe or other.probe,
        "errors": max(record.errors, other.errors, key=len), "answers": record.answers or other.answers,
        "general": other.general | record.general, "general_files": other.general_files | record.general_files,
        "items": with_items.items, "item_scores": scores})


def _no_records(folder: Path, problems: Sequence[Problem], command: Sequence[str]) -> str:
    """Return the message for a folder without usable records.

    It lists the files that cannot be used, or the run folders below the folder that the user may mean.
    """
    if problems:
        return "\n".join([f"no record in {folder / 'records'} can be used:", *map(str, problems[:MOST_SHOWN])])
    inner = run_folders([folder]) if folder.is_dir() and not (folder / "records").is_dir() else []
    if not inner:
        return f"no records in {folder / 'records'}; clbench run --out {shlex.quote(str(folder))} makes some"
    omissions = [f"... and {len(inner) - MOST_SHOWN} more: clbench runs {shlex.quote(str(folder))}"]
    return "\n".join([f"no records in {folder / 'records'}, but there are run folders below {folder}; choose one:",
                      *(shlex.join([str(path) if word == RUN else word for word in command])
                        for path in inner[:MOST_SHOWN]), *omissions * (len(inner) > MOST_SHOWN)])


def name_trial(record: Record) -> str:
    """Return the name of a trial for messages."""
    trial = record.trial
    return f"{record.label}, seed {trial.seed} ({trial.benchmark.name}, {trial.scenario}, {trial.model.name})"


def group_by_method(records: Sequence[Record]) -> list[Record]:
    """Return the records grouped by method. Methods are in the order in which they were first run."""
    labels = list(dict.fromkeys(r.label for r in records))
    return sorted(records, key=lambda r: labels.index(r.label))


Matrix = Sequence[Sequence[float]]
_MOST = 60  # characters of a value that are shown


@dataclass(frozen=True)
class Changed:
    """A trial that both runs have, with a line for each fact in which they differ."""

    before: Record
    after: Record
    differences: tuple[str, ...]

    @property
    def notes_only(self) -> bool:
        """Return whether the records differ in their notes only, such as that a trial was interrupted."""
        return len(self.differences) == len(list(note_differences(self.before, self.after)))


@dataclass(frozen=True)
class Changes:
    """The differences between two runs. Records are in the order of their run."""

    only_before: tuple[Record, ...]
    only_after: tuple[Record, ...]
    changed: tuple[Changed, ...]
    same: int  # trials that both hold with the same facts

    @property
    def any(self) -> bool:
        """Return whether the runs differ in their trials or in the facts of a trial. Notes do not count."""
        return bool(self.only_before or self.only_after or not all(change.notes_only for change in self.changed))


def compare(before: Sequence[Record], after: Sequence[Record]) -> Changes:
    """Return what changed from the records of one run to those of another. Each run has a trial at most once."""
    old, new = {r.key: r for r in before}, {r.key: r for r in after}
    pairs = [(record, new[key]) for key, record in old.items() if key in new]
    changed = tuple(Changed(a, b, facts) for a, b in pairs if (facts := tuple(differences(a, b))))
    return Changes(tuple(r for r in before if r.key not in new), tuple(r for r in after if r.key not in old), changed,
                   len(pairs) - len(changed))


def differences(before: Record, after: Record) -> Iterator[str]:
    """Return a line for each fact in which two records of a trial differ. Timings and provenance do not count."""
    for name in ("label", "reference"):
        yield from _diff_values(name, getattr(before, name), getattr(after, name))
    old, new = before.outcome(), after.outcome()
    for name in dict.fromkeys([*old, *new]):
        a: Any = old.get(name)
        b: Any = new.get(name)
        if a == b:
            continue
        if name in ("R", "task_inference") and a and b and _shape(a) == _shape(b):
            yield _matrix(name, a, b, metric_of(before) if name == "R" else ACCURACY)
        elif name == "scores" and a and b and a.keys() == b.keys() and all(_shape(a[k]) == _shape(b[k]) for k in a):
            yield from (_matrix(part, a[part], b[part], METRICS[part]) for part in a if a[part] != b[part])
        elif isinstance(a, dict) and isinstance(b, dict):
            for part in dict.fromkeys([*a, *b]):
                yield from _diff_values(f"{name}.{part}", a.get(part), b.get(part))
        else:
            yield from _diff_values(name, a, b)
    if line := curve_difference(before, after):
        yield line
    yield from note_differences(before, after)


def note_differences(before: Record, after: Record) -> Iterator[str]:
    """Return a line for each note that only one of two records of a trial has."""
    yield from (f"note gone: {_shorten(note)}" for note in before.notes if note not in after.notes)
    yield from (f"new note: {_shorten(note)}" for note in after.notes if note not in before.notes)


def curve_difference(before: Record, after: Record) -> str | None:
    """Describe at how many points two curves of a trial differ on the same samples.

    Return None if they do not differ or if a record has no curve.
    """
    a, b = before.curve, after.curve
    if a is None or b is None or (a.samples, a.metric) != (b.samples, b.metric):
        return None
    distances: list[float] = []
    for old, new in zip(_points_of(a), _points_of(b), strict=False):
        for step in old.keys() & new.keys():
            distances.append(max(abs(x - y) for x, y in zip(old[step], new[step], strict=False)))
    count = sum(distance > 0 for distance in distances)
    amount = _amount(max(distances), a.about) if count else ""
    return f"curve: {count} of {len(distances)} points, by up to {amount}" if count else None


def _points_of(curve: Curve) -> list[dict[int, list[float]]]:
    """Return the metric on each task at each point of each task, by step. Step -1 is after consolidation."""
    return [dict(zip([*curve.steps[task], -1], [*task_values(curve, task), row_after(curve, task)], strict=True))
            for task in range(curve.tasks)]


def setting(before: Record, after: Record) -> Iterator[str]:
    """Return a line for each part of two trials' settings and methods that differs. Seeds are not compared."""
    old, new = (r.trial.model_dump(mode="json", exclude={"seed": True, "weights": {"path"}}) for r in (before, after))
    for name in dict.fromkeys([*old, *new]):
        a, b = (flat(trial.get(name, {})) for trial in (old, new))
        for part in dict.fromkeys([*a, *b]):
            yield from _diff_values(name + part, a.get(part, "absent"), b.get(part, "absent"))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the parts of a nested value by dotted names. Options are directly below the object that has them."""
    if not isinstance(value, dict):
        return {name: value}
    parts: dict[str, Any] = {}
    for part, inner in value.items():
        parts |= flat(inner, name if part == "options" else f"{name}.{part}")
    return parts


def _matrix(name: str, a: Matrix, b: Matrix, metric: Metric) -> str:
    """Describe the largest difference between two matrices, where it is, and how it changes the final mean."""
    distances: dict[tuple[int, int], float] = {}
    for i, (row_a, row_b) in enumerate(zip(a, b, strict=True)):
        for j, (x, y) in enumerate(zip(row_a, row_b, strict=True)):
            distances[i, j] = abs(x - y)
    farthest = max(distances, key=distances.__getitem__)
    cells = sum(distance > 0 for distance in distances.values())
    moment = f"after task {farthest[0]}" if farthest[0] else "before training"
    line = (f"{name}: {cells} of {len(distances)} cells, by up to {_amount(distances[farthest], metric)} "
            f"({moment}, on task {farthest[1] + 1})")
    if name == "R" and len(a) == len(a[0]) + 1:
        old, new = (f"{100 * mean:.2f}" if metric.is_share else f"{mean:.4g}" for mean in map(metrics.acc, (a, b)))
        line += f", {metric.short} {old} -> {new}{' %' * metric.is_share}"
    return line


def _amount(distance: float, metric: Metric) -> str:
    return f"{_points(distance)} points" if metric.is_share else f"{distance:.3g} {metric.unit}".rstrip()


def _points(distance: float) -> str:
    return f"{100 * distance:.2f}" if distance >= 5e-5 else f"{100 * distance:.1g}"


def _shape(matrix: Matrix) -> list[int]:
    return [len(row) for row in matrix]


def _diff_values(name: str, a: Any, b: Any) -> Iterator[str]:
    if a != b:
        yield f"{name}: {_shorten(a)} -> {_shorten(b)}"


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST else f"{text[:_MOST - 3]}..."
