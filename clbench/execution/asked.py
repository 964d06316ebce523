"""What a run asks for beside R: facts that no key has, so that a finished record may lack them.

Such a trial is trained once more. Training is the same with and without them, so the new record gives what the old one
gave, and these facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clbench.core.scenario import scenario_rules
from clbench.execution.reuse import Standing
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial
from clbench.report.analysis.titles import titles
from clbench.results.diff import differences
from clbench.results.records import Record
from clbench.results.store import MODEL, STATE

KEPT = {"nothing": (), "models": (MODEL,), "state": (MODEL, STATE)}  # files by `--keep`

SHOWN = 3  # settings that a line names


def ask(standing: Standing, planned: Sequence[PlannedTrial], records: Mapping[str, Record],
        settings: ExecutionSettings, artifacts: Path) -> None:
    """Find the records that stand but lack what the settings ask for; they are to be made once more.

    `artifacts` has a folder for each trial, by its key, with the files that were kept of it.
    """
    for one in planned:
        record = records.get(one.trial.key)
        if record is not None and record.key not in standing.reasons and (
                asked := unanswered(record, settings, artifacts / record.key)):
            standing.lacking[record.key] = asked
    for asked, count in Counter(standing.lacking.values()).items():
        standing.notes.append(f"{count} result{'s were' if count > 1 else ' was'} made without {asked}, which this run "
                              "asks for. clbench trains them again; their accuracies stay the same")


def told_of_others(planned: Sequence[PlannedTrial], records: Sequence[Record]) -> list[str]:
    """Return a line on the settings that a folder has results of beside those of an experiment, if there are any."""
    own = {one.trial.setting: one.trial for one in planned}
    others = {record.trial.setting: record for record in records if record.trial.setting not in own}
    if not others:
        return []
    known = {record.trial.setting: record for record in records}
    names = dict(zip(known, titles([*known.values()]), strict=True))
    found = [names[setting] for setting in others]
    shown = "; ".join(found[:SHOWN]) + (f"; {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    count = "another setting" if len(found) == 1 else f"{len(found)} other settings"
    return [f"the folder also has results of {count} ({shown}). clbench keeps them, and the report has a "
            "section for each"]


def unanswered(record: Record, settings: ExecutionSettings, folder: Path) -> str:
    """Return the settings that ask for what a record has not, as flags; empty if it has all of it, or failed.

    `folder` has the files that were kept of the trial.
    """
    if record.status == "failed" or record.stream is None:
        return ""
    stream, every, samples, asked = record.stream, settings.evaluate_every, settings.evaluate_samples, []
    if every is not None and not (record.curve and record.curve.serves(every, samples, stream.test_samples)):
        asked.append(f"--evaluate-every {every} (on {samples:,} samples a task)")
    if record.status == "done":
        rules, classes = scenario_rules(record.trial.scenario), [c for task in stream.classes for c in task]
        if settings.probe and not rules.task_given and record.probe is None:
            asked.append("--probe")
        divides = rules.seen_compete and len(classes) == len(set(classes))
        if settings.anatomy == "each" and divides and len(record.errors) < len(stream.classes):
            asked.append("--anatomy each")
        if not all((folder / name).is_file() for name in KEPT[settings.keep]):
            asked.append(f"--keep {settings.keep}")
    return " and ".join(asked)


def renewed(standing: Standing, before: Record | None, after: Record, note: Callable[[str], None]) -> Record:
    """Return the record to keep of a trial that has run; where it ran once more, tell what else has changed.

    What only the old record has is kept, since both are of the same networks.
    """
    if before is None or after.key not in standing.lacking:
        return after
    if after.status == "failed":
        note(f"{after.name} failed when it was trained again, so its earlier record is kept")
        return before
    if (before.status, before.R, before.task_inference) == (after.status, after.R, after.task_inference):
        return after.model_copy(update={"curve": after.curve or before.curve, "probe": after.probe or before.probe,
                                        "errors": max(after.errors, before.errors, key=len)})
    problem = (f"{after.name}, TRAINED ONCE MORE for {standing.lacking[after.key]}, GAVE ANOTHER RESULT "
               f"({'; '.join(differences(before, after))}): code, libraries or machine are not what they were; the new "
               "record takes the place of the old one")
    note(problem)
    return after.model_copy(update={"notes": [*after.notes, problem]})
