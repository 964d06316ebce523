"""The benchmark `arrays:FILE`: inputs and labels from a file of arrays, such as a file that `clbench embed` writes.

Keys are X, y and optionally task and group, or X_train, y_train, X_test, y_test and so on.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clbench.core.errors import DataError, list_names, message_of
from clbench.data.feature_file import NAMES
from clbench.data.own.benchmark import own_benchmark, target_stream
from clbench.data.own.columns import (
    MISSING,
    check_precision,
    feature_columns,
    index_note,
    label_column,
    labeled,
    numbers,
)
from clbench.data.own.dividing import divide_targets
from clbench.data.own.samples import Labeled, as_text, locate, read_table
from clbench.data.own_options import ArraysOptions, check_arrays, labels_file
from clbench.data.raw import RawStream

Arrays = dict[str, Any]  # of torch or numpy
CHANNELS = (1, 3)  # sizes of an axis of color channels
MOST_CHANNELS = 4  # of an image of bytes whose channels come last
NO_OBJECTS = "arrays of Python objects are not read; save text as np.array(y, dtype=str)"


def arrays(name: str, options: ArraysOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of a file of arrays.

    Raises:
        DataError: the file cannot be read, arrays are missing or do not fit, or `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    check_arrays(name, options.model_dump(), data_dir)
    path = locate(name, data_dir)
    kind = path.suffix.lower()
    if options.targets is not None and (options.augment != "none" or options.normalize == "imagenet"):
        raise DataError(f"{where}: images with numbers to predict are not augmented, nor normalized by ImageNet's "
                        "mean; leave augment and normalize out")
    if kind == ".parquet":
        return _columns(path, options, seed, where)
    for option in ("label_column", "task_column", "group", "leave_out"):
        if getattr(options, option):
            raise DataError(f"{where}: {option} is for files with columns; arrays named task and group say it here")
    contents, names = _READERS[kind](path, options, data_dir, where)
    split = "X_train" in contents
    target = "y" if kind == ".npy" else options.targets
    suffixes = ("_train", "_test") if split else ("",)
    targets = [] if options.targets is None else [
        _targets(contents.pop(f"{target}{suffix}"), f"{where}: {target}{suffix}") for suffix in suffixes]
    for suffix in suffixes if targets else ():
        contents.pop(f"y{suffix}", None)
    train, notes = _part(contents, suffixes[0], names, where)
    test, _ = _part(contents, "_test", names, where) if split else ((None, None), [])
    (x, train_labels), (x_test, test_labels) = train, test
    if x_test is not None and (x_test.shape[1:], x_test.dtype) != (x.shape[1:], x.dtype):
        raise DataError(f"{where}: X_test is {list(x_test.shape)} of {x_test.dtype}, X_train {list(x.shape)} of "
                        f"{x.dtype}")
    if options.targets is not None:
        inputs = [x] if x_test is None else [x, x_test]
        for part, values in zip(inputs, targets, strict=True):
            if len(part) != len(values):
                raise DataError(f"{where}: there are {len(part)} samples and {len(values)} targets")
        return target_stream(divide_targets(train_labels, test_labels, options, where), inputs, targets,
                             options.targets, notes=notes)
    if train_labels.tasks is not None and options.tasks is None and not options.task_sizes:
        notes.append("the array task names the tasks; unless --scenario class or domain is given, the test gives "
                     "the task of each sample (scenario task)")
    return own_benchmark(x, train_labels, options, seed, where, x_test=x_test, test=test_labels,
                         augment=options.augmentation, notes=notes)


def _columns(path: Path, options: ArraysOptions, seed: int, where: str) -> RawStream:
    """Return the stream of a parquet file: columns of numbers, or one column of lists, without standardization."""
    data = read_table(path, where)
    label, guesses = label_column(list(data.columns), options, where)
    notes = [*index_note(data.columns), *guesses]
    used_columns = feature_columns(data, label, options, where)
    if options.targets is not None:
        values = numbers(data, [label], where, label)[:, 0]
        division = divide_targets(labeled(data, None, options, where), None, options, where)
        return target_stream(division, [numbers(data, used_columns, where).float()], [values], label,
                             notes=[*notes, f"inputs are the columns {list_names(used_columns)}"])
    return own_benchmark(numbers(data, used_columns, where).float(), labeled(data, label, options, where), options,
                         seed, where, augment=options.augmentation,
                         notes=[*notes, f"inputs are the columns {list_names(used_columns)}"])


def _safetensors(path: Path, options: ArraysOptions, data_dir: Path, where: str) -> tuple[Arrays, tuple[str, ...]]:
    """Return the tensors of a file and the class names in its metadata, a JSON list."""
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {}).get(NAMES, "[]"))
            tensors: Arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{where}: cannot read {path}: {message_of(error)}") from error
    return tensors, _class_names(names, where)


def _npz(path: Path, options: ArraysOptions, data_dir: Path, where: str) -> tuple[Arrays, tuple[str, ...]]:
    """Return the arrays of a file and its class names."""
    try:
        with np.load(path, allow_pickle=False) as file:
            contents: Arrays = {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error, where) from error
    return contents, _class_names(contents.pop(NAMES, []), where)


def _npy(path: Path, options: ArraysOptions, data_dir: Path, where: str) -> tuple[Arrays, tuple[str, ...]]:
    """Return the array of a file as X, and the array of the file of labels as y."""
    option, name = ("labels", options.labels) if options.labels else ("targets", options.targets)
    assert name is not None  # `check_arrays` requires one
    contents: Arrays = {}
    for key, file in (("X", path), ("y", labels_file(path, option, name, data_dir, where))):
        try:
            contents[key] = np.load(file, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise _unreadable(file, error, where) from error
    return contents, ()


def _unreadable(path: Path, error: Exception, where: str) -> DataError:
    """Return the error on a file that NumPy cannot read."""
    advice = "; write the file again" if isinstance(error, EOFError) else f" ({NO_OBJECTS})"  # it is empty
    return DataError(f"{where}: cannot read {path}: {message_of(error)}{advice}")


def _class_names(names: Any, where: str) -> tuple[str, ...]:
    """Return class names from an array or a list."""
    if np.ndim(names) != 1:
        raise DataError(f"{where}: {NAMES} must be a list with the name of each class")
    return tuple(_decode_text(names, f"{where}: {NAMES}"))


_READERS = {".safetensors": _safetensors, ".npz": _npz, ".npy": _npy}


def _part(contents: Arrays, suffix: str, names: Sequence[str], where: str
          ) -> tuple[tuple[Tensor, Labeled], list[str]]:
    """Return the inputs of a part with their labels, tasks and groups, and notes."""
    x, notes = _inputs(contents[f"X{suffix}"], f"{where}: X{suffix}", check=suffix != "_test")
    text: dict[str, list[str] | None] = {}
    for key in ("y", "task", "group"):
        values = contents.get(key + suffix)
        text[key] = None if values is None else _text(values, len(x), f"{where}: {key}{suffix}")
    labels = text["y"] or []
    if names and labels:
        labels = _names_of(labels, _numpy(contents[f"y{suffix}"]).dtype.kind in "iuf", names, where, f"y{suffix}")
    return (x, Labeled(labels, text["task"], text["group"], tuple(names))), notes


def _names_of(labels: list[str], are_positions: bool, names: Sequence[str], where: str, array: str) -> list[str]:
    """Return the class name of each label; numbers are positions in `names`, and text is a name."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where}: {NAMES} has {repeated[0]!r} twice; give each class its own name")
    name_of = dict(zip(map(str, range(len(names))) if are_positions else names, names, strict=True))
    if unexpected_labels := [label for label in labels if label not in name_of]:
        raise DataError(f"{where}: {NAMES} has {len(names)} names, and {array} has {unexpected_labels[0]}; numbers in "
                        f"{array} are positions in {NAMES}, from 0, and text is a name in it")
    return [name_of[label] for label in labels]


