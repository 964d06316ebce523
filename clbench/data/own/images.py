"""`images:DIR`: photos in folders as a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clbench.data.avalanche.benchmarks import Layout
from clbench.data.own.benchmark import own_benchmark
from clbench.data.own.folders import find_photos
from clbench.data.own.photos import read_photos
from clbench.data.own_options import ImagesOptions, PixelOptions


def images(name: str, options: ImagesOptions, data_dir: Path, seed: int) -> Any:
    """Return the Avalanche benchmark of the photos in a folder.

    Raises:
        DataError: the folder does not exist, or `find_photos`, `read_photos` or `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    train, test, notes = find_photos(name, options, data_dir)
    x, read = read_photos([*train.files, *(test.files if test else ())], options.size, where)
    count = len(train.files)
    return own_benchmark(x[:count], train.labelled, options, seed, where, x_test=x[count:] if test else None,
                         test=test.labelled if test else None, layout=pixel_layout(options, [*notes, *read]))


def pixel_layout(options: PixelOptions, notes: list[str]) -> Layout:
    """Return the layout of inputs that may be images."""
    return Layout(augment="" if options.augment == "none" else options.augment, notes=tuple(notes))
