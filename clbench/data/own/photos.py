"""Build the benchmark `images:DIR` and named photo benchmarks, from a tensor of bytes or from files, batch by batch.

Photos are rotated as their EXIF data say, resized to one size and converted to RGB. Notes describe these changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from clbench.core.compat import usable_cores
from clbench.core.device import host_memory_left
from clbench.core.errors import DataError
from clbench.data.common_options import PhotoOptions
from clbench.data.contents import contents_of, index_of, listed_files
from clbench.data.named.options import NamedOptions, files_of
from clbench.data.own.benchmark import label_stream, mean_and_deviation
from clbench.data.own.dividing import divide
from clbench.data.own.lists import files_of_parts, find_photos
from clbench.data.own.pixels import GRAY, Head, PhotoFormat, fit_to_form, head_of, into, reason, shrink, turn_upright
from clbench.data.own.samples import PhotoFiles, locate
from clbench.data.own_options import ImagesOptions, StoredTaskOptions
from clbench.data.photo_files import Photos, PhotoTable
from clbench.data.raw import RawStream

DEFAULT_SIZE = 32  # pixels per side if neither user nor model sets it: usual for small networks
AS_THEY_ARE = 64  # pixels per side; photos of a single size up to this keep their size
SHOWN = 3  # unreadable files that an error names
KINDS = {"P": "of a palette", "PA": "of a palette", "RGBA": "with transparency, which was dropped",
         "LA": "gray with transparency, which was dropped", "CMYK": "CMYK"}
Out = TypeVar("Out")


def images(name: str, options: ImagesOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of the photos in a folder.

    Raises:
        DataError: the folder does not exist, or `find_photos`, `read_photos` or `divide` raises an error.
    """
    train, test, notes = find_photos(name, options, data_dir)
    files = files_of_parts(name, options, data_dir, train, test)
    return photo_benchmark(name, locate(name, data_dir), files, train, test, notes, options, data_dir, seed)


