"""The titles of settings, which are distinct, and a line on settings that are not part of an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from clbench.core.options import format_value
from clbench.report.analysis import notes
from clbench.report.formatting import clean
from clbench.results.diff import flat
from clbench.results.records import Record

MOST = 3  # differences that a title names, and settings that a line names
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
        apart = [part for part in dict.fromkeys(chain.from_iterable(same))
                 if any(other_facts.get(part) != record_facts.get(part) for other_facts in same)]
        words = [f"{part.rpartition('.')[2].replace('_', ' ')} {written(record_facts.get(part))}"
                 for part in apart[:MOST]]
        distinct_titles.append(clean(", ".join([name, *words])) if len(same) > 1 else name)
    return [f"{title} ({i} of {len(distinct_titles)})" if distinct_titles.count(title) > 1 else title
            for i, title in enumerate(distinct_titles, start=1)]


def describe_other_settings(planned: Iterable[tuple[str, ...]], records: Sequence[Record]) -> list[str]:
    """Return a line on the settings of a folder's records that are not planned; no line for none."""
    others = {record.trial.setting: record for record in records}
    for setting in planned:
        others.pop(setting, None)
    if not others:
        return []
    known = {record.trial.setting: record for record in records}
    names = dict(zip(known, titles([*known.values()]), strict=True))
    other_titles = [names[setting] for setting in others]
    more = f"; {len(other_titles) - MOST} more" if len(other_titles) > MOST else ""
    shown = "; ".join(other_titles[:MOST]) + more
    count = "another setting" if len(other_titles) == 1 else f"{len(other_titles)} other settings"
    return [f"the folder also has results of {count} ({shown}). clbench keeps them, and the report has a "
            "section for each"]


def facts(record: Record) -> dict[str, Any]:
    """Return the parts of a record's setting by their dotted names; weights by their file."""
    trial = record.trial.model_dump(mode="json", include={*PARTS})
    if trial.get("weights"):
        trial["weights"] = trial["weights"]["path"]
    return flat(trial)


def written(value: Any) -> str:
    """Format a value for a title. It is `none` if the setting has no such part."""
    return "none" if value is None else format_value(value)
