"""Convert what a user gives to a loaded model to raw samples, as the benchmark stores them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import DataError
from clbench.core.files import expand_home
from clbench.core.registry import Registry
from clbench.data.common_options import PhotoOptions
from clbench.data.own.photos import read_as
from clbench.data.own.pixels import PhotoFormat
from clbench.data.own.texts import as_tokens
from clbench.results.records import Record


def raw_samples(samples: Any, record: Record, shape: Sequence[int], dtype: torch.dtype, registry: Registry) -> Tensor:
    """Return the samples [N, *shape] that a user gives to the model of a record, with the benchmark's dtype.

    Args:
        samples: a tensor or an array, a list of texts, or one or several paths of photos.
        record: the record of the model's trial.
        shape: shape of a raw sample.
        dtype: dtype of the benchmark's samples.
        registry: the installed benchmarks.

    Raises:
        DataError: the samples are no numbers, have another shape or range, or are photos that cannot be read.
    """
    benchmark, expected = record.trial.benchmark, f"{record.name} takes samples [N, {', '.join(map(str, shape))}]"
    if dtype == tokens.DTYPE:
        samples = as_tokens(samples, benchmark.options, record.name)
    elif dtype == torch.uint8 and len(shape) == 3 and shape[0] in (1, 3) and (paths := _paths(samples)):
        options = registry.benchmark(benchmark.name).options.stored(benchmark.options)
        photos = options if isinstance(options, PhotoOptions) else PhotoOptions()
        channels, height, width = shape
        return read_as(paths, PhotoFormat(height, width, channels, photos.resize, photos.interpolation), record.name)
    if isinstance(samples, np.ndarray):  # torch shares the memory, and warns if it is read-only, as that of a photo
        samples = np.require(samples, requirements=["C", "W"])
    try:
        raw = torch.as_tensor(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{expected} as a tensor or an array of numbers, and this {type(samples).__name__} is not one: "
                        "give photos as a list of paths and texts as a list of strings, and convert the inputs of a "
                        "data frame by to_numpy('float32')") from error
    if list(raw.shape[1:]) != list(shape) or not len(raw):
        raise DataError(f"{expected}, not {list(raw.shape)}")
    if raw.is_floating_point() and not bool(torch.isfinite(raw).all()):
        raise DataError(f"{expected} of finite numbers, and these contain NaN or infinity: replace or remove them")
    if dtype in (tokens.DTYPE, raw.dtype):
        return raw.to(dtype)
    raw = raw.to(torch.float32)
    if dtype == torch.uint8 and (float(raw.min()) < 0 or float(raw.max()) > 1):
        raise DataError(f"{record.name} takes images as uint8, or as numbers in [0, 1]; these go from "
                        f"{float(raw.min()):g} to {float(raw.max()):g}")
    return raw


def _paths(samples: Any) -> list[Path]:
    """Return the paths that a user gives, one or a list of them; empty for other samples."""
    parts = samples if isinstance(samples, (list, tuple)) else [samples]
    return [expand_home(part) for part in parts] if all(isinstance(p, (str, os.PathLike)) for p in parts) else []
