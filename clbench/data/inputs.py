"""A stream's images as the inputs that a model takes: of its size and channels, normalised as its weights were trained.

What is done to each batch is said in the stream's `prepare`; images stay as small as they are stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from clbench.core.errors import DataError, SpecError
from clbench.core.pretrained import Preprocessing
from clbench.data.stream import Stream


def as_inputs(stream: Stream, size: int | None, channels: int | None, preprocessing: Preprocessing | None,
              normalize: bool) -> Stream:
    """Return a stream whose images become the inputs that a model takes.

    Args:
        stream: as the benchmark has it.
        size: pixels along each side, None for the benchmark's own.
        channels: of the model's images, None where it takes any.
        preprocessing: of the model's weights; None if they bring none.
        normalize: whether inputs are normalised as the weights were trained, and not as the benchmark does it.

    Raises:
        SpecError: the samples are no images.
        DataError: they are to be normalised and are no bytes or numbers in [0, 1].
    """
    shape = stream.input_shape
    repeated = channels if channels is not None and len(shape) == 3 and shape[0] == 1 else None
    if size is None and repeated is None and preprocessing is None:
        return stream
    if len(shape) != 3:
        raise SpecError(f"this benchmark's samples are no images ({list(shape)}), so the model's size and "
                        "preprocessing do not apply; choose another model")
    prepare = replace(stream.prepare, size=None if shape[1:] == (size, size) else size, channels=repeated)
    notes = []
    if size is not None:
        resized = "" if shape[1:] == (size, size) else f", made of {shape[1]} x {shape[2]}"
        notes.append(f"inputs: {size} x {size} pixels{resized}")
    if repeated:
        notes.append("inputs: grey images, their channel repeated")
    if preprocessing is not None:
        prepare = replace(prepare, interpolation=preprocessing.interpolation, antialias=preprocessing.antialias)
        if normalize:
            require_unit(stream)
            prepare = replace(prepare, mean=preprocessing.mean, std=preprocessing.std)
            notes.append(f"inputs: preprocessed as the weights were trained ({preprocessing})")
        else:
            normalization = f"by mean {list(stream.prepare.mean)}" if stream.prepare.mean else "not at all"
            notes.append(f"inputs: normalised {normalization}, as the benchmark's options say, while the weights were "
                         f"trained with {preprocessing}")
    side = shape[1:] if size is None else (size, size)
    return replace(stream, prepare=prepare, augment=stream.augment and stream.augment.sized(size),
                   input_shape=(repeated or shape[0], *side), notes=(*stream.notes, *notes),
                   fingerprint=hashlib.sha256(f"{stream.fingerprint} {prepare}".encode()).hexdigest()[:16])


def require_unit(stream: Stream) -> None:
    """Refuse numbers outside [0, 1]: they have been normalised already."""
    x = stream.tasks[0].test.x
    if x.dtype != torch.uint8 and (float(x.min()) < 0 or float(x.max()) > 1):
        raise DataError("inputs are to be normalised as the model's weights were trained, but they are not in [0, 1]: "
                        "the benchmark seems to have normalised them; let it give images, or choose normalize = none")
