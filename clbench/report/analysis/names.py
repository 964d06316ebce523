"""Names in reports: distinct titles of settings, a line on settings of other experiments, and the classes of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from clbench.core.errors import list_names
from clbench.core.options import format_value
from clbench.experiment.trial import PlannedTrial
from clbench.report.analysis import notes
from clbench.report.formatting import clean, plural
from clbench.results.diff import flat
from clbench.results.records import Record

MOST = 3  # differences that a title names, and settings that a line names
PARTS = ("benchmark", "model", "weights", "recipe", "preprocessing", "validation", "arrival")  # of a trial's setting
LONGEST = 400  # characters of a note on classes; a longer note is cut
POINTED_AT = 20  # class names that are shown if the pointer is on a task
LEFT = (8, 3, 2)  # class names per task in a note that is cut; fewer if it is still too long
Tasks = tuple[tuple[str, ...], ...]


def titles(records: Sequence[Record | PlannedTrial]) -> list[str]:
    """Return a distinct title for each setting: `..., lr 0.01` if the learning rate differs.

    If the difference cannot be written in a few words, the titles are numbered.

    Args:
        records: one record or planned trial of each setting.
    """
    plain_titles = [notes.title(record) for record in records]
    distinct_titles = []
    for record, name in zip(records, plain_titles, strict=True):
        group_facts = [facts(other) for other, other_name in zip(records, plain_titles, strict=True)
                       if other_name == name]
        record_facts = facts(record)
        differing_parts = [part for part in dict.fromkeys(chain.from_iterable(group_facts))
                           if any(other_facts.get(part) != record_facts.get(part) for other_facts in group_facts)]
        words = [f"{part.rpartition('.')[2].replace('_', ' ')} {format_part(record_facts.get(part))}"
                 for part in differing_parts[:MOST]]
        distinct_titles.append(clean(", ".join([name, *words])) if len(group_facts) > 1 else name)
    return [f"{title} ({i} of {len(distinct_titles)})" if distinct_titles.count(title) > 1 else title
            for i, title in enumerate(distinct_titles, start=1)]


def describe_other_settings(planned: Iterable[PlannedTrial], records: Sequence[Record]) -> list[str]:
    """Return a line on the settings of a folder's records that are not planned, or no line if there are none."""
    planned_settings = {trial.trial.environment: trial for trial in planned}
    all_settings = {record.trial.environment: record for record in records} | planned_settings
    names = zip(all_settings, titles([*all_settings.values()]), strict=True)
    other_titles = [title for setting, title in names if setting not in planned_settings]
    if not other_titles:
        return []
    suffix = f"; {len(other_titles) - MOST} more" if len(other_titles) > MOST else ""
    titles_text = "; ".join(other_titles[:MOST]) + suffix
    count = "another setting" if len(other_titles) == 1 else f"{len(other_titles)} other settings"
    return [f"the folder also has results of {count} ({titles_text}). clbench keeps them, and the report has a "
            "section for each"]


def facts(record: Record | PlannedTrial) -> dict[str, Any]:
    """Return the parts of a record's setting by their dotted names. The value of weights is their path."""
    trial = record.trial.model_dump(mode="json", include={*PARTS})
    if trial.get("weights"):
        trial["weights"] = trial["weights"]["path"]
    return flat(trial)


def format_part(value: Any) -> str:
    """Format a value for a title. It is `none` if the setting has no such part."""
    return "none" if value is None else format_value(value)


@dataclass(frozen=True)
class NamedTasks:
    """The names of each task's classes.

    Args:
        tasks: names by task, in the order of the stream.
        seed: the seed that has these names, if seeds differ in them; None if all seeds have the same.
    """

    tasks: Tasks
    seed: int | None = None

    @property
    def hints(self) -> tuple[str, ...]:
        """Return the class names of each task, cut if there are many. Return nothing if seeds differ in them."""
        return tuple(_format_some(names, POINTED_AT) for names in self.tasks) if self.seed is None else ()

    @property
    def settings(self) -> tuple[str, str]:
        """Return the entry of the settings table with all names."""
        return self._kind, "; ".join(self._describe(None))

    @property
    def note(self) -> str:
        """Return a note with the names of all tasks, cut to about `LONGEST` characters."""
        for limit in (None, *LEFT):
            parts = self._describe(limit)
            if sum(map(len, parts)) <= LONGEST:
                break
        shown_parts = [part for i, part in enumerate(parts) if not i or sum(map(len, parts[:i + 1])) <= LONGEST]
        omitted_count = len(parts) - len(shown_parts)
        shown_parts += [f"and {plural(omitted_count, 'more task')}"] if omitted_count else []
        return f"{self._kind}: {'; '.join(shown_parts)}" + (
            "" if limit is None else " (all of them: Settings of the report)")

    @property
    def _kind(self) -> str:
        return "classes" if self.seed is None else f"classes of seed {self.seed} (other seeds have another order)"

    def _describe(self, most: int | None) -> list[str]:
        """Return a text with at most `most` names for each task, or a single text if all have the same names."""
        if len(self.tasks) > 1 and len(set(self.tasks)) == 1:
            return [f"in every task {_format_some(self.tasks[0], most)}"]
        return [f"task {i} {_format_some(names, most)}" for i, names in enumerate(self.tasks, start=1)]


def _format_some(names: Sequence[str], most: int | None) -> str:
    """Return at most `most` names as text, with the number of the names left out."""
    if most is None or len(names) <= most + 1:  # "and 1 more" is no shorter than a name
        most = len(names)
    return list_names(names, most)


def named_tasks(records: Sequence[Record]) -> NamedTasks | None:
    """Return the class names of the tasks from the records of a section, or None if the records have none."""
    seed_of: dict[Tasks, int] = {}
    for record in records:
        if record.stream and record.stream.class_names:
            tasks = tuple(tuple(map(clean, names)) for names in record.stream.class_names)
            seed_of.setdefault(tasks, record.trial.seed)
    if not seed_of:
        return None
    tasks, seed = next(iter(seed_of.items()))
    return NamedTasks(tasks, seed if len(seed_of) > 1 else None)
