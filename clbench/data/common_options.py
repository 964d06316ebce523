"""Options that benchmarks of several kinds share: the division of classes, the choice of samples, and photos."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from clbench.core import seeds
from clbench.core.options import Options
from clbench.core.seeds import DEVELOPMENT_BLOCKS, FIRST_DEVELOPMENT_SEED

_ORDER = re.compile(r"natural|seed|(numpy|python):(\d+)")
RANDOM_CROP, SMALLEST_CROP = "random-resized-crop", 0.08  # an augmentation, and torchvision's default for its scale
_ORDERS = "natural, seed, numpy:N or python:N"


class ClassDivision(Options):
    """Options for the order of the classes and the number of classes in each task."""

    LATER: ClassVar[tuple[str, ...]] = ("task_sizes",)

    tasks: int | None = Field(None, ge=1, description="number of tasks")
    class_order: str = Field("natural", description=f"order of the classes: {_ORDERS}")
    classes_in_order: list[str] = Field([], description="all classes in the order in which they are learned")
    task_sizes: list[int] = Field([], description="number of classes in each task, as in 16+20+20, instead of tasks")

    @field_validator("class_order")
    @classmethod
    def _check_order(cls, value: str) -> str:
        """Refuse an unknown order, and seeds that NumPy does not take."""
        match = _ORDER.fullmatch(value)
        if match is None or (match[1] == "numpy" and int(match[2]) >= 2**32):
            raise ValueError(f"should be {_ORDERS}, where N is a number" + (" below 2^32" if match else "")
                             + f", got {value!r}")
        return value

    @field_validator("task_sizes")
    @classmethod
    def _check_task_sizes(cls, value: list[int]) -> list[int]:
        """Refuse a task without classes."""
        if any(size < 1 for size in value):
            raise ValueError("every task needs at least one class")
        return value

    @model_validator(mode="after")
    def _check_conflicts(self) -> ClassDivision:
        """Refuse two class orders, and a number of tasks together with task sizes."""
        if self.classes_in_order and self.class_order != "natural":
            raise ValueError(f"give classes_in_order or class_order = {self.class_order}, not both")
        if self.task_sizes and self.tasks is not None and "tasks" in self.model_fields_set:
            raise ValueError("give tasks or task_sizes, not both; task_sizes says how many tasks there are")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the number of tasks if their sizes are given."""
        values = super()._without_defaults(write)
        if self.task_sizes:
            values.pop("tasks", None)
        return values


