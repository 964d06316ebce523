"""Compare two runs: the means of each method in both runs over the seeds that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.report.analysis import notes
from clbench.report.analysis.families import have_same_items
from clbench.report.columns import BYTES, TIME, TRAINABLE, Measure, cell_of, cells, find_tested
from clbench.report.formatting import NONE, clean, difference_unit
from clbench.report.metric_columns import final_of, measures_of
from clbench.report.model import Cell, Column, Row, Table, Unit
from clbench.results.items import cross
from clbench.results.records import Record, item_scores, metrics_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Group = list[Record]


@dataclass(frozen=True)
class MethodPair:
    """The records of one method with a result, from two runs."""

    before: Group
    after: Group

    @property
    def seeds(self) -> list[int]:
        """Return the seeds that both runs have."""
        return sorted({r.trial.seed for r in self.before} & {r.trial.seed for r in self.after})

    @property
    def both(self) -> list[tuple[Record, Record]]:
        """Return the two records of each seed that both runs have."""
        old, new = ({r.trial.seed: r for r in side} for side in (self.before, self.after))
        return [(old[seed], new[seed]) for seed in self.seeds]

    @property
    def differs(self) -> bool:
        """Return whether the two records of some seed have different outcomes."""
        return any(a.outcome() != b.outcome() for a, b in self.both)


def pairs(before: Sequence[Record], after: Sequence[Record]) -> list[MethodPair]:
    """Return the methods that both runs contain.

    A method is paired with itself in the same setting. If the other run lacks its setting, it is paired with the method
    of the same label and metric in a setting of the same title (benchmark, scenario, model), if it is unique there.
    """
    old, new = _groups(before), _groups(after)
    partner = {key: key for key in old if key in new}
    unpaired_old, unpaired_new = (_map_names({key: group for key, group in side.items() if key not in partner})
                                  for side in (old, new))
    partner |= {key: unpaired_new[name] for name, key in unpaired_old.items() if name in unpaired_new}
    return [MethodPair(old[key], new[partner[key]]) for key in old if key in partner]


def tables(pairs: Sequence[MethodPair]) -> list[Table]:
    """Return a table for each title (benchmark, scenario, model) with the change of each method's values."""
    by_title: dict[str, list[MethodPair]] = {}
    for pair in pairs:
        by_title.setdefault(notes.title(pair.before[0]), []).append(pair)
    return [_table(title, sorted(group, key=lambda p: p.before[0].reference)) for title, group in by_title.items()]


def _table(title: str, group: Sequence[MethodPair]) -> Table:
    method_cells = [(pair.before[0], _cells(pair)) for pair in group]
    rows = (Row(clean(record.label), tuple(by_column.values()), reference=record.reference)
            for record, by_column in method_cells)
    return Table(title, tuple(method_cells[0][1]), tuple(rows))


def _groups(records: Sequence[Record]) -> dict[tuple[str, ...], Group]:
    groups: dict[tuple[str, ...], Group] = {}
    for record in records:
        if record.status == "done":
            groups.setdefault((*record.trial.environment, record.trial.method_config), []).append(record)
    return groups


def _map_names(groups: dict[tuple[str, ...], Group]) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return the keys of the groups whose title, metric and label are unique, by these three."""
    names = {key: (notes.title(group[0]), metrics_of(group)[0].name, clean(group[0].label))
             for key, group in groups.items()}
    all_names = list(names.values())
    return {name: key for key, name in names.items() if all_names.count(name) == 1}


def _cells(pair: MethodPair) -> dict[Column, Cell]:
    """Return the cells of a method's row, by column."""
    record_pairs = pair.both
    metric = metrics_of(pair.before)[0]
    final = final_of(metric)
    title, unit = final.column.title, final.column.unit
    before, after = cells([[final.value(records[k], None) for records in record_pairs] for k in (0, 1)], unit)
    changes = {m: _change(m, record_pairs) for m in (*find_tested((), measures_of(metric)), TRAINABLE, BYTES)}
    if len(record_pairs) > 1 and have_same_items([*chain.from_iterable(record_pairs)]):
        old, new = ([item_scores(records[k], metric) for records in record_pairs] for k in (0, 1))
        differences = [b - a for a, b in zip(old, new, strict=True) if a is not None and b is not None]
        before, after, changes[final] = (_over_items(cell, scores, unit) for cell, scores in (
            (before, old), (after, new), (changes[final], differences)))
    return {Column("seeds", "text"): Cell(str(len(record_pairs))),
            Column(f"{title} in A", unit): before, Column(f"{title} in B", unit): after,
            **{Column(f"change of {m.column.title}", difference_unit(m.column.unit)): cell
               for m, cell in changes.items()},
            Column(f"{TIME.column.title} B / A", "text"): _time_ratio(record_pairs)}


def _over_items(cell: Cell, scores: Sequence[npt.NDArray[np.float32] | None], unit: Unit) -> Cell:
    """Return a cell with the interval over seeds and test items, given the scores of the items with each seed."""
    values, known_scores = [v for v in cell.values if v is not None], [s for s in scores if s is not None]
    if not len(values) == len(known_scores) == len(scores):
        return cell
    return cell_of(cross(values, known_scores).interval, unit, values)


def _change(measure: Measure, both: Sequence[tuple[Record, Record]]) -> Cell:
    values = [(measure.value(a, None), measure.value(b, None)) for a, b in both]
    differences = [b - a for a, b in values if a is not None and b is not None]
    return cells([differences], measure.column.unit)[0] if len(differences) == len(both) else Cell(NONE)


def _time_ratio(both: Sequence[tuple[Record, Record]]) -> Cell:
    a, b = ([value for pair in both if (value := TIME.value(pair[k], None))] for k in (0, 1))
    return Cell(f"{fmean(b) / fmean(a):.2f}") if both and len(a) == len(b) == len(both) else Cell(NONE)