def _numpy(values: Any) -> npt.NDArray[Any]:
    """Return a tensor or an array as an array."""
    return values.numpy() if isinstance(values, Tensor) else np.asarray(values)


def _numbers(values: Any, where: str) -> Tensor:
    """Return real numbers as a tensor, in the byte order of the machine.

    Raises:
        DataError: the values are not real numbers.
    """
    if isinstance(values, Tensor) and not values.is_complex():
        return values
    array = _numpy(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} has the type {array.dtype}, expected real numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _decode_text(values: Any, where: str) -> list[str]:
    """Return labels, tasks, groups or names as text; raise a DataError if bytes are not UTF-8."""
    try:
        return as_text(values)
    except UnicodeDecodeError as error:
        raise DataError(f"{where} has bytes that are not UTF-8; save text as np.array(..., dtype=str)") from error


def _targets(values: Any, where: str) -> Tensor:
    """Return numbers to predict, float64 [N]."""
    targets = _numbers(values, where)
    if targets.dim() != 1:
        raise DataError(f"{where} is {list(targets.shape)}, expected one number for each sample")
    if not bool(targets.isfinite().all()):
        row = int((~targets.isfinite()).nonzero()[0])
        raise DataError(f"{where}: the target of sample {row} (counted from 0) is missing or infinite")
    return targets.double()