class ClassOptions(ClassDivision):
    """Options of the benchmarks that split a data set by class."""

    LATER: ClassVar[tuple[str, ...]] = ("classes_in_order",)
    classes: ClassVar[int] = 10  # of the data set

    tasks: int = Field(5, ge=1, description="number of tasks; must divide the number of classes")
    class_order: str = Field("natural", description="order of the classes. natural: 0, 1, 2, ... as published; seed: "
                             "shuffled with the trial's seed; numpy:N or python:N: shuffled by NumPy's or Python's "
                             "generator with seed N, the same for every trial")
    classes_in_order: list[str] = Field([], description="all classes by name, or by number from 0, in the order in "
                                        "which they are learned, as in 3+1+0+2")

    @property
    def used(self) -> int:
        """Return how many classes are divided among the tasks."""
        return self.classes

    @property
    def ordered(self) -> int:
        """Return the number of classes in the class order."""
        return self.used

    @property
    def sizes(self) -> list[int]:
        """Return the number of classes of each task."""
        return self.task_sizes or [self.used // self.tasks] * self.tasks

    @model_validator(mode="after")
    def _check_division(self) -> ClassOptions:
        """Refuse incomplete lists of classes, and tasks that do not divide the classes equally or by their sizes."""
        if len(set(self.classes_in_order)) != len(self.classes_in_order) or (
                self.classes_in_order and len(self.classes_in_order) != self.ordered):
            raise ValueError(f"classes_in_order should list each of the {self.ordered} classes once")
        if self.task_sizes:
            if sum(self.task_sizes) != self.used:
                raise ValueError(f"task_sizes should sum to the {self.used} classes, got {sum(self.task_sizes)}")
            return self
        if self.used % self.tasks:
            fitting = [n for n in range(1, self.used + 1) if self.used % n == 0]
            raise ValueError(f"tasks should divide the {self.used} classes: {', '.join(map(str, fitting[:-1]))} or "
                             f"{fitting[-1]}, got {self.tasks}")
        return self


class PerClassOptions(Options):
    """Options that limit the samples of each class: to the first ones, or to a block that depends on the trial's seed.

    With `train_draw` or `test_draw` = `seed`, the samples of each class are shuffled once, in the same way for all
    trials (`datasets.chosen_rows`). They are cut into blocks of `train_per_class` or `test_per_class` samples, and
    seed s takes block s. Development seeds take block s mod 10 of the training samples, and no block of the test
    samples.
    """

    LATER: ClassVar[tuple[str, ...]] = ("train_draw", "test_draw")
    smallest_class: ClassVar[tuple[int, int]]  # training and test samples of the smallest class

    train_per_class: int | None = Field(
        None, ge=1, description="number of training samples used of each class; none: all")
    test_per_class: int | None = Field(None, ge=1, description="number of test samples used of each class; none: all")
    train_draw: Literal["first", "seed"] = Field(
        "first", description="which training samples of a class are used. first: the first train_per_class; seed: a "
        "block of as many that no other seed below 1000 uses. Seeds from 1000 on, for tuning, share ten blocks")
    test_draw: Literal["first", "seed"] = Field(
        "first", description="which test samples of a class are used. first: the first test_per_class; seed: a block "
        "of as many that no other seed uses. Seeds from 1000 on, for tuning, have no block and need --validation")

    @model_validator(mode="after")
    def _check_draws(self) -> PerClassOptions:
        """Refuse blocks without a size."""
        for part in ("train", "test"):
            if getattr(self, f"{part}_draw") == "seed" and getattr(self, f"{part}_per_class") is None:
                raise ValueError(f"{part}_draw = seed needs {part}_per_class, the number of samples of each class that "
                                 f"a seed gets; add {part}_per_class, as in {part}_per_class=10")
        return self

    def block(self, part: str, seed: int) -> int | None:
        """Return the index of a seed's block in a part, `train` or `test`; None: the first samples of each class."""
        if getattr(self, f"{part}_draw") == "first":
            return None
        if seed < FIRST_DEVELOPMENT_SEED:
            return seed
        return seed % DEVELOPMENT_BLOCKS if part == "train" else None

    def seed_problem(self, seeds: Sequence[int], validation: float) -> str:
        """Return an error message about the first seed without a block of samples; empty if there is none."""
        for part, size in zip(("train", "test"), self.smallest_class, strict=True):
            for seed in seeds:
                if problem := self.block_problem(part, seed, size):
                    return problem
        tuning = [seed for seed in seeds if seed >= FIRST_DEVELOPMENT_SEED]
        if tuning and self.test_draw == "seed" and not validation:
            return (f"test_draw = seed has no test samples for seed {tuning[0]}: seeds from "
                    f"{FIRST_DEVELOPMENT_SEED} on are for tuning, which must not use the test samples of reported "
                    "results. Evaluate on training samples (--validation 0.1), or choose smaller seeds")
        return ""

    def block_problem(self, part: str, seed: int, size: int) -> str:
        """Return an error message if a class of `size` samples has no block for a seed; else an empty string."""
        block, count = self.block(part, seed), getattr(self, f"{part}_per_class")
        if block is None or (block + 1) * count <= size:
            return ""
        kind = {"train": "training", "test": "test"}[part]
        seed_text = f"seed {seed}" if block == seed else f"seed {seed}, which takes block {block}"
        return (f"{part}_draw = seed has no {kind} samples for {seed_text}: {part}_per_class = {count} makes "
                f"{size // count} blocks, counted from 0, of the {size} {kind} samples of a class. Choose smaller "
                f"seeds (and max_seeds, if seeds are added), a smaller {part}_per_class, or {part}_draw = first")


def order_classes(options: ClassDivision, seed: int, classes: int) -> list[int]:
    """Return the classes 0, 1, ... in the order of the option `class_order`.

    Args:
        options: the options.
        seed: the trial's seed, used only if `class_order` is `seed`.
        classes: the number of classes.
    """
    order: list[int] = list(range(classes))
    if options.class_order == "seed":
        import torch

        order = torch.randperm(classes, generator=seeds.generator(seed, "classes")).tolist()
    kind, _, number = options.class_order.partition(":")
    if kind == "numpy":  # the same order as numpy.random.seed(N) and numpy.random.permutation
        import numpy as np

        order = np.random.RandomState(int(number)).permutation(classes).tolist()
    elif kind == "python":  # the same order as random.seed(N) and random.shuffle
        random.Random(int(number)).shuffle(order)
    return order


def positions(given: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return the positions of names in `known`; None if `given` does not have each known name once."""
    if sorted(given) != sorted(known):
        return None
    place = {name: i for i, name in enumerate(known)}
    return [place[name] for name in given]


class CropOptions(Options):
    """Options of random resized crops."""

    LATER: ClassVar[tuple[str, ...]] = ("crop_scale", "crop_interpolation")

    if TYPE_CHECKING:
        augment: str  # a field of each subclass

    crop_scale: float = Field(
        SMALLEST_CROP, gt=0, le=1, description="smallest share of an image's area that a random resized crop covers")
    crop_interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="interpolation by which random resized crops are resized; none: interpolation for photos "
        "that stay in their files, bicubic for other images")

    @model_validator(mode="after")
    def _check_crops(self) -> CropOptions:
        """Refuse options of random resized crops without such crops."""
        for name in ("crop_scale", "crop_interpolation"):
            if getattr(self, name) != type(self).model_fields[name].default and self.augment != RANDOM_CROP:
                raise ValueError(f"{name} is for random resized crops, and augment = {self.augment}; add "
                                 f"augment={RANDOM_CROP} or leave {name} out")
        return self

    @property
    def augmentation(self) -> str:
        """Return the augmentation as `prepare.find_augmentation` reads it, empty for none."""
        if self.crop_scale != SMALLEST_CROP or self.crop_interpolation is not None:
            return f"{self.augment}:{self.crop_scale}:{self.crop_interpolation or ''}"
        return "" if self.augment == "none" else self.augment


class PixelOptions(CropOptions):
    """Options of data that may be images."""

    normalize: Literal["none", "model", "imagenet"] = Field(
        "none", description="how inputs are normalized. none: pixels are scaled to [0, 1], other numbers are "
        "unchanged; model: with the normalization of the pretrained weights, the default if known; imagenet: with the "
        "mean and standard deviation of ImageNet")
    augment: Literal["none", "crop-flip", "random-resized-crop"] = Field(
        "none", description="how training images are augmented each time they are used. none: unchanged; crop-flip: "
        "random crop with 4 pixels of padding, and random flip; random-resized-crop: a random part, resized, and "
        "random flip")


class PhotoOptions(PixelOptions):
    """Options of photos of any size."""

    LATER: ClassVar[tuple[str, ...]] = ("resize", "crop", "interpolation")

    size: int | None = Field(None, ge=1, description="side length of the photos in pixels: the shorter side of a photo "
                             "is resized to it, then the center is cropped. A model with another size resizes the "
                             "result. none: the model's size, else 32 (photos "
                             "that all have one size of at most 64 keep it)")
    resize: int | None = Field(None, ge=1, description="pixels to which the shorter side is resized before the center "
                               "crop (crop), exactly as torchvision does it; replaces size")
    crop: int | None = Field(None, ge=1, description="side length of the center crop after resize, in pixels")
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="interpolation by which photos are resized; crop_interpolation sets another one for "
        "random crops")

    @model_validator(mode="after")
    def _check_size(self) -> PhotoOptions:
        """Refuse resize or crop alone, a crop larger than resize, and a size together with both."""
        if self.resize is None or self.crop is None:
            if self.resize != self.crop:
                raise ValueError("resize and crop go together, as in resize=256 and crop=224; give both or neither")
        elif self.crop > self.resize:
            raise ValueError(f"crop = {self.crop} is larger than resize = {self.resize}; choose a smaller crop")
        elif self.size is not None:
            raise ValueError("give size, or resize and crop, not both")
        return self


class StoredPhotoOptions(PhotoOptions):
    """Options of photos of which each has its own file."""

    LATER: ClassVar[tuple[str, ...]] = ("read",)

    read: Literal["memory", "files"] = Field(
        "memory", description="when photos are decoded. memory: once, and all are held in memory; files: whenever a "
        "batch needs them, so they need not fit in memory, and random resized crops are cut from the original photos")
