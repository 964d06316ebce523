"""Options that divide classes among tasks, shared by the built-in benchmarks and those of one's own data."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from clbench.core import seeds
from clbench.core.options import Options

_ORDER = re.compile(r"natural|seed|(numpy|python):(\d+)")
_ORDERS = "natural, seed, numpy:N or python:N"


class ClassDivision(Options):
    """In which order classes come, and how many each task has."""

    LATER: ClassVar[tuple[str, ...]] = ("task_sizes",)

    tasks: int | None = Field(None, ge=1, description="number of tasks")
    class_order: str = Field("natural", description=f"order of the classes: {_ORDERS}")
    classes_in_order: list[str] = Field([], description="every class in the order in which they come")
    task_sizes: list[int] = Field([], description="number of classes of each task, as in 16+20+20, instead of tasks")

    @field_validator("class_order")
    @classmethod
    def _known_order(cls, value: str) -> str:
        """Refuse an unknown order, and seeds that NumPy does not take."""
        match = _ORDER.fullmatch(value)
        if match is None or (match[1] == "numpy" and int(match[2]) >= 2**32):
            raise ValueError(f"should be {_ORDERS}, where N is a number" + (" below 2^32" if match else "")
                             + f", got {value!r}")
        return value

    @field_validator("task_sizes")
    @classmethod
    def _some_classes(cls, value: list[int]) -> list[int]:
        """Refuse a task without classes."""
        if any(size < 1 for size in value):
            raise ValueError("every task needs at least one class")
        return value

    @model_validator(mode="after")
    def _one_order_and_one_number(self) -> ClassDivision:
        """Refuse two orders of classes, and a number of tasks next to their sizes."""
        if self.classes_in_order and self.class_order != "natural":
            raise ValueError(f"give classes_in_order or class_order = {self.class_order}, not both")
        if self.task_sizes and self.tasks is not None and "tasks" in self.model_fields_set:
            raise ValueError("give tasks or task_sizes, not both; task_sizes says how many tasks there are")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the number of tasks if their sizes are given."""
        written = super()._without_defaults(write)
        if self.task_sizes:
            written.pop("tasks", None)
        return written


class ClassOptions(ClassDivision):
    """Options of the benchmarks that split a data set by class."""

    LATER: ClassVar[tuple[str, ...]] = ("classes_in_order",)
    classes: ClassVar[int] = 10  # of the data set

    tasks: int = Field(5, ge=1, description="number of tasks; divides the number of classes")
    class_order: str = Field(
        "natural", description="natural: 0, 1, 2, ... as published; seed: shuffled by the trial's seed; numpy:N or "
        "python:N: shuffled by NumPy's or Python's generator with seed N, the same for every trial")
    classes_in_order: list[str] = Field(
        [], description="every class by name, or by number from 0, in the order in which they come, as in 3+1+0+2")

    @property
    def used(self) -> int:
        """Return how many classes are divided among the tasks."""
        return self.classes

    @property
    def ordered(self) -> int:
        """Return how many classes have an order."""
        return self.used

    @property
    def sizes(self) -> list[int]:
        """Return the number of classes of each task."""
        return self.task_sizes or [self.used // self.tasks] * self.tasks

    @model_validator(mode="after")
    def _divides(self) -> ClassOptions:
        """Refuse tasks of unequal size, unless their sizes are given, and lists that are not of all classes."""
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


def order_classes(options: ClassDivision, seed: int, classes: int) -> list[int]:
    """Return the order in which classes 0, 1, ... come by `class_order`.

    Args:
        options: how.
        seed: of the trial, for `seed` only.
        classes: number of classes.
    """
    order: list[int] = list(range(classes))
    if options.class_order == "seed":
        import torch

        order = torch.randperm(classes, generator=seeds.generator(seed, "classes")).tolist()
    kind, _, number = options.class_order.partition(":")
    if kind == "numpy":  # as numpy.random.seed(N) and numpy.random.permutation
        import numpy as np

        order = np.random.RandomState(int(number)).permutation(classes).tolist()
    elif kind == "python":  # as random.seed(N) and random.shuffle
        random.Random(int(number)).shuffle(order)
    return order


def positions(given: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return the positions of names in `known`; None if they are not each of these once."""
    if sorted(given) != sorted(known):
        return None
    place = {name: i for i, name in enumerate(known)}
    return [place[name] for name in given]