def _text(values: Any, count: int, where: str) -> list[str]:
    """Return labels, tasks or groups as text."""
    array = _numpy(values)
    if array.shape != (count,):
        raise DataError(f"{where} is {list(array.shape)}, expected one value for each of the {count} samples")
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array), equal_nan=True):
        raise DataError(f"{where} has numbers that are not whole; labels must be names or whole numbers")
    text = _decode_text(array.tolist(), where)
    if missing := [row for row, value in enumerate(text) if value.strip().casefold() in MISSING]:
        raise DataError(f"{where}: sample {missing[0]} (counted from 0) has no value{_and_others(missing)}")
    return text


def _and_others(rows: Sequence[int]) -> str:
    """Return how many samples have the problem that an error names for the first one; empty if it is the only one."""
    count = len(rows) - 1
    return f", and so {'has' if count == 1 else 'have'} {count} more" if count else ""


def _inputs(values: Any, where: str, check: bool) -> tuple[Tensor, list[str]]:
    """Return inputs in the form in which they are stored, and notes; if `check`, float32 must be precise enough.

    Bytes of three or four dimensions are images: [N, H, W], [N, C, H, W] or [N, H, W, C]. All other arrays become
    float32 and keep their shape, usually [N, D]. Only channels that come last in four dimensions are moved.
    """
    x = _numbers(values, where)
    if x.ndim < 2 or not len(x):
        raise DataError(f"{where} is {list(x.shape)}, expected rows [N, D] or images [N, H, W, C]")
    notes = []
    if x.ndim == 4 and x.shape[1] not in CHANNELS and (
            x.shape[3] in CHANNELS or (x.shape[1] == x.shape[2] != x.shape[3])
            or (x.dtype == torch.uint8 and x.shape[3] <= MOST_CHANNELS < min(x.shape[1:3]))):
        notes.append(f"{where.rpartition(' ')[2]} {list(x.shape)} was taken for [N, H, W, C], its channels last")
        x = x.permute(0, 3, 1, 2)
    if x.dtype == torch.uint8 and x.ndim > 2:
        return (x[:, None] if x.ndim == 3 else x).contiguous(), notes
    if check and x.dtype != torch.float32 and x.dtype.itemsize >= torch.float32.itemsize and bool(x.isfinite().all()):
        check_precision(x.flatten(1).numpy(), where, "column {} (counted from 0)".format, leave_out="")
    x = x.float().contiguous()
    finite = x.flatten(1).isfinite().all(1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise DataError(f"{where}: sample {rows[0]} (counted from 0) has a value that is missing or infinite"
                        f"{_and_others(rows)}")
    return x, notes