def build_named(options: NamedOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of the photos that the options find."""
    split = options.find_files(data_dir)
    return photo_benchmark(options.NAME, options.root(data_dir), files_of(split), split.train, split.test, split.notes,
                           options, data_dir, seed)


def photo_benchmark(name: str, root: Path, files: Sequence[Path], train: PhotoFiles, test: PhotoFiles | None,
                    notes: Sequence[str], options: StoredTaskOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of photos, which are decoded now or stay in their files.

    Args:
        name: the name of the benchmark.
        root: the folder of all photos.
        files: all files that the benchmark reads, as its declaration lists them.
        train: the training photos, or all photos.
        test: the test photos; None: a share of the photos is held out.
        notes: notes on how the photos were chosen.
        options: the options for reading and dividing photos.
        data_dir: the data folder.
        seed: the trial's seed.

    Raises:
        DataError: `read_photos` or `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    division = divide(train.labeled, test.labeled if test else None, options, seed, where)
    begin = len(train.files) if test else 0
    rows = [*division.train, *(task_rows + begin for task_rows in division.test)]
    photos = [*train.files, *(test.files if test else ())]
    x: Sequence[Tensor | Photos]
    if options.read == "files":
        table, format_notes = _list_photos(name, root, files, photos, options, data_dir)
        x = [table[torch.from_numpy(task_rows)] for task_rows in rows]
    else:
        x, format_notes = read_photos([[photos[row] for row in task_rows] for task_rows in rows], options, where,
                                      way_out="; read=files reads them batch by batch")
    tasks = len(division.train)
    mean, std = mean_and_deviation(options, x[0], where)
    return label_stream(division, x[:tasks], x[tasks:], mean=mean, std=std, augment=options.augmentation,
                        notes=[*notes, *format_notes])


def _list_photos(name: str, root: Path, listed_paths: Sequence[Path], files: Sequence[Path], options: StoredTaskOptions,
                 data_dir: Path) -> tuple[Photos, list[str]]:
    """Return photos that stay in their files, and notes; files are hashed, but only their headers are decoded."""
    with ThreadPoolExecutor(_threads()) as pool:
        heads = _heads(pool, files, Image.open, f"benchmark {name!r}")
    form, notes = format_of(heads, options)
    data_files = listed_files(listed_paths)
    contents = contents_of(data_files, index_of(data_dir / "streams", name, data_files))
    table = PhotoTable.of(root, files, [(head.height, head.width) for head in heads],
                          [contents.by_name[str(path)] for path in files])
    return Photos(table, torch.arange(len(files)), form), notes


def read_photos(parts: Sequence[Sequence[Any]], options: PhotoOptions, where: str,
                opened: Callable[[Any], Image.Image] = Image.open, way_out: str = "", copies: int = 1
                ) -> tuple[list[Tensor], list[str]]:
    """Return the photos of each part, and notes on how they were changed.

    Photos are uint8 [N, C, H, W]; C = 1 if all photos of all parts are gray, else 3.

    Args:
        parts: for each part, one source for each photo: a path, or another argument of `opened`.
        options: the options for the size of photos.
        where: the name of the data in errors.
        opened: opens a source.
        way_out: advice that the error adds if the photos do not fit into memory.
        copies: how many times the caller needs the photos in memory.

    Raises:
        DataError: photos cannot be read (the error names the first three), or they do not fit into memory.
    """
    sources = list(chain.from_iterable(parts))
    with ThreadPoolExecutor(_threads()) as pool:
        heads = _heads(pool, sources, opened, where)
        form, notes = format_of(heads, options)
        size = copies * len(sources) * form.channels * form.height * form.width
        available = host_memory_left()
        if available is not None and size > available:
            raise DataError(f"{where}: {len(sources):,} photos of {form.width} x {form.height} pixels take "
                            f"{size / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are available; choose a "
                            f"smaller size{way_out}")
        return _decode(pool, parts, form, opened, where), notes


def read_as(files: Sequence[Path], form: PhotoFormat, where: str) -> Tensor:
    """Return photos in a given format, uint8 [N, C, H, W]; `where` names the reader in errors.

    Raises:
        DataError: photos cannot be read, or have sides that do not fit a format that is not square.
    """
    with ThreadPoolExecutor(_threads()) as pool:
        return _decode(pool, [files], form, Image.open, where)[0]


def _decode(pool: ThreadPoolExecutor, parts: Sequence[Sequence[Any]], form: PhotoFormat,
            opened: Callable[[Any], Image.Image], where: str) -> list[Tensor]:
    """Return the photos of each part in a format, uint8 [N, C, H, W]."""
    x = [torch.empty((len(part), form.channels, form.height, form.width), dtype=torch.uint8) for part in parts]
    photos = [photo for part in x for photo in part.numpy()]

    def read(item: tuple[int, Any]) -> None:
        with opened(item[1]) as image:
            if form.resize is None:
                shrink(image, form)
            into(photos[item[0]], fit_to_form(turn_upright(image, form.channels), form))

    _all(pool, read, list(enumerate(chain.from_iterable(parts))), where)
    return x


def format_of(heads: Sequence[Head], options: PhotoOptions) -> tuple[PhotoFormat, list[str]]:
    """Return the format to which photos with these headers are converted, and notes on it.

    If the options have no size, it is `DEFAULT_SIZE`, unless all photos have a single size of at most `AS_THEY_ARE`.
    """
    shapes = {(head.width, head.height) for head in heads}
    notes, size = [], options.size
    gray = all(head.mode in GRAY for head in heads)
    channels = 1 if gray else 3
    if options.crop is not None:
        notes.append(f"photos were resized to {options.resize} pixels along the shorter side ({options.interpolation}),"
                     f" and their middle of {options.crop} x {options.crop} pixels was cut out; they are "
                     f"{_sizes(shapes)}")
        return (PhotoFormat(options.crop, options.crop, channels, options.resize, options.interpolation),
                [*notes, *_modes(heads, gray)])
    if size is None and (len(shapes) > 1 or max(next(iter(shapes))) > AS_THEY_ARE):
        size = DEFAULT_SIZE
        notes.append(f"photos were brought to {size} x {size} pixels, as neither the model nor size=N says another "
                     f"size; they are {_sizes(shapes)}")
    elif size is not None and shapes != {(size, size)}:
        notes.append(f"photos were brought to {size} x {size} pixels; they are {_sizes(shapes)}")
    width, height = (size, size) if size is not None else next(iter(shapes))
    return (PhotoFormat(height, width, channels, interpolation=options.interpolation),
            [*notes, *_modes(heads, gray)])


def _threads() -> int:
    """Return how many threads read photos."""
    return min(8, usable_cores())


def _heads(pool: ThreadPoolExecutor, sources: Sequence[Any], opened: Callable[[Any], Image.Image],
           where: str) -> list[Head]:
    """Return the header of each photo."""
    return _all(pool, lambda item: head_of(opened(item[1])), list(enumerate(sources)), where)


def _all(pool: ThreadPoolExecutor, work: Callable[[tuple[int, Any]], Out], items: Sequence[tuple[int, Any]],
         where: str) -> list[Out]:
    """Call `work` for each numbered source and return the results, or raise one error that names the first failures."""
    def attempt(item: tuple[int, Any]) -> tuple[Out | None, str]:
        try:
            return work(item), ""
        except MemoryError:  # says nothing about the photo
            raise
        except Exception as error:  # Pillow's readers raise many kinds, all reported below
            return None, reason(error)

    results = list(pool.map(attempt, items))
    failures = [(source if isinstance(source, Path) else f"photo {index}", problem)
                for (index, source), (_, problem) in zip(items, results, strict=True) if problem]
    if failures:
        listing = "; ".join(f"{source} ({problem})" for source, problem in failures[:SHOWN])
        raise DataError(f"{where}: {len(failures)} of {len(items)} photos cannot be read, repair or remove them: "
                        f"{listing}" + (" ..." if len(failures) > SHOWN else ""))
    return [out for out, _ in results]  # type: ignore[misc] # none has failed


def _sizes(shapes: set[tuple[int, int]]) -> str:
    """Return a description of the sizes of photos."""
    smallest, largest = min(shapes, key=lambda s: s[0] * s[1]), max(shapes, key=lambda s: s[0] * s[1])
    return f"{smallest[0]} x {smallest[1]}" + ("" if len(shapes) == 1 else f" to {largest[0]} x {largest[1]}")


def _modes(heads: Sequence[Head], gray: bool) -> list[str]:
    """Return notes with the numbers of photos that were rotated, that have more than 8 bits, and that were not RGB."""
    counts = Counter("gray" if h.mode in GRAY else KINDS.get(h.mode, h.mode) for h in heads if h.mode != "RGB")
    turned = sum(head.turned for head in heads)
    notes = [f"{turned} of {len(heads)} photos were turned upright as their EXIF says"] if turned else []
    if deep := sum(head.mode.startswith("I") for head in heads):
        notes.append(f"{deep} of {len(heads)} photos have more than 8 bits per pixel: 0 to 65,535 became 0 to 255")
    if gray:
        return [*notes, f"all {len(heads)} photos are gray and have one channel"]
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        notes.append(f"photos that became RGB, of {len(heads)}: {kinds}")
    return notes
