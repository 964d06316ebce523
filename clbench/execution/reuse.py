"""Check which results of a run folder are stale or lack outputs, before any of them is reused.

Outputs beyond R, such as exact match or a probe, are not part of a trial's key. If a record lacks a requested output,
its trial is trained again. Such outputs do not affect training, so the other results stay the same.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from clbench.core import identity
from clbench.core.errors import ClbenchError, PluginError, StaleError
from clbench.core.objective import objective_of
from clbench.core.registry import Registry
from clbench.core.scenario import scenario_rules
from clbench.data.contents import check_data
from clbench.data.own.instructions import hashes_of, read_general
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Trial
from clbench.results import provenance
from clbench.results.diff import add_outputs, differences
from clbench.results.provenance import CodeNow, changed_parts, describe_changes, group_by_reason, packages_of
from clbench.results.records import DIGITS, Record, item_ids, matrices, metric_of
from clbench.results.store import ITEMS, MODEL, STATE

SAVED_FILES = {"nothing": (), "models": (MODEL,), "state": (MODEL, STATE)}  # files by `--keep`


def add_missing_outputs(report: StalenessReport, planned: Sequence[PlannedTrial], records: Mapping[str, Record],
                        settings: ExecutionSettings, artifacts: Path, keeps_stale: bool = False) -> None:
    """Add to the report which current records lack outputs that the settings ask for; their trials run again.

    `artifacts` has a subfolder for the saved files of each trial, named by its key. If stale records are kept, a note
    says which outputs they lack.
    """
    general = hashes_of(read_general(settings.general))
    stale_counts: Counter[str] = Counter()  # number of stale records by what they lack
    for planned_trial in planned:
        record = records.get(planned_trial.trial.key)
        if record is None or not (flags := missing_outputs(record, settings, artifacts / record.key, general)):
            continue
        if record.key not in report.reasons:
            report.lacking[record.key] = flags
        elif keeps_stale:
            stale_counts[flags] += 1
    for flags, count in stale_counts.items():
        report.notes.append(f"{count} stale {'results are' if count > 1 else 'result is'} kept without {flags}: "
                            "training again would give another result (--rerun does it)")
    for flags, count in Counter(report.lacking.values()).items():
        results, again = ("results lack", "them again; their") if count > 1 else ("result lacks", "it again; its")
        report.notes.append(f"{count} {results} {flags}, which this run needs. clbench trains {again} other results "
                            "stay the same")


def missing_outputs(record: Record, settings: ExecutionSettings, folder: Path, general: Mapping[str, str]) -> str:
    """Return the flags that ask for outputs that a record lacks; empty if it has all of them, or if it failed.

    Every run asks for all metrics of the objective, and for the scores of single items if their file is lost.

    Args:
        record: the record of a trial.
        settings: the execution settings of the run.
        folder: the folder with the saved files of the trial.
        general: hashes of the files of general texts in the settings, by name.
    """
    if record.status == "failed" or record.stream is None:
        return ""
    stream, interval, samples, flags = record.stream, settings.evaluate_every, settings.evaluate_samples, []
    if interval is not None and not (record.curve and record.curve.serves(interval, samples, stream.test_samples)):
        flags.append(f"--evaluate-every {interval} (on {samples:,} samples a task)")
    if record.status == "done":
        rules, classes = scenario_rules(record.trial.scenario), list(chain.from_iterable(stream.classes))
        if settings.probe and not rules.task_given and record.probe is None:
            flags.append("--probe")
        divides = rules.seen_compete and len(classes) == len(set(classes))
        if settings.anatomy == "each" and divides and len(record.errors) < len(stream.classes):
            flags.append("--anatomy each")
        for name, digest in general.items():
            if record.general_files.get(name) != digest:
                flags.append(f"--general {name}")
        flags += [m.label for m in objective_of(metric_of(record)).metrics if m.name not in matrices(record)]
        flags += [f"scores of items ({record.key}{ITEMS})"] * (record.item_scores is not None and not item_ids(record))
        if not all((folder / name).is_file() for name in SAVED_FILES[settings.keep]):
            flags.append(f"--keep {settings.keep}")
    return " and ".join(flags)


def note_on_external(record: Record, reasons: Sequence[str], settings: ExecutionSettings, artifacts: Path) -> str:
    """Return what the user should know about a record that another process has written during a run; empty if nothing.

    `reasons` say why it is stale; empty if it is not. `artifacts` is that of `add_missing_outputs`.
    """
    start = f"another clbench process has run {record.name} "
    if reasons:
        return f"{start}with other code ({' and '.join(reasons)}). clbench keeps the result and marks it"
    flags = missing_outputs(record, settings, artifacts / record.key, hashes_of(read_general(settings.general)))
    return f"{start}without {flags}, which this run asks for; run the same command again to add it" if flags else ""


def merge_records(report: StalenessReport, before: Record | None, after: Record, note: Callable[[str], None]) -> Record:
    """Return the record to store for a trial that has run, merged with its earlier record if outputs were missing.

    Outputs that only the earlier record has are kept, because both trainings give the same network. If the results
    differ, the new record replaces the earlier one, and `note` reports the differences. If the new trial failed, the
    earlier record is kept.
    """
    if before is None or after.key not in report.lacking:
        return after
    if after.status == "failed":
        note(f"{after.name} failed when it was trained again, so its earlier record is kept")
        return before
    if (before.status, before.R, before.task_inference) == (after.status, after.R, after.task_inference):
        curve = after.curve or before.curve  # a finer earlier curve may have fewer samples than this run requests
        return add_outputs(after, before).model_copy(update={"curve": curve})
    problem = (f"{after.name}, TRAINED ONCE MORE for {report.lacking[after.key]}, GAVE ANOTHER RESULT "
               f"({'; '.join(differences(before, after))}): code, libraries or machine are not what they were; the new "
               "record takes the place of the old one")
    note(problem)
    return after.model_copy(update={"notes": [*after.notes, problem]})


OnStale = Literal["refuse", "rerun", "keep"]  # what to do with stale results
Note = Callable[[str], None]  # gets messages that the user should read immediately
LONG = 2.0  # seconds of reading data after which a message is shown


def ignore_message(text: str) -> None:
    """Ignore a message."""


@dataclass
class StalenessReport:
    """The stale records with the reasons, the records that lack outputs, and notes for the user."""

    reasons: dict[str, list[str]] = field(default_factory=dict)  # by key: why the record is stale
    lacking: dict[str, str] = field(default_factory=dict)  # by key: the flags that ask for missing outputs
    notes: list[str] = field(default_factory=list)

    def mark_current(self, key: str) -> None:
        """Note that a trial has a record that is not stale and lacks nothing."""
        self.reasons.pop(key, None)
        self.lacking.pop(key, None)


def check_stale(planned: Sequence[PlannedTrial], records: Mapping[str, Record], registry: Registry,
                data_dir: Path, verify: bool = False, note: Note = ignore_message) -> StalenessReport:
    """Compare the records of planned trials with the installed code and the present data.

    Older records without a hash of their code or data are not stale. Records of another version of clbench are not
    stale either, but a note names this version. If there are records of a benchmark that is not cached, the benchmark
    is built to hash its data. With `verify`, all data files are read. `note` gets a message if this takes long.

    Raises:
        PluginError: code was edited after this process had imported it.
    """
    refuse_edited([p.trial for p in planned], registry)
    report = StalenessReport()
    finished_records = [record for p in planned if (record := records.get(p.trial.key)) and record.status != "failed"]
    current_code = CodeNow(registry)
    data = _data_of([r for r in finished_records if "benchmark" not in changed_parts(r, current_code.of(r.trial))],
                    registry, data_dir, report.notes, verify, note)
    for record in finished_records:
        if reasons := describe_changes(record, current_code.of(record.trial), data.get(record.key, "")):
            report.reasons[record.key] = reasons
    report.notes += other_clbench(finished_records)
    return report


def check_inputs(trials: Sequence[Trial], settings: ExecutionSettings, registry: Registry) -> None:
    """Check that the data of the trials to run are available, before anything slow is imported or started.

    Nothing is checked for a cluster, because its nodes may have data that this machine does not have.

    Raises:
        DataError: data are missing or obviously wrong.
    """
    if settings.executor == "local":
        for benchmark in {str(t.benchmark): t.benchmark for t in trials}.values():
            check_data(benchmark, settings.data_dir, registry)


def refuse_edited(trials: Sequence[Trial], registry: Registry) -> None:
    """Raise a `PluginError` if the code of trials was edited after this process had imported it."""
    names: dict[str, None] = {}
    for trial in trials:
        for packages in packages_of(trial, registry).values():
            names.update(dict.fromkeys(packages))
    if edited := identity.list_edited(*names):
        raise PluginError(f"{' and '.join(edited)} {'was' if len(edited) == 1 else 'were'} edited after this Python "
                          "process imported it, so the old code would run: restart Python")


def refusal(stale: Mapping[str, list[str]], records: Mapping[str, Record], folder: Path) -> StaleError:
    """Return the error that lists the stale results and the possible remedies."""
    lines = group_by_reason((records[key], reasons) for key, reasons in stale.items())
    results, verb, pronoun = ("results", "are", "them") if len(stale) > 1 else ("result", "is", "it")
    diverged = sum(records[key].status == "diverged" for key in stale)
    remark = f" ({diverged} diverged)" if diverged else ""
    return StaleError("\n".join([f"{len(stale)} {results} in {folder}{remark} {verb} stale, because code or data have "
                                 f"changed since, so nothing was trained. Use --rerun to train {pronoun} again, or "
                                 f"--keep-stale to keep {pronoun}, marked in the table (in Python: stale = \"rerun\" "
                                 "or \"keep\")", *lines]))


def other_clbench(records: Sequence[Record]) -> list[str]:
    """Return a note on results of another version or commit of clbench itself, which are reused anyway."""
    if not records:
        return []
    current_version = provenance.versions()["clbench"], provenance.git_commit()
    counts = Counter((r.provenance.versions.get("clbench", "unknown"), r.provenance.git) for r in records)
    counts.pop(current_version, None)
    if not counts:
        return []
    names = ", ".join(_clbench(*made_by) for made_by in counts)
    results, pronoun = ("results were", "them") if (total := sum(counts.values())) > 1 else ("result was", "it")
    return [f"{total} {results} made by {names}, and this is {_clbench(*current_version)}. clbench keeps {pronoun}"]


def _clbench(version: str, commit: str | None) -> str:
    if not commit:
        return f"clbench {version}"
    commit, plus, dirty = commit.partition("+")
    return f"clbench {version} at commit {commit[:10]}{plus}{dirty}"


def _data_of(records: Sequence[Record], registry: Registry, data_dir: Path, notes: list[str],
             verify: bool, note: Note) -> dict[str, str]:
    """Return the hash of the present data by the key of each record that contains a hash of its data."""
    with_data = [r for r in records if r.stream and r.stream.data]
    if not with_data:
        return {}
    from clbench.data import stream_cache

    digests: dict[str, str] = {}
    by_benchmark: dict[tuple[str, int], str] = {}
    for record in with_data:
        benchmark = record.trial.benchmark
        seed = record.trial.seed if stream_cache.depends_on_seed(benchmark, registry) else 0
        if (str(benchmark), seed) not in by_benchmark:
            by_benchmark[str(benchmark), seed] = _digest(record.trial, seed, data_dir, registry, notes,
                                                                verify, note)
        digests[record.key] = by_benchmark[str(benchmark), seed]
    return digests


def _digest(trial: Trial, seed: int, data_dir: Path, registry: Registry, notes: list[str], verify: bool,
            note: Note) -> str:
    """Return the hash of a benchmark's data, from the header of its cached stream or by reading the data."""
    from clbench.data import stream_cache

    began = time.monotonic()
    aim = f"reading {trial.benchmark.name}, to know whether its results still stand"
    try:
        with _report_if_long(aim, note):
            if cached_digest := stream_cache.known_digest(trial.benchmark, seed, data_dir, registry, verify):
                return cached_digest[:DIGITS]
            from clbench.data.datasets import without_downloads
            from clbench.data.stream import read_benchmark

            with without_downloads(), _forgetting(packages_of(trial, registry).get("benchmark", ())):
                digest = read_benchmark(trial.benchmark, seed, data_dir, registry, verify).digest[:DIGITS]
    except ClbenchError as error:
        notes.append(f"whether the data of {trial.benchmark.name} are still those of its results is not known: {error}")
        return ""
    if (seconds := time.monotonic() - began) > LONG:
        notes.append(f"{aim}, took {seconds:.1f} s")
    return digest


@contextmanager
def _report_if_long(aim: str, note: Note) -> Iterator[None]:
    """Report the work inside the block if it takes longer than `LONG` seconds."""
    timer = threading.Timer(LONG, note, [f"{aim} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _forgetting(packages: Sequence[str]) -> Iterator[None]:
    """Unload modules of packages that are imported inside the block, because they may be edited before the run."""
    modules_before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - modules_before:
            if any(name == package or name.startswith(f"{package}.") for package in packages):
                del sys.modules[name]
