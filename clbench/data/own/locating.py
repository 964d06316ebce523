"""Where one's own data lie and what the head of an array file says: known at once, without torch or Avalanche.

A run looks here before it starts a worker, so that a wrong path costs no imports (`BenchmarkInfo.check`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clbench.core.errors import DataError
from clbench.data.own.samples import locate, some

ARRAY_SUFFIXES = (".npz", ".safetensors", ".npy", ".parquet")
EXPECTED = "expected X and y, or X_train, y_train, X_test and y_test, and if there are such task and group likewise"


def check_path(name: str, options: Mapping[str, Any], data_dir: Path) -> None:
    """Raise a `DataError` if a benchmark `kind:PATH` names a file or folder that is not there."""
    locate(name, data_dir)


def check_arrays(name: str, options: Mapping[str, Any], data_dir: Path) -> None:
    """Raise a `DataError` if `arrays:FILE` is not there, is of no kind that is read, or has no inputs or labels."""
    where = f"benchmark {name!r}"
    path, *_ = array_files(name, options, data_dir)
    kind = path.suffix.lower()
    if kind not in ARRAY_SUFFIXES:
        raise DataError(f"{where}: {path.name} is none of {', '.join(ARRAY_SUFFIXES)} (table:FILE reads .csv)")
    labels = options.get("labels")
    if labels is not None and kind != ".npy":
        raise DataError(f"{where}: labels = {labels} is for .npy files, which hold the inputs alone")
    if labels is None and kind == ".npy":
        raise DataError(f"{where}: {path.name} holds the inputs alone; name the file of labels: labels=FILE.npy")
    try:
        if kind == ".npz":
            with zipfile.ZipFile(path) as arrays:
                require_arrays([name.removesuffix(".npy") for name in arrays.namelist()], where)
        elif kind == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                require_arrays(file.keys(), where)
    except (OSError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(f"{where}: cannot read {path}: {' '.join(str(error).split())}") from error


def require_arrays(names: Iterable[str], where: str) -> None:
    """Raise a `DataError` that names the first array that a file lacks, of inputs and labels."""
    names = [*names]
    suffixes = ("_train", "_test") if "X_train" in names else ("",)
    if missing := [key for suffix in suffixes for key in (f"X{suffix}", f"y{suffix}") if key not in names]:
        raise DataError(f"{where} has no array {missing[0]!r}, only {some(names)}; {EXPECTED}")


def array_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the files that `arrays:FILE` reads."""
    path, labels = locate(name, data_dir), options.get("labels")
    return [path, *([labels_file(path, labels, data_dir, f"benchmark {name!r}")] if labels else [])]


def labels_file(path: Path, labels: str, data_dir: Path, where: str) -> Path:
    """Return the file of labels; search the working directory, the folder of the inputs, and the data folder."""
    places = [Path.cwd() / labels, path.parent / labels, data_dir / labels]
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"{where}: labels = {labels}: there is no {' and no '.join(map(str, dict.fromkeys(places)))}")
