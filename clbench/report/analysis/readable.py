"""Settings for readers: methods are called by their labels without recipes, where the rest tells them apart.

A search gives nearly every method a learning rate of its own. `¶` marks such rows and a note has the recipes, so that
names stay short: `lora`, not `lora:recipe.lr=3e-3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from clbench.core.errors import SpecError, unknown
from clbench.core.options import OWN_RECIPE
from clbench.report.analysis.grouping import Setting, by_setting
from clbench.results.records import Record

_RECIPE = re.compile(rf":{re.escape(OWN_RECIPE)}[^:]*")


def readable(records: Sequence[Record], baseline: str | None = None, hint: str = "") -> list[Setting]:
    """Return the settings of records as `by_setting` does, with the names of methods that reports show.

    Args:
        records: all that stand in one report.
        baseline: what methods are held against, by its name in reports or by its whole label.
        hint: where its reader finds the names, for an error.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
        SpecError: no setting has the baseline.
    """
    called = names(records)
    settings = by_setting([record.model_copy(update={"label": called[record.label]}) for record in records])
    if baseline is not None:
        known = dict.fromkeys(m.label for setting in settings for m in setting.methods)
        if (named := baseline if baseline in known else called.get(baseline)) not in known:
            raise SpecError(unknown("method", baseline, known, hint))
        baseline = named
    return [replace(setting, named_baseline=baseline) for setting in settings]


def names(records: Iterable[Record]) -> dict[str, str]:
    """Return what reports call the method of each label: the same in all settings, distinct in each of them."""
    called: dict[str, str] = {}
    rows: dict[tuple[tuple[str, ...], str], set[str]] = {}  # by setting and short name
    for record in records:
        short = called.setdefault(record.label, _RECIPE.sub("", record.label))
        rows.setdefault((record.trial.setting, short), set()).add(record.trial.row)
    shared = {short for (_, short), own in rows.items() if len(own) > 1}
    return {label: label if short in shared else short for label, short in called.items()}
