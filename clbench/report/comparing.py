"""Paired differences of a setting's methods: to the best one in each report, all pairs or a baseline on demand."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.errors import SpecError, unknown
from clbench.report.columns import ACC, COMPARISON, FORGETTING, INFERENCE, INTRANSIGENCE, MORE_METRICS, Measure
from clbench.report.methods import Setting
from clbench.report.model import Table
from clbench.report.pairs import family, leader, table, undecided, verdict

IN_REPORTS = (ACC, FORGETTING)
MEASURED = {m.column.title: m for m in (*COMPARISON[:3], INFERENCE, *MORE_METRICS, INTRANSIGENCE, COMPARISON[-1])}
Compared = tuple[tuple[str, ...], tuple[Table, ...]]  # sentences, tables


def compare_with_best(setting: Setting) -> Compared:
    """Return what each report says of the differences to the best method, and a table per metric.

    Which method is best is found in the same data, so p-values are corrected over all pairs.
    """
    said: list[tuple[str, str]] = []
    tables = []
    for measure in IN_REPORTS:
        values = setting.compared(measure)
        tests = family(measure.column, values)
        if tests.pairs:
            complete = {label: found for label, found in values.items() if label in setting.eligible}
            best = leader(measure.column, complete or values)
            first = {best: values[best], **values}  # of equal means the first leads
            rank = "the best mean" + ("" if leader(measure.column, first) == best else " of those with all seeds")
            others = [label for label in values if label != best]
            said.append((measure.column.title, verdict(tests, best, others, rank)))
            if against := tests.against(best):
                tables.append(table(f"{measure.column.title}: each method minus {best}, which has {rank}", tests,
                                    against, len(setting.seeds), best))
    return _together(said), tuple(tables)


def compare(setting: Setting, measures: Sequence[Measure], baseline: str | None) -> Compared:
    """Return the differences of all pairs of methods, or of each method to a baseline, a table per metric.

    References take part only as the baseline.
    """
    said: list[tuple[str, str]] = []
    tables = []
    for measure in measures:
        title = measure.column.title
        values = setting.compared(measure, [baseline] if baseline else [])
        tests = family(measure.column, values, baseline)
        if (baseline is not None and baseline not in values) or not tests.pairs:
            said.append((title, "nothing to compare" + (f" with {baseline}" if baseline else "")))
            continue
        if (why := undecided(tests)) is not None:
            said.append((title, why))
        against = f"each method minus {baseline}" if baseline else "all pairs of methods"
        tables.append(table(f"{title}: {against}", tests, tests.pairs, len(setting.seeds), baseline))
    return _together(said), tuple(tables)


def _together(said: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return `metric: what is said of it`, metrics of which the same is said together."""
    titles: dict[str, list[str]] = {}
    for title, text in said:
        titles.setdefault(text, []).append(title)
    return tuple(f"{', '.join(found)}: {text}" for text, found in titles.items())


def measures(names: Sequence[str]) -> list[Measure]:
    """Return the measured figures of these names.

    Raises:
        SpecError: a name is none of them.
    """
    found = {title.lower(): measure for title, measure in MEASURED.items()}
    for name in names:
        if name.lower() not in found:
            raise SpecError(unknown("metric", name, MEASURED, "clbench compare --help"))
    return [found[name.lower()] for name in names]
