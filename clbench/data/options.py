"""The options of the built-in benchmarks (no torch here, so that they can be listed without it)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from clbench.options import Options

CLASSES = 10  # of every data set here


class ImageOptions(Options):
    """Options of every image benchmark."""

    normalize: bool = Field(False, description="subtract the data set's mean and divide by its deviation; "
                            "false keeps inputs in [0, 1] as van de Ven & Tolias do")


class SplitOptions(ImageOptions):
    """Options of the benchmarks that split a data set by class."""

    tasks: int = Field(5, ge=1, description="number of tasks: 1, 2, 5 or 10")
    class_order: Literal["natural", "seed"] = Field(
        "natural", description="0, 1, 2, ... as published, or shuffled by the trial's seed")

    @field_validator("tasks")
    @classmethod
    def _divides(cls, tasks: int) -> int:
        """Refuse tasks of unequal size."""
        if CLASSES % tasks:
            raise ValueError(f"should divide the {CLASSES} classes: 1, 2, 5 or 10, got {tasks}")
        return tasks


class PermutedOptions(ImageOptions):
    """Options of `permuted-mnist`."""

    tasks: int = Field(10, ge=1, description="number of tasks; the first keeps the images as they are")
    padding: int = Field(0, ge=0, le=8, description="zero pixels on each side before permuting (2 gives 32 x 32)")


class RotatedOptions(ImageOptions):
    """Options of `rotated-mnist`."""

    tasks: int = Field(5, ge=1, le=36, description="number of tasks, at angles evenly spaced from 0 up to `degrees`")
    degrees: float = Field(180.0, gt=0, le=360, description="angles go from 0 to this, which is not reached")
