"""Samples before they are divided: labels, files of photos, files with columns, and where a benchmark's files are."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from clbench.core.errors import DataError, MissingDataError, PluginError, list_names, message_of
from clbench.core.files import expand_home

DELIMITERS = ",;\t|"
EXTRA = "pip install 'clbench[hf]'"
SAVE = "; save the file as UTF-8, which Excel calls CSV UTF-8"
QUOTED = re.compile(rf'(?:^|(?<=[{DELIMITERS}]))"(?:[^"]|"")*"(?=[{DELIMITERS}]|\s*$)')  # a value with its quotes
NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
UNBALANCED = 0.1  # a note names the accuracy of the most frequent classes if it is this much above guessing


@dataclass(frozen=True)
class Labeled:
    """Labels, tasks and groups of N samples, as text.

    Args:
        labels: each sample's class.
        tasks: each sample's task; None if the data do not name tasks.
        groups: each sample's group; a group is never divided between training and test. None if there are no groups.
        classes: all classes in their natural order. If empty, classes are sorted by name, and numbers by size.
        task_names: all tasks in their natural order. If empty, tasks are sorted likewise.
    """

    labels: Sequence[str]
    tasks: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    classes: tuple[str, ...] = ()
    task_names: tuple[str, ...] = ()

    @property
    def natural_tasks(self) -> list[int]:
        """Return each sample's task [N], numbered in the natural order; `tasks_in_order` does not change it."""
        tasks = self.tasks or ()
        return places(tasks, self.task_names or sort_names(tasks))


@dataclass(frozen=True)
class PhotoFiles:
    """Photos of one part of the data: their files, and their labels, tasks and groups from folders or lists."""

    files: tuple[Path, ...]
    labeled: Labeled


def as_text(values: Iterable[Any]) -> list[str]:
    """Return labels, tasks or groups as text: 3 and 3.0 are both `3`, bytes are UTF-8."""
    out = []
    for value in values:
        if hasattr(value, "item"):  # a number or text of NumPy, checked without importing it
            value = value.item()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        out.append(value.decode() if isinstance(value, bytes) else str(value))
    return out


def sort_names(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted: by size if all are numbers, else as text.

    >>> sort_names(["10", "9", "10"]), sort_names(["b", "a"])
    (['9', '10'], ['a', 'b'])
    """
    distinct = sorted(set(names))
    return sorted(distinct, key=float) if all(as_number(name) is not None for name in distinct) else distinct


def places(values: Iterable[str], names: Sequence[str]) -> list[int]:
    """Return the place of each value among names."""
    place = {name: i for i, name in enumerate(names)}
    return [place[value] for value in values]


def as_number(value: Any) -> float | None:
    """Return a value as a number; None if it is not a number. Python takes text such as 1_1 and inf for numbers, too.

    >>> as_number(" 1e2 "), as_number("1_1"), as_number("inf"), as_number(None)
    (100.0, None, None, None)
    """
    try:
        return None if isinstance(value, str) and not NUMBER.fullmatch(value) else float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def note_untested(orders: Sequence[Sequence[int]], tested: Sequence[Container[int]], tasks: Sequence[str],
                  classes: Sequence[str | int], kind: str = "test") -> list[str]:
    """Return a note on classes of a task without test samples; `tested` has the labels of each task's test samples."""
    without = [f"{classes[c]} ({tasks[t]})" if tasks else str(classes[c]) for t, order in enumerate(orders)
               for c in order if c not in tested[t]]
    return [f"no {kind} samples: {list_names(without)}"] if without else []


def note_tests(orders: Sequence[Sequence[int]], tested: Sequence[Sequence[int]], tasks: Sequence[str],
               classes: Sequence[str]) -> list[str]:
    """Return notes on the test samples: classes that have none, and the accuracy of predicting frequent classes only.

    Args:
        orders: the classes of each task.
        tested: the label of each test sample, by task.
        tasks: the names of the tasks; empty if they have none.
        classes: the names of the classes.
    """
    counts = [Counter(labels) for labels in tested]
    notes = note_untested(orders, counts, tasks, classes)
    frequent = fmean(max(of_task.values(), default=0) / max(of_task.total(), 1) for of_task in counts)
    if frequent > fmean(1 / len(order) for order in orders) + UNBALANCED:
        notes.append("classes have unequal numbers of test samples: always predicting the most frequent class of each "
                     f"task gives an accuracy of {frequent:.1%}")
    return notes


def groups_on_both_sides(train: Labeled, test: Labeled) -> list[str]:
    """Return a note on groups that occur both in the training part and in the test part of the data."""
    if train.groups is None or test.groups is None:
        return []
    shared = sort_names(set(train.groups) & set(test.groups))
    count = "1 group is" if len(shared) == 1 else f"{len(shared)} groups are"
    return [f"{count} in training and in test, as the data have it: {list_names(shared)}"] if shared else []


def hint_at_commas(names: Iterable[str]) -> str:
    """Return a hint on how a list is written if an unknown name has a comma; empty if none has."""
    return "; a list is written with +, as in a+b" if any("," in name for name in names) else ""


@dataclass(frozen=True)
class Table:
    """Columns by name, each with N values, and the line of the file on which each row begins, if it has lines."""

    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] = ()

    def place(self, index: int, column: str) -> str:
        """Return the name of a cell in errors; rows are counted from 1, without the header."""
        line = f" (line {self.lines[index]} of the file)" if self.lines else ""
        return f"row {index + 1}{line}, column {column!r}"


