"""What the figures of a page show, as tables with a row for each method: the same cells as all other tables have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from clbench import metrics
from clbench.report.columns import ACC, cell
from clbench.report.model import Cell, Column, Result, Row, Table, Unit
from clbench.report.text import NONE

Values = Sequence[float | None]


def accuracy_over_tasks(results: Sequence[Result]) -> Table:
    """Return the mean accuracy over the tasks seen so far, after each task."""
    return _table("Accuracy over tasks", "after task {}", "percent", results,
                  lambda r: [[fmean(row[:i]) for i, row in enumerate(R) if i] for R in r.R])


def forgetting_per_task(results: Sequence[Result]) -> Table:
    """Return what was forgotten of each task but the last, see `metrics.forgetting_per_task`."""
    return _table("Forgetting per task", "task {}", "points", results,
                  lambda r: [metrics.forgetting_per_task(R) for R in r.R])


def parameters_over_tasks(results: Sequence[Result]) -> Table:
    """Return the parameters kept after each task."""
    return _table("Parameters kept after each task", "after task {}", "count", results, lambda r: r.parameters)


def accuracy_by_seed(results: Sequence[Result], seeds: Sequence[int]) -> Table:
    """Return ACC of each seed, and last its mean; a seed without a result has a dash."""
    rows = []
    for r in results:
        found = dict(zip(r.seeds, map(metrics.acc, r.R), strict=True))
        single = [cell([found.get(seed)], ACC.column.unit) for seed in seeds]
        rows.append(Row(r.label, (*(_exact(c) for c in single), cell(list(found.values()), ACC.column.unit)),
                        reference=r.reference))
    columns = (*(Column(f"seed {seed}", ACC.column.unit) for seed in seeds), Column("mean", ACC.column.unit))
    return Table("ACC of each seed", columns, tuple(rows))


def _exact(single: Cell) -> Cell:
    """Return the cell of one value without the interval that it cannot have."""
    return Cell(single.text.removesuffix(" ± n/a"), single.mean, n=single.n)


def _table(title: str, column: str, unit: Unit, results: Sequence[Result],
           values: Callable[[Result], Sequence[Values]]) -> Table:
    """Return a table with a column per task; methods whose seeds differ in length have dashes."""
    found = [values(r) for r in results]
    length = max((len(v) for of_seeds in found for v in of_seeds), default=0)
    rows = []
    for r, of_seeds in zip(results, found, strict=True):
        alike = len({len(v) for v in of_seeds}) == 1
        cells = [cell(v, unit) for v in zip(*of_seeds, strict=True)] if alike else []
        rows.append(Row(r.label, (*cells, *[Cell(NONE)] * (length - len(cells))), reference=r.reference))
    return Table(title, tuple(Column(column.format(i), unit) for i in range(1, length + 1)), tuple(rows))
