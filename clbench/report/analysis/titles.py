"""The titles of a report's sections. If settings would share a title, their differences are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clbench.core.options import format_value
from clbench.report.analysis import notes
from clbench.report.formatting import clean
from clbench.results.diff import flat
from clbench.results.records import Record

MOST = 3  # differences that a title names
PARTS = ("benchmark", "model", "weights", "recipe", "preprocessing", "validation", "arrival")  # of a trial's setting


def titles(records: Sequence[Record]) -> list[str]:
    """Return a distinct title for each setting: `..., lr 0.01` if the learning rate differs.

    If the difference cannot be written in a few words, the titles are numbered.

    Args:
        records: one record of each setting.
    """
    plain = [notes.title(record) for record in records]
    distinct_titles = []
    for record, name in zip(records, plain, strict=True):
        same = [facts(other) for other, known in zip(records, plain, strict=True) if known == name]
        record_facts = facts(record)
        apart = [part for part in dict.fromkeys(part for one in same for part in one)
                 if any(one.get(part) != record_facts.get(part) for one in same)]
        words = [f"{part.rpartition('.')[2].replace('_', ' ')} {written(record_facts.get(part))}"
                 for part in apart[:MOST]]
        distinct_titles.append(clean(", ".join([name, *words])) if len(same) > 1 else name)
    return [f"{title} ({i} of {len(distinct_titles)})" if distinct_titles.count(title) > 1 else title
            for i, title in enumerate(distinct_titles, start=1)]


def facts(record: Record) -> dict[str, Any]:
    """Return the parts of a record's setting by their dotted names; weights by their file."""
    trial = record.trial.model_dump(mode="json", include={*PARTS})
    if trial.get("weights"):
        trial["weights"] = trial["weights"]["path"]
    return flat(trial)


def written(value: Any) -> str:
    """Format a value for a title. It is `none` if the setting has no such part."""
    return "none" if value is None else format_value(value)
