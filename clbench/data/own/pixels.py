"""Decode photos with Pillow: rotate them as their EXIF data say, convert them to gray or RGB, resize and crop them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from clbench.core.errors import DataError, typed_message

GRAY = frozenset(("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N"))  # modes of Pillow
DEEPEST = 65_535  # largest value of a pixel, which becomes 255
ORIENTATION, TURNED = 0x0112, frozenset((5, 6, 7, 8))  # EXIF: the tag, and the values that swap width and height
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
METADATA = frozenset((b"eXIf", b"iTXt", b"tEXt", b"zTXt"))  # chunks of a PNG
Bytes = npt.NDArray[np.uint8]
Filter = Literal["bicubic", "bilinear"]
FILTERS: dict[Filter, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class PhotoFormat:
    """The format to which photos are converted: sides in pixels, channels (1: gray, 3: RGB), and resizing.

    Without `resize`, the shorter side is resized to that of the result, and large JPEGs are decoded at a reduced scale.
    With `resize`, the shorter side becomes `resize` pixels, as in torchvision's `Resize`. Then the middle is cut out.
    """

    height: int
    width: int
    channels: int
    resize: int | None = None
    interpolation: Filter = "bicubic"


class Part(NamedTuple):
    """A part of a photo: top, left, height and width, whether it is mirrored, and how it is resized."""

    box: list[int]
    mirrored: bool
    interpolation: Filter


class Head(NamedTuple):
    """A photo's header: width and height after the rotation by EXIF, mode, and whether EXIF rotates or mirrors it."""

    width: int
    height: int
    mode: str
    turned: bool


def head_of(image: Any) -> Head:
    """Return a photo's header, and close the file."""
    with image:
        # Pillow decodes a PNG to find metadata that follow the pixels; its base class reads only those before them.
        exif = image.getexif() if image.format != "PNG" or _has_late_metadata(image) else Image.Image.getexif(image)
        orientation = exif.get(ORIENTATION, 1)
        # Recent versions of Pillow have already swapped the sides of a TIFF, so those in the file are taken.
        size = image.size if image.format != "TIFF" else (image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT])
        width, height = size[::-1] if orientation in TURNED else size
        return Head(width, height, image.mode, orientation != 1)


def _has_late_metadata(image: Any) -> bool:
    """Return whether metadata follow the pixels of a PNG, or whether the file ends too early."""
    file, position, after_pixels = image.fp, image.fp.tell(), False
    file.seek(8)  # after the signature
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND" or (after_pixels and kind in METADATA):
                return bool(kind != b"IEND")
            after_pixels |= kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)  # 4 bytes are a checksum
        return True
    finally:
        file.seek(position)


def turn_upright(image: Image.Image, channels: int) -> Image.Image:
    """Return a photo upright, gray or RGB."""
    image.load()  # metadata may follow the pixels in the file
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which the range is not known")
    if image.mode.startswith("I"):  # 16 or 32 bits; Pillow would cut off what is above 255
        pixels = np.asarray(image, np.float64)
        if pixels.min() < 0 or pixels.max() > DEEPEST:
            raise ValueError(f"its pixels are {pixels.min():,.0f} to {pixels.max():,.0f}, not within 0 to {DEEPEST:,}; "
                             "scale them")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def shrink(image: Image.Image, form: PhotoFormat) -> None:
    """Let Pillow decode a JPEG that is more than twice as large as needed at a half, quarter or eighth of its size.

    The decoded photo is at least twice as large as needed, as for Pillow's thumbnails.
    """
    scale = 2 * min(form.height, form.width) / min(image.size)
    if scale < 1:
        image.draft(None, (int(np.ceil(image.width * scale)), int(np.ceil(image.height * scale))))


def fit_to_form(image: Image.Image, form: PhotoFormat) -> Image.Image:
    """Return an upright photo, resized and center-cropped to a format.

    Raises:
        ValueError: without `resize`, a photo has other sides than a format that is not square.
    """
    width, height = image.size
    if form.resize is None:
        if image.size == (form.width, form.height):
            return image
        if form.height != form.width:
            raise ValueError(f"it does not have {form.width} x {form.height} pixels, as the others have")
        size = form.height
        sides = [max(size, round(size * side / min(image.size))) for side in image.size]
        left, top = ((side - size) // 2 for side in sides)
    else:
        sides = [form.resize if side == min(image.size) else int(form.resize * side / min(image.size))
                 for side in image.size]
        left, top = (round((side - cut) / 2) for side, cut in zip(sides, (form.width, form.height), strict=True))
    if (width, height) != (sides[0], sides[1]):
        image = image.resize((sides[0], sides[1]), FILTERS[form.interpolation])
    return image.crop((left, top, left + form.width, top + form.height))


def into(out: Bytes, image: Image.Image, mirrored: bool = False) -> None:
    """Write a photo's pixels to an array [C, H, W]; mirror them if `mirrored`."""
    pixels = np.asarray(image).reshape(*out.shape[1:], out.shape[0])
    np.copyto(out, (pixels[:, ::-1] if mirrored else pixels).transpose(2, 0, 1))


def read_photo(path: str, size: list[int], form: PhotoFormat, whole: Bytes | None,
               part: Part | None, crop: Bytes | None) -> None:
    """Decode a photo into arrays [C, H, W].

    Args:
        path: the path of the file.
        size: the expected height and width of the photo.
        form: the format of the whole photo.
        whole: receives the whole photo; None if it is not needed.
        part: a part of the photo; None if no part is needed.
        crop: receives the resized part; None if it is not needed.

    Raises:
        DataError: the photo cannot be read, or has another size.
    """
    try:
        with Image.open(path) as opened:
            if sorted(opened.size) != sorted(size):  # without decoding; the photo may be turned
                raise ValueError(f"it has {opened.width} x {opened.height} pixels, and had {size[1]} x {size[0]} "
                                 "before")
            is_reduced = form.resize is None and crop is None
            if is_reduced:
                shrink(opened, form)
            image = turn_upright(opened, form.channels)
            if not is_reduced and [image.height, image.width] != size:
                raise ValueError("it is turned by 90 degrees, and was not before")
            if whole is not None:
                into(whole, fit_to_form(image, form))
            if crop is not None and part is not None:
                top, left, height, width = part.box
                cut = image.crop((left, top, left + width, top + height))
                sides = crop.shape[2], crop.shape[1]
                into(crop, cut if cut.size == sides else cut.resize(sides, FILTERS[part.interpolation]), part.mirrored)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise DataError(f"photo {path} cannot be read ({reason(error)}); repair or remove it, and run again") from error


def reason(error: Exception) -> str:
    """Return the type and the start of the message of an error of Pillow, or that a photo is too large."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's limit: make it smaller"
    return typed_message(error)[:120]
