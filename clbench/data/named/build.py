"""Build a benchmark that papers use: its photos, divided into tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clbench.data.named.options import NamedOptions, files_of
from clbench.data.own.photos import photo_benchmark


def build(options: NamedOptions, data_dir: Path, seed: int) -> Any:
    """Return the benchmark of the photos that the options find, as an Avalanche benchmark or a `RawStream`."""
    found = options.found(data_dir)
    return photo_benchmark(options.NAME, options.root(data_dir), files_of(found), found.train, found.test, found.notes,
                           options, data_dir, seed)
