"""Outputs that a run asks for in addition to R, such as a probe, and that a finished record may lack.

They are not part of a trial's key. A trial whose record lacks them is trained again. Training is the same with and
without them, so the new record has the same results as the old one, and these outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from clbench.core.scenario import scenario_rules
from clbench.execution.reuse import StalenessReport
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial
from clbench.results.diff import differences
from clbench.results.records import Record
from clbench.results.store import MODEL, STATE

SAVED_FILES = {"nothing": (), "models": (MODEL,), "state": (MODEL, STATE)}  # files by `--keep`


def add_missing_outputs(report: StalenessReport, planned: Sequence[PlannedTrial], records: Mapping[str, Record],
                        settings: ExecutionSettings, artifacts: Path) -> None:
    """Add to the report which current records lack outputs that the settings ask for; their trials run again.

    `artifacts` has a folder with the saved files of each trial, by its key.
    """
    for planned_trial in planned:
        record = records.get(planned_trial.trial.key)
        if record is not None and record.key not in report.reasons and (
                flags := missing_outputs(record, settings, artifacts / record.key)):
            report.lacking[record.key] = flags
    for flags, count in Counter(report.lacking.values()).items():
        report.notes.append(f"{count} result{'s were' if count > 1 else ' was'} made without {flags}, which this run "
                            "asks for. clbench trains them again; their accuracies stay the same")


def missing_outputs(record: Record, settings: ExecutionSettings, folder: Path) -> str:
    """Return the flags that ask for outputs that a record lacks; empty if it has all of them, or if it failed.

    `folder` has the saved files of the trial.
    """
    if record.status == "failed" or record.stream is None:
        return ""
    stream, every, samples, flags = record.stream, settings.evaluate_every, settings.evaluate_samples, []
    if every is not None and not (record.curve and record.curve.serves(every, samples, stream.test_samples)):
        flags.append(f"--evaluate-every {every} (on {samples:,} samples a task)")
    if record.status == "done":
        rules, classes = scenario_rules(record.trial.scenario), list(chain.from_iterable(stream.classes))
        if settings.probe and not rules.task_given and record.probe is None:
            flags.append("--probe")
        divides = rules.seen_compete and len(classes) == len(set(classes))
        if settings.anatomy == "each" and divides and len(record.errors) < len(stream.classes):
            flags.append("--anatomy each")
        if not all((folder / name).is_file() for name in SAVED_FILES[settings.keep]):
            flags.append(f"--keep {settings.keep}")
    return " and ".join(flags)


def merge_records(report: StalenessReport, before: Record | None, after: Record, note: Callable[[str], None]) -> Record:
    """Return the record to store for a trial that has run, merged with its earlier record if it ran again.

    Outputs that only the old record has are kept, because both records are of the same networks. If the results differ,
    the new record replaces the old one, and `note` reports the differences.
    """
    if before is None or after.key not in report.lacking:
        return after
    if after.status == "failed":
        note(f"{after.name} failed when it was trained again, so its earlier record is kept")
        return before
    if (before.status, before.R, before.task_inference) == (after.status, after.R, after.task_inference):
        return after.model_copy(update={"curve": after.curve or before.curve, "probe": after.probe or before.probe,
                                        "errors": max(after.errors, before.errors, key=len)})
    problem = (f"{after.name}, TRAINED ONCE MORE for {report.lacking[after.key]}, GAVE ANOTHER RESULT "
               f"({'; '.join(differences(before, after))}): code, libraries or machine are not what they were; the new "
               "record takes the place of the old one")
    note(problem)
    return after.model_copy(update={"notes": [*after.notes, problem]})
