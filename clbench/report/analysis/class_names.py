"""The classes of each task in words, for the notes, the settings and the tooltips of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clbench.report.formatting import clean
from clbench.results.records import Record

LONGEST = 400  # characters of a note on classes; what is longer is folded
POINTED_AT = 20  # names that are shown of a task that is pointed at
LEFT = (8, 3, 2)  # names that are left of a task, the fewer the longer the note would be
Tasks = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class NamedTasks:
    """The names of each task's classes.

    Args:
        tasks: names by task, in the order of the stream.
        seed: whose tasks these are, if seeds differ in them; None if all have the same.
    """

    tasks: Tasks
    seed: int | None = None

    @property
    def hints(self) -> tuple[str, ...]:
        """Return the class names of each task, cut if there are many. Return nothing if seeds differ in them."""
        return tuple(_some(names, POINTED_AT) for names in self.tasks) if self.seed is None else ()

    @property
    def settings(self) -> tuple[str, str]:
        """Return the entry of the settings table with all names."""
        return self._kind, "; ".join(self._in_words(None))

    @property
    def note(self) -> str:
        """Return a note with the names of all tasks, folded to about `LONGEST` characters."""
        for most in (None, *LEFT):
            parts = self._in_words(most)
            if sum(map(len, parts)) <= LONGEST:
                break
        shown = [part for i, part in enumerate(parts) if not i or sum(map(len, parts[:i + 1])) <= LONGEST]
        more = len(parts) - len(shown)
        shown += [f"and {more} more task{'s' * (more > 1)}"] if more else []
        return f"{self._kind}: {'; '.join(shown)}" + ("" if most is None else " (all of them: Settings of the report)")

    @property
    def _kind(self) -> str:
        return "classes" if self.seed is None else f"classes of seed {self.seed} (other seeds have another order)"

    def _in_words(self, most: int | None) -> list[str]:
        """Return a text for each task, or a single one if all have the same names; of each at most so many names."""
        if len(self.tasks) > 1 and len(set(self.tasks)) == 1:
            return [f"in every task {_some(self.tasks[0], most)}"]
        return [f"task {i} {_some(names, most)}" for i, names in enumerate(self.tasks, start=1)]


def _some(names: Sequence[str], most: int | None) -> str:
    """Return at most `most` names as text, with the number of the names left out."""
    if most is None or len(names) <= most + 1:  # "and 1 more" is no shorter than a name
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


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
