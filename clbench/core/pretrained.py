"""The files and metadata of pretrained weights, and the interface to a model's source of published weights.

A source belongs to a model's declaration (`ModelInfo.weights`). The plan resolves names with it, so that a trial's key
has the revision. The process that trains loads the tensors with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clbench.core.errors import DataError, message_of
from clbench.core.files import hash_file, hash_files

Interpolation = Literal["nearest", "bilinear", "bicubic"]
INDEX_SUFFIX = ".safetensors.index.json"  # of the file in which Hugging Face lists the shards of a model
STARTS_UNTRAINED = "it starts untrained"  # end of the note of a record whose head has no pretrained weights


class Preprocessing(BaseModel):
    """How to turn images into the inputs that weights were trained on.

    Args:
        interpolation: the interpolation by which images are resized.
        antialias: whether pixels are averaged if the image becomes smaller, as PIL does. It also selects the bicubic
            kernel: a = -0.5 with it, as in PIL, and a = -0.75 without it.
        mean: the mean of each channel, for inputs scaled to [0, 1].
        std: the standard deviation of each channel, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    interpolation: Interpolation = Field("bicubic", description="Interpolation by which images are resized.")
    antialias: bool = Field(True, description="Whether pixels are averaged if the image becomes smaller, as PIL does.")
    mean: tuple[float, ...] = Field(min_length=1, description="Mean of each channel, of inputs scaled to [0, 1].")
    std: tuple[float, ...] = Field(min_length=1, description="Standard deviation of each channel.")

    @model_validator(mode="after")
    def _check_normalization(self) -> Preprocessing:
        """Reject a mean and a deviation of different lengths, and a deviation that is not above 0."""
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("mean and std need a number for each channel, and std is above 0")
        return self

    def __str__(self) -> str:
        """Return the preprocessing as notes show it: `bicubic, mean 0.5 0.5 0.5, deviation 0.5 0.5 0.5`."""
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.interpolation}{'' if self.antialias else ' without antialias'}, mean {mean}, deviation {std}"


@dataclass(frozen=True)
class PretrainedInfo:
    """Metadata of weights; each part may be unknown."""

    size: int | None = None  # pixels along each side of the images
    preprocessing: Preprocessing | None = None
    licence: str = ""
    training_data: str = ""


@dataclass(frozen=True)
class NamedWeights:
    """Weights with an exact name that includes source and revision, such as `timm:TAG@REVISION`."""

    name: str
    info: PretrainedInfo


class WeightsSource(Protocol):
    """A source of published weights of a model."""

    def find(self, model: str, name: str) -> NamedWeights:
        """Resolve a name of weights.

        Raises:
            SpecError: the model has no weights of that name.
            DataError: they are neither on this machine nor available for download.
        """

    def load(self, model: str, name: str) -> Mapping[str, Any]:
        """Return the tensors of weights by the name that `find` returned; raise a DataError if they are unavailable."""

    def info(self, model: str) -> PretrainedInfo:
        """Return the metadata of the model's default weights, for a file of weights without metadata."""


def weight_files(path: Path) -> list[Path]:
    """Return the files with the weights of a model: the shards if `path` is Hugging Face's index, or else `path`.

    Raises:
        DataError: the index cannot be read, or a shard is missing.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    try:
        names = sorted(map(Path, set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())))
        if not names:
            raise ValueError("it lists no shards")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"weights {path}: it cannot be read as an index of shards") from None
    if wrong := [name for name in names if name.name != str(name)]:
        raise DataError(f"weights {path}: the shard {str(wrong[0])!r} is not a name of a file in the same folder")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise DataError(f"weights {path}: {len(missing)} of {len(names)} shards are missing: {missing[0]}")
    return [path.parent / name for name in names]


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of a file of weights; for Hugging Face's index, a hash of the names and hashes of its shards.

    Raises:
        OSError: it cannot be read.
        DataError: the index cannot be read, or a shard is missing.
    """
    return hash_files(weight_files(path)) if path.name.endswith(INDEX_SUFFIX) else hash_file(path)


def read_weights_info(path: Path) -> PretrainedInfo | None:
    """Return the metadata from the JSON file that belongs to a file of weights; None if there is no such file.

    For `NAME.safetensors` it is `NAME.json` in the same folder. For `model.safetensors` it may be `config.json`, as on
    the Hugging Face Hub, also if the weights are divided into shards. The keys are those of timm, at the top or under
    `pretrained_cfg`: `input_size` [3, H, W], `interpolation`, `antialias`, `mean`, `std`, `license`, `training_data`.

    Raises:
        DataError: the file cannot be read, or a value has the wrong type.
    """
    path = path.with_name(path.name.removesuffix(".index.json"))
    is_generic = path.stem in ("model", "pytorch_model")
    description = next((p for p in (path.with_suffix(".json"), path.with_name("config.json") if is_generic else None)
                        if p is not None and p.is_file()), None)
    if description is None:
        return None
    try:
        values = json.loads(description.read_text())
        inner = values.get("pretrained_cfg", values) if isinstance(values, dict) else None
        if not isinstance(inner, dict):
            raise ValueError("expected an object")
        return parse_weights_info(inner, licence=str(values.get("license") or ""))
    except (OSError, ValueError, TypeError, IndexError, ValidationError) as error:
        raise DataError(f"{description}, which describes weights {path.name}, cannot be used: "
                        f"{message_of(error, 200)}") from None


def parse_weights_info(values: Mapping[str, Any], licence: str = "") -> PretrainedInfo:
    """Return the metadata that a mapping with timm's keys holds; see `read_weights_info`.

    Raises:
        ValueError: a value has the wrong type.
    """
    preprocessing = None
    if values.get("mean"):
        preprocessing = Preprocessing(
            interpolation=values.get("interpolation") or "bicubic", antialias=values.get("antialias", True),
            mean=tuple(values["mean"]), std=tuple(values.get("std") or ()))
    side = values.get("input_size")
    return PretrainedInfo(int(side[-1]) if side else None, preprocessing, str(values.get("license") or licence),
                          str(values.get("training_data") or ""))
