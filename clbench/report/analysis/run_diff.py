"""Two runs side by side: each method's means in one and in the other, over the seeds that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.report.analysis import notes
from clbench.report.columns import ACC, COMPARISON, Measure, cells
from clbench.report.formatting import NONE, clean
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.records import Record

_COLUMNS = {measure.column.title: measure for measure in COMPARISON}
_DIFFERENCES = ("ACC", "forgetting", "trainable params per task", "bytes kept")
Group = list[Record]


@dataclass(frozen=True)
class Pair:
    """A method's finished records in both runs."""

    before: Group
    after: Group

    @property
    def seeds(self) -> list[int]:
        """Return the seeds that both have."""
        return sorted({r.trial.seed for r in self.before} & {r.trial.seed for r in self.after})

    @property
    def both(self) -> list[tuple[Record, Record]]:
        """Return the two records of each seed that both have."""
        old, new = ({r.trial.seed: r for r in side} for side in (self.before, self.after))
        return [(old[seed], new[seed]) for seed in self.seeds]

    @property
    def differs(self) -> bool:
        """Tell whether a seed's records differ in what the trial gave."""
        return any(a.outcome() != b.outcome() for a, b in self.both)


def pairs(before: Sequence[Record], after: Sequence[Record]) -> list[Pair]:
    """Return the methods that both runs hold: in the same setting, or else alone of that label under its title."""
    old, new = _groups(before), _groups(after)
    found = {key: key for key in old if key in new}
    rest = [_by_name({k: group for k, group in side.items() if k not in found}) for side in (old, new)]
    found |= {key: rest[1][name] for name, key in rest[0].items() if name in rest[1]}
    return [Pair(old[key], new[found[key]]) for key in old if key in found]


def tables(found: Sequence[Pair]) -> list[Table]:
    """Return a table for each title (benchmark, scenario, model) with the difference of each method's figures."""
    titles: dict[str, list[Pair]] = {}
    for pair in found:
        titles.setdefault(notes.title(pair.before[0]), []).append(pair)
    changes = (Column(f"change of {name}", "points" if unit == "percent" else unit)
               for name in _DIFFERENCES for unit in (_COLUMNS[name].column.unit,))
    columns = (Column("seeds", "text"), Column("ACC in A", "percent"), Column("ACC in B", "percent"), *changes,
               Column("training time B / A", "text"))
    return [Table(title, columns, tuple(map(_row, sorted(group, key=lambda p: p.before[0].reference))))
            for title, group in titles.items()]


def _groups(records: Sequence[Record]) -> dict[tuple[str, ...], Group]:
    groups: dict[tuple[str, ...], Group] = {}
    for record in records:
        if record.status == "done":
            groups.setdefault((*record.trial.setting, str(record.trial.method)), []).append(record)
    return groups


def _by_name(groups: dict[tuple[str, ...], Group]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the keys of groups whose title and label no other group has."""
    names = {key: (notes.title(group[0]), clean(group[0].label)) for key, group in groups.items()}
    every = list(names.values())
    return {name: key for key, name in names.items() if every.count(name) == 1}


def _row(pair: Pair) -> Row:
    both, first = pair.both, pair.before[0]
    found = [Cell(str(len(both))), *cells([[ACC.value(r[k], None) for r in both] for k in (0, 1)], ACC.column.unit),
             *(_difference(_COLUMNS[name], both) for name in _DIFFERENCES), _ratio(_COLUMNS["training time"], both)]
    return Row(clean(first.label), tuple(found), reference=first.reference)


def _difference(measure: Measure, both: Sequence[tuple[Record, Record]]) -> Cell:
    values = [(measure.value(a, None), measure.value(b, None)) for a, b in both]
    known = [b - a for a, b in values if a is not None and b is not None]
    return cells([known], measure.column.unit)[0] if len(known) == len(both) else Cell(NONE)


def _ratio(measure: Measure, both: Sequence[tuple[Record, Record]]) -> Cell:
    a, b = ([value for pair in both if (value := measure.value(pair[k], None))] for k in (0, 1))
    return Cell(f"{fmean(b) / fmean(a):.2f}") if both and len(a) == len(b) == len(both) else Cell(NONE)
