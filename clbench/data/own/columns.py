"""Choose the columns of labels and inputs, and build the benchmark `table:FILE` from rows of numbers.

Errors name row and column. Numbers are standardized by the training samples of the first task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clbench.core.errors import DataError, guess, list_names
from clbench.data.own.benchmark import ROUNDING, label_stream, target_stream
from clbench.data.own.dividing import divide, divide_targets
from clbench.data.own.samples import Labeled, Table, as_number, as_text, hint_at_commas, locate, read_table
from clbench.data.own_options import ColumnOptions, FeatureOptions, TableOptions
from clbench.data.raw import RawStream


def table(name: str, options: TableOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of a table's rows.

    Columns are standardized by the mean and the population standard deviation of the first task's training samples;
    the stream has both. If a column is constant in these samples, only its mean is subtracted.

    Raises:
        DataError: the file cannot be read, a value is missing or not a number, or `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    data = read_table(locate(name, data_dir), where)
    label, guesses = label_column(list(data.columns), options, where)
    notes = [*index_note(data.columns), *guesses]
    used_columns = feature_columns(data, label, options, where)
    x = numbers(data, used_columns, where)
    targets = None if options.target is None else numbers(data, [label], where, label)[:, 0]
    division = (divide(labeled(data, label, options, where), None, options, seed, where) if targets is None else
                divide_targets(labeled(data, None, options, where), None, options, where))
    note = f"inputs are {len(used_columns)} column{'s' * (len(used_columns) != 1)}: {list_names(used_columns)}"
    if len(used_columns) > 1 and all(as_number(name) is not None for name in used_columns):
        notes.append("all inputs have numbers as names; if the first line of the file is a sample, add a line with "
                     "the names of the columns above it")
    if options.standardise:
        rows = x[division.train[0]]
        first_row = {column: data.columns[column][0] for column in used_columns}
        inputs = [f"{column}[{place}]" if np.ndim(value) else column  # a value may be a list
                  for column, value in first_row.items() for place in range(np.size(value))]
        check_precision(rows.numpy(), where, lambda index: f"column {inputs[index]!r} in the training samples of the "
                        "first task")
        deviations = rows.std(0, correction=0)
        deviations[deviations <= ROUNDING * rows.abs().amax(0)] = 0
        mean, std = rows.mean(0).tolist(), deviations.tolist()
        notes.append(f"{note}, standardized by mean and deviation of the {len(rows)} training samples of the first "
                     "task")
        if constant_columns := [name for name, s in zip(inputs, std, strict=True) if not s]:
            notes.append("columns that are constant in the first task, only their mean is subtracted: " +
                         list_names(constant_columns))
    else:
        mean, std = [], []
        notes.append(f"{note}, as they are")
    x, std = x.float(), [s or 1.0 for s in std]
    if targets is not None:
        return target_stream(division, [x], [targets], label, mean=mean, std=std, notes=notes)
    train, test = ([x[torch.from_numpy(rows)] for rows in part] for part in (division.train, division.test))
    return label_stream(division, train, test, mean=mean, std=std, notes=notes)


def require_same_inputs(old: tuple[str, TableOptions], new: tuple[str, TableOptions], data_dir: Path) -> None:
    """Check that two benchmarks `table:FILE`, each given as name and options, have the same inputs in the same order.

    Raises:
        DataError: the input columns differ, or a file cannot be read.
    """
    columns = []
    for name, options in (old, new):
        data, where = read_table(locate(name, data_dir), f"benchmark {name!r}"), f"benchmark {name!r}"
        columns.append(feature_columns(data, label_column(list(data.columns), options, where)[0], options, where))
    if columns[0] != columns[1]:
        before, after = next(pair for pair in zip_longest(*columns, fillvalue="no column") if pair[0] != pair[1])
        raise DataError(f"benchmark {new[0]!r}: its input columns are not those that the model was trained on, or they "
                        f"have another order (the first difference: {after} instead of {before}); write the same "
                        "columns in the same order")


def feature_columns(read: Table, label: str, options: FeatureOptions, where: str) -> list[str]:
    """Return the input columns: all columns except labels, tasks, groups and those of the option `leave_out`.

    Raises:
        DataError: no column remains, or `leave_out` names a column that does not exist.
    """
    if unknown_columns := [c for c in options.leave_out if c not in read.columns]:
        raise DataError(f"{where}: leave_out names {list_names(unknown_columns)}, its columns are "
                        f"{list_names(read.columns)}{hint_at_commas(unknown_columns)}")
    excluded = {label, options.task_column, options.group, *options.leave_out}
    used_columns = [c for c in read.columns if c not in excluded and not is_index(c)]
    if not used_columns:
        raise DataError(f"{where} has only the columns {list_names(read.columns)}, of which none is an input")
    return used_columns


def table_files(name: str, options: Any, data_dir: Path) -> list[Path]:
    """Return the file that `table:FILE` reads; raise a `DataError` if it does not exist or is a folder."""
    path = locate(name, data_dir)
    if path.is_dir():
        raise DataError(f"benchmark {name!r}: {path} is a folder; table:FILE reads one file")
    return [path]


LABEL = "label"  # the column of labels if the user names none
MISSING = ("", "nan")  # labels, tasks and groups without a value, in lower case; pandas and NumPy write the second
AT_ONCE = 2**20  # numbers of which the precision is checked together
PRECISION = 1e-3  # largest error of float32, in standard deviations of a column


def label_column(columns: Sequence[str], options: ColumnOptions, where: str) -> tuple[str, list[str]]:
    """Return the column of the labels or of the numbers to predict, and a note if the user did not name it.

    Raises:
        DataError: an option names a column that does not exist, or no column is left for labels.
    """
    for option in ("label_column", "target_column", "targets", "task_column", "group"):
        named = getattr(options, option, None)
        if named is not None and named not in columns:
            raise DataError(f"{where}: {option} = {named}: no column {named!r}{guess(named, columns)} (its columns: "
                            f"{list_names(columns)})")
    chosen = options.label_column or getattr(options, "target", None)
    if chosen is not None:
        return chosen, []
    candidates = label_candidates(columns, options)
    if not candidates:
        raise DataError(f"{where} has no column for labels, only {list_names(columns)}")
    if LABEL in candidates:
        return LABEL, []
    return candidates[-1], [f"labels are the last column, {candidates[-1]!r} (label_column=NAME chooses another)"]


def index_note(columns: Iterable[str]) -> list[str]:
    """Return a note if one of the columns is an index that pandas wrote."""
    return (["a column without a name, as pandas writes its index, is not an input"]
            if any(is_index(column) for column in columns) else [])


def is_index(column: str) -> bool:
    """Return whether a column has the name of an index that pandas wrote: none in a .csv file."""
    return not column or re.fullmatch(r"__index_level_\d+__", column) is not None


def label_candidates(columns: Iterable[str], options: ColumnOptions) -> list[str]:
    """Return the columns that the options use for nothing else, and that can therefore hold the labels."""
    others = (options.task_column, options.group, getattr(options, "text_column", None),
              *getattr(options, "leave_out", ()))
    return [column for column in columns if column not in others and not is_index(column)]


def labeled(table: Table, label: str | None, options: ColumnOptions, where: str, classes: Sequence[str] = ()
             ) -> Labeled:
    """Return labels, tasks and groups of a table's rows as text; no labels if no column has them.

    Labels that are among declared names of classes (`classes`) may look like numbers or missing values.

    Raises:
        DataError: a cell is empty or has a list, or labels are numbers that are not whole.
    """
    def text(column: str | None, option: str, missing: Sequence[str] = MISSING) -> list[str] | None:
        if column is None:
            return None
        lists = (list, tuple, np.ndarray) if column == label else np.ndarray  # a list of text may name a task or group
        for index, value in enumerate(table.columns[column]):
            if isinstance(value, lists) and len(value) != 1:
                raise DataError(f"{where}: {table.place(index, column)} is a list of {len(value)} values, expected one "
                                f"name or whole number ({option}=NAME chooses another column)")
        values = [value.strip() for value in as_text("" if v is None else v for v in table.columns[column])]
        for index, value in enumerate(values):
            if value.casefold() in missing:
                raise DataError(f"{where}: {table.place(index, column)} is empty{f' ({value})' * bool(value)}; write a "
                                "value, or remove the row")
        return values

    labels = text(label, "label_column", ("",) if classes else MISSING) or []
    for index, value in enumerate(() if classes else labels):
        number = as_number(value)
        if number is not None and not number.is_integer():
            target = getattr(options, "TARGET", "")
            raise DataError(f"{where}: {table.place(index, str(label))} is {value}; labels must be names or whole "
                            "numbers (label_column=NAME chooses the column"
                            + (f"; {target}=NAME predicts numbers)" if target else ")"))
    return Labeled(labels, text(options.task_column, "task_column"), text(options.group, "group"), tuple(classes))


def numbers(table: Table, columns: Iterable[str], where: str, target: str | None = None) -> Tensor:
    """Return the values of columns as float64 [N, D]; a column of lists gives one column per element.

    Inputs become float32 later. `target` is the column with numbers to predict, which stay float64.

    Raises:
        DataError: a value is missing, not a number or not finite, lists differ in length, a target is a list of
            several numbers, or float32 is too imprecise for an input.
    """
    parts = []
    for column in columns:
        values = table.columns[column]
        has_lists = len(values) and isinstance(values[0], (list, tuple, np.ndarray))
        parts.append(_lists(table, column, where) if has_lists else _cells(table, column, where, column == target))
        if column != target:
            check_precision(parts[-1], where, partial("column {!r}".format, column))
        elif parts[-1].shape[1] > 1:
            raise DataError(f"{where}: {table.place(0, column)} is a list of {parts[-1].shape[1]} numbers, and a "
                            "target is one number; write each of them to a column of its own, and name one of these")
    return torch.from_numpy(np.concatenate(parts, 1))


def _cells(table: Table, column: str, where: str, is_target: bool) -> Any:
    """Return a column of numbers as an array [N, 1]."""
    values = table.columns[column]
    array = (values.astype(np.float64) if isinstance(values, np.ndarray) else
             np.array([math.nan if (number := as_number(v)) is None else number for v in values]))
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        value = values[index].item() if isinstance(values, np.ndarray) else values[index]
        raise DataError(f"{where}: {table.place(index, column)}: " +
                        ("the value is missing" if value is None or value == "" else f"{value!r} is no number") +
                        ("; write a number, or remove the row" if is_target else "; write a number, or say what the "
                         f"column is: leave_out, task_column, group or label_column = {column}"))
    return array[:, None]


def check_precision(values: npt.NDArray[Any], where: str, name_of: Callable[[int], str],
                    leave_out: str = " (leave_out)") -> None:
    """Raise a DataError if float32 cannot hold the values [N, D] of a column, or loses their differences.

    `name_of` returns the name of one of the D columns in errors, and `leave_out` is how a column is left out.
    """
    step = max(1, AT_ONCE // len(values))
    for begin in range(0, values.shape[1], step):  # in parts, which takes less memory
        numbers = np.ascontiguousarray(values[:, begin:begin + step].T, np.float64)
        with np.errstate(over="ignore"):
            rounded = numbers.astype(np.float32).astype(np.float64)
        if not np.isfinite(rounded).all():
            index, row = np.argwhere(~np.isfinite(rounded))[0]
            raise DataError(f"{where}: {name_of(begin + index)} has {numbers[index, row]:g}, which is too large for "
                            f"float32; scale the column, or leave it out{leave_out}")
        spread, size = numbers.std(1), np.abs(numbers).max(1)
        varies = spread > ROUNDING * size  # otherwise a constant, up to rounding
        if (imprecise := varies & (np.abs(numbers - rounded).max(1) > PRECISION * spread)).any():
            raise DataError(f"{where}: float32 is too imprecise for the values of "
                            f"{name_of(begin + int(imprecise.argmax()))}, which are large and close to each other; "
                            f"subtract a constant from them, or leave the column out{leave_out}")


def _lists(table: Table, column: str, where: str) -> Any:
    """Return a column of lists as an array [N, D]."""
    values = table.columns[column]
    if isinstance(values, np.ndarray) and np.isfinite(values).all():
        return values.astype(np.float64)
    for index, value in enumerate(values):
        wrong = None
        if not isinstance(value, (list, tuple, np.ndarray)):
            wrong = f"no list, in the first row {len(values[0])} numbers"
        elif not len(value):
            wrong = "an empty list"
        elif len(value) != len(values[0]):
            wrong = f"{len(value)} numbers, in the first row {len(values[0])}"
        elif any(v is None or not isinstance(v, (int, float, np.number)) or not math.isfinite(v) for v in value):
            wrong = "a list with something that is no number"
        if wrong:
            raise DataError(f"{where}: {table.place(index, column)} has {wrong}")
    return np.array(values, np.float64)
