"""Names in columns that may mean the same or nothing: groups written as 1 and 1.0, and names such as NA."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from clbench.core.errors import list_names
from clbench.data.own.samples import Labeled, sort_names
from clbench.data.own_options import ColumnOptions, TaskOptions

WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")  # as pandas writes whole numbers of a column with missing values
DOUBTFUL = frozenset(("NA", "N/A", "<NA>", "None", "NULL", "null"))  # missing values, or names, such as Namibia's code


def check_names(train: Labeled, test: Labeled | None, options: TaskOptions
                ) -> tuple[Labeled, Labeled | None, list[str]]:
    """Return both parts of data with columns, each group written in one way, and notes.

    Groups that are written as `1` and as `1.0` are one group, `1`. If all are written in one way, they stay as they
    are, because the choice of held-out groups depends on their names. A note lists names that look like missing values.
    """
    if not isinstance(options, ColumnOptions):  # folders of photos have the names that the user gave them
        return train, test, []
    parts = [train] if test is None else [train, test]
    groups = {group for part in parts for group in part.groups or ()}
    values = {"class": set() if train.classes else {label for part in parts for label in part.labels},
              "task": {task for part in parts for task in part.tasks or ()}, "group": groups}
    doubtful = [f"{name} ({kind})" for kind, names in values.items() for name in sorted(DOUBTFUL & names)]
    notes = [f"names that look like missing values: {list_names(doubtful)}; if they are, remove their rows"] * bool(
        doubtful)
    spellings = defaultdict[str, list[str]](list)
    for group in sort_names(groups):
        spellings[whole[1] if (whole := WHOLE.fullmatch(group)) else group].append(group)
    plain = {group: name for name, forms in spellings.items() if len(forms) > 1 for group in forms}
    if not plain:
        return train, test, notes
    merged = [" / ".join(sorted(forms)) for forms in spellings.values() if len(forms) > 1]
    parts = [replace(part, groups=part.groups and [plain.get(group, group) for group in part.groups]) for part in parts]
    return parts[0], parts[1] if test is not None else None, [
        *notes, f"groups that are the same number, written in several ways, are one group: {list_names(merged)}"]
