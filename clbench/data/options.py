"""The options of the built-in benchmarks (no torch here, so that they can be listed without it)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from clbench.options import Options


class ImageOptions(Options):
    """Options of every image benchmark."""

    normalize: bool = Field(False, description="subtract the data set's mean and divide by its deviation; "
                            "false keeps inputs in [0, 1] as van de Ven & Tolias do")


class ClassOptions(Options):
    """Options of the benchmarks that split a data set by class."""

    classes: ClassVar[int] = 10  # of the data set

    tasks: int = Field(5, ge=1, description="number of tasks; divides the number of classes")
    class_order: Literal["natural", "seed"] = Field(
        "natural", description="0, 1, 2, ... as published, or shuffled by the trial's seed")

    @property
    def used(self) -> int:
        """Return how many classes are to be shared out evenly among `tasks`."""
        return self.classes

    @model_validator(mode="after")
    def _divides(self) -> ClassOptions:
        """Refuse tasks of unequal size."""
        if self.used % self.tasks:
            fitting = [n for n in range(1, self.used + 1) if self.used % n == 0]
            raise ValueError(f"tasks should divide the {self.used} classes: {', '.join(map(str, fitting[:-1]))} or "
                             f"{fitting[-1]}, got {self.tasks}")
        return self


class SplitOptions(ClassOptions, ImageOptions):
    """Options of the benchmarks that split MNIST and its kin."""


class CIFAROptions(ClassOptions):
    """Options of `split-cifar10`."""

    normalize: Literal["dataset", "imagenet", "none"] = Field(
        "dataset", description="whose mean and deviation inputs are normalised by (imagenet suits weights that were "
                               "trained so); none keeps them in [0, 1]")
    augment: bool = Field(True, description="random crop (4 pixels of padding) and flip of training images, drawn anew "
                                            "for each")
    train_per_class: int | None = Field(None, ge=1, description="only the first so many training images of each class")
    test_per_class: int | None = Field(None, ge=1, description="only the first so many test images of each class")


class CIFAR100Options(CIFAROptions):
    """Options of `split-cifar100`."""

    classes: ClassVar[int] = 100

    tasks: int = Field(10, ge=1, description="number of tasks; divides the number of classes")
    held_out: int = Field(0, ge=0, le=99, description="leave out so many of the classes, the last in natural order; "
                                                      "clbench pretrain makes a base of them")
    part: Literal["stream", "held-out"] = Field("stream", description="which classes the tasks have: those that are "
                                                "left, or those that are held out")

    @property
    def used(self) -> int:
        """Return how many classes the stream has."""
        return self.held_out if self.part == "held-out" else self.classes - self.held_out

    @model_validator(mode="after")
    def _has_some(self) -> CIFAR100Options:
        """Refuse a stream of no classes."""
        if not self.used:
            raise ValueError("part = held-out needs held_out = number of classes")
        return self


class B50Options(CIFAROptions):
    """Options of `split-cifar100-b50`."""

    classes: ClassVar[int] = 100

    tasks: int = Field(5, ge=1, description="tasks after the first one; divides the other 50 classes")

    @property
    def used(self) -> int:
        """Return how many classes come after the first task."""
        return self.classes // 2


class PermutedOptions(ImageOptions):
    """Options of `permuted-mnist`."""

    tasks: int = Field(10, ge=1, description="number of tasks; the first keeps the images as they are")
    padding: int = Field(0, ge=0, le=8, description="zero pixels on each side before permuting (2 gives 32 x 32)")


class RotatedOptions(ImageOptions):
    """Options of `rotated-mnist`."""

    tasks: int = Field(5, ge=1, le=36, description="number of tasks, at angles evenly spaced from 0 up to `degrees`")
    degrees: float = Field(180.0, gt=0, le=360, description="angles go from 0 to this, which is not reached")