def read_table(path: Path, where: str) -> Table:
    """Return the columns of a .csv, .tsv, .txt, .jsonl (an object on each line) or .parquet file.

    Raises:
        DataError: the file cannot be read, has no header, or has rows of different lengths.
        PluginError: the file is a .parquet file, and pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path, where)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(path, where)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise DataError(f"{where}: {path.name} is none of .csv, .tsv, .txt, .jsonl and .parquet")
    csv.field_size_limit(sys.maxsize)  # a text may be long
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = next((line for line in file if line.strip("\r\n")), "")  # the first line that is not blank
            head = QUOTED.sub("", head)  # a quoted name may have delimiters in it
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(
                DELIMITERS, key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))
            file.seek(0)
            reader, begin = csv.reader(file, delimiter=delimiter, strict=True), 1
            numbered: list[tuple[int, list[str]]] = []
            for row in reader:  # quoted values may have several lines
                numbered += [(begin, row)] if row else []
                begin = reader.line_num + 1
            names, *rows = [row for _, row in numbered] or [[]]
    except csv.Error as error:
        raise DataError(f"{where}: cannot read {path} as a table: {error} (in the row that begins on line {begin}). A "
                        "value that begins with a quotation mark must end with one, and double the marks "
                        "within") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot read {path} as a table in UTF-8: {error}" +
                        SAVE * isinstance(error, UnicodeDecodeError)) from error
    names = [name.strip() for name in names]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{where}: {path.name} has several columns named {duplicates[0]!r}; its first line must name "
                        "columns")
    if not rows:
        raise DataError(f"{where}: {path.name} has no rows below its first line, which names columns")
    for line, row in numbered[1:]:
        if len(row) != len(names):
            raise DataError(f"{where}: line {line} of {path.name} has {len(row)} values, its first line names "
                            f"{len(names)} columns")
    return Table(dict(zip(names, zip(*rows, strict=True), strict=True)), [line for line, _ in numbered[1:]])


def _json_lines(path: Path, where: str) -> Table:
    """Return a column for each key of the JSON objects on a file's lines; None if an object lacks the key."""
    rows, lines = [], []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    lines.append(number)
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise DataError(f"{where}: line {number} of {path.name} is no JSON object")
    except json.JSONDecodeError as error:  # its own line is that in the text it was given, always 1
        raise DataError(f"{where}: line {lines[-1]} of {path.name} is not valid JSON ({error.msg}, column "
                        f"{error.colno})") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot read {path} as a JSON object on each line: {error}") from error
    if not rows:
        raise DataError(f"{where}: {path.name} has no lines")
    return Table({name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}, lines)


def _parquet(path: Path, where: str) -> Table:
    """Return the columns of a parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise PluginError(f"{where}: .parquet files need pyarrow ({EXTRA})") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{where}: cannot read {path}: {message_of(error)}") from error
    if not table.num_rows:
        raise DataError(f"{where}: {path.name} has no rows")
    return Table({name: _parquet_column(table.column(name)) for name in table.column_names})


def _parquet_column(column: Any) -> Sequence[Any]:
    """Return numbers as an array [N], lists of D numbers as an array [N, D], and any other column as a list."""
    from pyarrow import compute, types

    def is_number(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind))

    has_values = len(column) > 0 and column.null_count == 0
    if has_values and is_number(column.type):
        return column.to_numpy()  # type: ignore[no-any-return] # of pyarrow, which has no types
    is_list = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    if has_values and is_list and is_number(column.type.value_type):
        lengths, flat = compute.list_value_length(column).to_numpy(), compute.list_flatten(column)
        if lengths[0] > 0 and (lengths == lengths[0]).all() and flat.null_count == 0:
            return flat.to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]
    return column.to_pylist()  # type: ignore[no-any-return]


def locate(name: str, data_dir: Path) -> Path:
    """Return the path of a benchmark `kind:PATH`, searched in the working directory, then in the data folder.

    Raises:
        MissingDataError: the path is in neither place.
    """
    written = name.partition(":")[2]
    if not written:
        raise DataError(f"benchmark {name!r} names no file or folder; write {name.partition(':')[0]}:PATH")
    path = expand_home(written)
    places = [path] if path.is_absolute() else [Path.cwd() / path, data_dir / path]
    for place in places:
        if place.exists():
            return place
    raise MissingDataError(f"benchmark {name!r}: there is no {' and no '.join(map(str, places))}; check the path, "
                           "which may also be relative to the folder of data sets (--data)")
