"""`table:FILE`: rows of numbers as a benchmark, standardised by what the first task trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clbench.core.errors import DataError
from clbench.data.avalanche.benchmarks import Layout
from clbench.data.own.benchmark import built
from clbench.data.own.columns import Table, label_column, labelled, numbers, read_table
from clbench.data.own.dividing import divide
from clbench.data.own.samples import locate, some
from clbench.data.own_options import FeatureOptions, TableOptions


def table(name: str, options: TableOptions, data_dir: Path, seed: int) -> Any:
    """Return the Avalanche benchmark of a table's rows.

    Columns are standardized by the mean and the population standard deviation of the first task's training samples;
    both are in the layout. If a column is constant in these samples, only its mean is subtracted.

    Raises:
        DataError: the file cannot be read, a value is missing or not a number, or `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    read = read_table(locate(name, data_dir), where)
    label, notes = label_column(list(read.columns), options, where)
    used = feature_columns(read, label, options, where)
    x = numbers(read, used, where)
    division = divide(labelled(read, label, options, where), None, options, seed, where)
    note = f"inputs are {len(used)} columns: {some(used)}"
    if options.standardise:
        rows = x[division.train[0]]
        mean, std = rows.mean(0).tolist(), rows.std(0, correction=0).tolist()
        notes.append(f"{note}, standardised by mean and deviation of the {len(rows)} training samples of the first "
                     "task")
        if constant := [c for c, s in zip(used, std, strict=True) if not s]:
            notes.append("columns that are constant in the first task, only their mean is subtracted: " +
                         some(constant))
    else:
        mean, std = [], []
        notes.append(f"{note}, as they are")
    x = x.float()
    return built(division, x, x, Layout(tuple(mean), tuple(s or 1.0 for s in std), notes=tuple(notes)))


def feature_columns(read: Table, label: str, options: FeatureOptions, where: str) -> list[str]:
    """Return the columns that are inputs: all but those of labels, tasks and groups, and those that are left out.

    Raises:
        DataError: none is left, or one that is to be left out is not there.
    """
    if strange := [c for c in options.leave_out if c not in read.columns]:
        raise DataError(f"{where}: leave_out names {some(strange)}, its columns are {some(read.columns)}")
    apart = {label, options.task_column, options.group, *options.leave_out}
    used = [c for c in read.columns if c not in apart]
    if not used:
        raise DataError(f"{where} has only the columns {some(read.columns)}, of which none is an input")
    return used


def table_files(name: str, options: Any, data_dir: Path) -> list[Path]:
    """Return the file that `table:FILE` reads."""
    return [locate(name, data_dir)]
