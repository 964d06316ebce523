"""Photos as one tensor of bytes, and `images:DIR`, photos in folders as a benchmark.

Photos are rotated as their EXIF data say, resized to one size and converted to RGB. Notes describe what was done.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clbench.core.errors import DataError
from clbench.data.avalanche.benchmarks import Layout
from clbench.data.own.benchmark import own_benchmark
from clbench.data.own.folders import find_photos
from clbench.data.own_options import ImagesOptions, PixelOptions

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")  # names of the folders of parts














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


DEFAULT_SIZE = 32  # pixels, where neither the user nor the model says: what small networks are made for
AS_THEY_ARE = 64  # pixels up to which photos that are all of one size are left so
SHOWN = 3  # unreadable files that an error names
GREY = frozenset(("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N"))  # of Pillow's modes
KINDS = {"P": "of a palette", "PA": "of a palette", "RGBA": "with transparency, which was dropped",
         "LA": "grey with transparency, which was dropped", "CMYK": "CMYK"}
ORIENTATION, TURNED = 0x0112, frozenset((5, 6, 7, 8))  # EXIF: the tag, and the values that exchange the sides
Out = TypeVar("Out")


class Head(NamedTuple):
    """What is known of a photo before its pixels are read: sides as it is looked at, mode, whether EXIF turns it."""

    width: int
    height: int
    mode: str
    turned: bool


def read_photos(sources: Sequence[Any], size: int | None, where: str,
                opened: Callable[[Any], Image.Image] = Image.open) -> tuple[Tensor, list[str]]:
    """Return photos uint8 [N, C, H, W], C = 1 if all are grey, else 3, and notes on what was done to them.

    Args:
        sources: one for each photo: paths, or what `opened` takes.
        size: pixels along each side; None: `DEFAULT_SIZE`, unless all are of one size of at most `AS_THEY_ARE`.
        where: names the data in errors.
        opened: opens a source.

    Raises:
        DataError: some cannot be read; the first three are named.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        heads = _all(pool, lambda item: _head(opened(item[1])), list(enumerate(sources)), where)
        shapes = {(head.width, head.height) for head in heads}
        notes = []
        if size is None and (len(shapes) > 1 or max(next(iter(shapes))) > AS_THEY_ARE):
            size = DEFAULT_SIZE
            notes.append(f"photos were brought to {size} x {size} pixels, as neither the model nor size=N says another "
                         f"size; they are {_sizes(shapes)}")
        elif size is not None and shapes != {(size, size)}:
            notes.append(f"photos were brought to {size} x {size} pixels; they are {_sizes(shapes)}")
        grey = all(head.mode in GREY for head in heads)
        channels = 1 if grey else 3
        width, height = (size, size) if size is not None else next(iter(shapes))
        x = torch.empty((len(sources), channels, height, width), dtype=torch.uint8)

        def read(item: tuple[int, Any]) -> None:
            image = np.asarray(_pixels(opened(item[1]), size, grey))
            x[item[0]] = torch.from_numpy(image.reshape(height, width, channels).transpose(2, 0, 1).copy())

        _all(pool, read, list(enumerate(sources)), where)
    return x, [*notes, *_modes(heads, grey)]


def _all(pool: ThreadPoolExecutor, work: Callable[[tuple[int, Any]], Out], items: Sequence[tuple[int, Any]],
         where: str) -> list[Out]:
    """Do work on each numbered source and return the results, or raise one error that names the first that failed."""
    def attempt(item: tuple[int, Any]) -> tuple[Out | None, str]:
        try:
            return work(item), ""
        except Exception as error:  # Pillow's readers raise many kinds, all reported below
            return None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]

    done = list(pool.map(attempt, items))
    failed = [(source if isinstance(source, Path) else f"photo {index}", why)
              for (index, source), (_, why) in zip(items, done, strict=True) if why]
    if failed:
        named = "; ".join(f"{source} ({why})" for source, why in failed[:SHOWN])
        raise DataError(f"{where}: {len(failed)} of {len(items)} photos cannot be read, mend or remove them: {named}" +
                        (" ..." if len(failed) > SHOWN else ""))
    return [out for out, _ in done]  # type: ignore[misc] # none has failed


def _head(image: Image.Image) -> Head:
    """Return what a photo's head says, and close the file."""
    with image:
        turn = image.getexif().get(ORIENTATION, 1)
        width, height = image.size[::-1] if turn in TURNED else image.size
        return Head(width, height, image.mode, turn != 1)


def _pixels(image: Image.Image, size: int | None, grey: bool) -> Image.Image:
    """Return a photo upright, of the size, grey or RGB.

    A JPEG that is more than twice as large is decoded at a half, quarter or eighth, never below twice the size, as
    Pillow's thumbnails are; then its shorter side is resized (bicubic) and the middle cut out.
    """
    with image:
        if size is not None:
            scale = 2 * size / min(image.size)
            if scale < 1:
                image.draft(None, (int(np.ceil(image.width * scale)), int(np.ceil(image.height * scale))))
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise ValueError("its pixels are floating-point numbers, of which the range is not known")
        if upright.mode.startswith("I"):  # 16 bits; Pillow would cut off what is above 255
            upright = Image.fromarray((np.asarray(upright, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
        upright = upright.convert("L" if grey else "RGB")
    if size is None or upright.size == (size, size):
        return upright
    sides = [max(size, round(size * side / min(upright.size))) for side in upright.size]
    left, top = ((side - size) // 2 for side in sides)
    return upright.resize((sides[0], sides[1]), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _sizes(shapes: set[tuple[int, int]]) -> str:
    """Say of what sizes photos are."""
    least, most = min(shapes, key=lambda s: s[0] * s[1]), max(shapes, key=lambda s: s[0] * s[1])
    return f"{least[0]} x {least[1]}" + ("" if len(shapes) == 1 else f" to {most[0]} x {most[1]}")


def _modes(heads: Sequence[Head], grey: bool) -> list[str]:
    """Return notes on photos that were not RGB, with counts, and on those that were turned."""
    counts = Counter("grey" if h.mode in GREY else KINDS.get(h.mode, h.mode) for h in heads if h.mode != "RGB")
    turned = sum(head.turned for head in heads)
    notes = [f"{turned} of {len(heads)} photos were turned upright as their EXIF says"] if turned else []
    if grey:
        return [*notes, f"all {len(heads)} photos are grey and have one channel"]
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        notes.append(f"photos that became RGB, of {len(heads)}: {kinds}")
    return notes
