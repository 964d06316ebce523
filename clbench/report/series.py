"""What the figures of a page show, as tables with a row for each method: the same cells as all other tables have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clbench import metrics
from clbench.report.columns import ACC, cells
from clbench.report.model import Cell, Column, Result, Row, Table, Unit
from clbench.report.text import NONE, number


def accuracy_over_tasks(results: Sequence[Result]) -> Table:
    """Return the mean accuracy over the tasks seen so far, after each task."""
    return _table("Accuracy over tasks", "after task {}", "percent", results,
                  lambda r: list(map(metrics.seen, r.R)))


def forgetting_per_task(results: Sequence[Result]) -> Table:
    """Return what was forgotten of each task but the last, see `metrics.forgetting_per_task`."""
    return _table("Forgetting per task", "task {}", "points", results,
                  lambda r: [metrics.forgetting_per_task(R) for R in r.R])


def parameters_over_tasks(results: Sequence[Result]) -> Table:
    """Return the parameters kept after each task."""
    return _table("Parameters kept after each task", "after task {}", "count", results, lambda r: r.parameters)


def accuracy_by_seed(results: Sequence[Result], seeds: Sequence[int]) -> Table:
    """Return ACC of each seed, and last its mean; a seed without a result has a dash."""
    unit = ACC.column.unit
    found = [dict(zip(r.seeds, map(metrics.acc, r.R), strict=True)) for r in results]
    means = cells([list(of_seeds.values()) for of_seeds in found], unit)
    rows = [Row(r.label, (*(_single(of_seeds.get(seed), unit) for seed in seeds), mean), reference=r.reference)
            for r, of_seeds, mean in zip(results, found, means, strict=True)]
    return Table("ACC of each seed", tuple(Column(name, unit) for name in (*(f"seed {s}" for s in seeds), "mean")),
                 tuple(rows))


def _single(value: float | None, unit: Unit) -> Cell:
    return Cell(NONE) if value is None else Cell(number(value, unit), value, n=1)


def _table(title: str, column: str, unit: Unit, results: Sequence[Result],
           values: Callable[[Result], Sequence[Sequence[float]]]) -> Table:
    """Return a table with a column per task; methods whose seeds differ in length have dashes."""
    found = [values(r) for r in results]
    lengths = [{len(of_tasks) for of_tasks in of_seeds} for of_seeds in found]
    tasks = max((max(length) for length in lengths if length), default=0)
    columns = [cells([[of_tasks[j] for of_tasks in of_seeds] if len(length) == 1 and j < max(length) else []
                      for of_seeds, length in zip(found, lengths, strict=True)], unit) for j in range(tasks)]
    rows = tuple(Row(r.label, tuple(column[i] for column in columns), reference=r.reference)
                 for i, r in enumerate(results))
    return Table(title, tuple(Column(column.format(j + 1), unit) for j in range(tasks)), rows)
