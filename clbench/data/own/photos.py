"""Build the benchmark `images:DIR` and named photo benchmarks, from a tensor of bytes or from files, batch by batch.

Photos are rotated as their EXIF data say, resized to one size and converted to RGB. Notes describe these changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from clbench.core.compat import usable_cores
from clbench.core.device import host_memory_left
from clbench.core.errors import DataError
from clbench.data.avalanche.benchmarks import Layout
from clbench.data.common_options import PhotoOptions, PixelOptions
from clbench.data.contents import contents_of, index_of, listed_files
from clbench.data.named.options import NamedOptions, files_of
from clbench.data.own.benchmark import describe_copies, own_benchmark, train_groups
from clbench.data.own.dividing import divide
from clbench.data.own.lists import find_photos, image_files
from clbench.data.own.pixels import GRAY, Head, PhotoFormat, formed, head_of, into, reason, shrink, upright
from clbench.data.own.samples import PhotoFiles, locate
from clbench.data.own_options import ImagesOptions, StoredTaskOptions
from clbench.data.photo_files import Photos, PhotoTable
from clbench.data.raw import RawStream, Split

DEFAULT_SIZE = 32  # pixels per side if neither user nor model sets it: usual for small networks
AS_THEY_ARE = 64  # pixels per side; photos of a single size up to this keep their size
SHOWN = 3  # unreadable files that an error names
KINDS = {"P": "of a palette", "PA": "of a palette", "RGBA": "with transparency, which was dropped",
         "LA": "gray with transparency, which was dropped", "CMYK": "CMYK"}
Out = TypeVar("Out")


def images(name: str, options: ImagesOptions, data_dir: Path, seed: int) -> Any:
    """Return the Avalanche benchmark of the photos in a folder, or a `RawStream` if they stay in their files.

    Raises:
        DataError: the folder does not exist, or `find_photos`, `read_photos` or `divide` raises an error.
    """
    train, test, notes = find_photos(name, options, data_dir)
    files = image_files(name, options.model_dump(), data_dir)
    return photo_benchmark(name, locate(name, data_dir), files, train, test, notes, options, data_dir, seed)


def build_named(options: NamedOptions, data_dir: Path, seed: int) -> Any:
    """Return the benchmark of the photos that the options find, as an Avalanche benchmark or a `RawStream`."""
    split = options.find_files(data_dir)
    return photo_benchmark(options.NAME, options.root(data_dir), files_of(split), split.train, split.test, split.notes,
                           options, data_dir, seed)


def photo_benchmark(name: str, root: Path, files: Sequence[Path], train: PhotoFiles, test: PhotoFiles | None,
                    notes: Sequence[str], options: StoredTaskOptions, data_dir: Path, seed: int) -> Any:
    """Return the Avalanche benchmark of photos, or a `RawStream` if they stay in their files.

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
    if options.read == "files":
        return _in_files(name, root, files, train, test, notes, options, data_dir, seed)
    x, read_notes = read_photos([*train.files, *(test.files if test else ())], options, where,
                                way_out="; read=files reads them batch by batch")
    count = len(train.files)
    return own_benchmark(x[:count], train.labeled, options, seed, where, x_test=x[count:] if test else None,
                         test=test.labeled if test else None, layout=pixel_layout(options, [*notes, *read_notes]))


def _in_files(name: str, root: Path, listed_paths: Sequence[Path], train: PhotoFiles, test: PhotoFiles | None,
              notes: Sequence[str], options: StoredTaskOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of photos that stay in their files; files are hashed, but only their headers are decoded."""
    where = f"benchmark {name!r}"
    files = [*train.files, *(test.files if test else ())]
    with ThreadPoolExecutor(_threads()) as pool:
        heads = _heads(pool, files, Image.open, where)
    form, format_notes = format_of(heads, options)
    data_files = listed_files(listed_paths)
    contents = contents_of(data_files, index_of(data_dir / "streams", name, data_files))
    table = PhotoTable.of(root, files, [(head.height, head.width) for head in heads],
                          [contents.by_name[str(path)] for path in files])
    photos = Photos(table, torch.arange(len(files)), form)
    division = divide(train.labeled, test.labeled if test else None, options, seed, where)
    train_splits = [Split(photos[torch.from_numpy(rows)], torch.from_numpy(division.y_train[rows]), groups=groups)
                    for rows, groups in zip(division.train, train_groups(division), strict=True)]
    begin = len(train.files) if test else 0
    test_splits = [Split(photos[torch.from_numpy(rows + begin)], torch.from_numpy(division.y_test[rows]),
                         rows=torch.from_numpy(rows)) for rows in division.test]
    hashes = ([split.x.hashes for split in part if isinstance(split.x, Photos)] for part in (train_splits, test_splits))
    layout = pixel_layout(options, [*notes, *format_notes, *division.notes, *describe_copies(*hashes)])
    return RawStream(tuple(train_splits), tuple(test_splits), division.orders, notes=layout.notes,
                     augment=layout.augment, class_names=division.classes)


def pixel_layout(options: PixelOptions, notes: list[str]) -> Layout:
    """Return the layout of inputs that may be images."""
    return Layout(augment="" if options.augment == "none" else options.augment, notes=tuple(notes))


def read_photos(sources: Sequence[Any], options: PhotoOptions, where: str,
                opened: Callable[[Any], Image.Image] = Image.open, way_out: str = "") -> tuple[Tensor, list[str]]:
    """Return photos uint8 [N, C, H, W], C = 1 if all are gray, else 3, and notes on how they were changed.

    Args:
        sources: one source for each photo: a path, or another argument of `opened`.
        options: the options for the size of photos.
        where: the name of the data in errors.
        opened: opens a source.
        way_out: advice that the error adds if the photos do not fit into memory.

    Raises:
        DataError: photos cannot be read (the error names the first three), or they do not fit into memory.
    """
    with ThreadPoolExecutor(_threads()) as pool:
        heads = _heads(pool, sources, opened, where)
        form, notes = format_of(heads, options)
        shape = (len(sources), form.channels, form.height, form.width)
        size, available = torch.Size(shape).numel(), host_memory_left()
        if available is not None and size > available:
            raise DataError(f"{where}: {len(sources):,} photos of {form.width} x {form.height} pixels take "
                            f"{size / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are available; choose a "
                            f"smaller size{way_out}")
        x = torch.empty(shape, dtype=torch.uint8)

        def read(item: tuple[int, Any]) -> None:
            with opened(item[1]) as image:
                if form.resize is None:
                    shrink(image, form)
                into(x[item[0]].numpy(), formed(upright(image, form.channels), form))

        _all(pool, read, list(enumerate(sources)), where)
    return x, notes


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
    """Return notes with the numbers of photos that were not RGB, and of photos that were rotated."""
    counts = Counter("gray" if h.mode in GRAY else KINDS.get(h.mode, h.mode) for h in heads if h.mode != "RGB")
    turned = sum(head.turned for head in heads)
    notes = [f"{turned} of {len(heads)} photos were turned upright as their EXIF says"] if turned else []
    if gray:
        return [*notes, f"all {len(heads)} photos are gray and have one channel"]
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        notes.append(f"photos that became RGB, of {len(heads)}: {kinds}")
    return notes
