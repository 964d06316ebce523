"""Options of the benchmarks made of one's own data (`images:`, `arrays:`, `table:`, `hf:`), without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.hookspecs import BenchmarkInfo, hookimpl
from clbench.core.options import Options
from clbench.core.scenario import Scenario
from clbench.data.builtin import ClassOptions

NEWSGROUPS = ("text/20newsgroups-train.csv", "text/20newsgroups-test.csv")  # under the data folder


class OwnOptions(Options):
    """How samples are divided into tasks and into training and test, whatever they are and wherever they come from."""

    tasks: int | None = Field(None, ge=1, description="number of tasks, by class; none: the tasks that the data name, "
                              "else as many as give two classes to each, at most 5")
    class_order: Literal["natural", "seed"] = Field(
        "natural", description="of tasks by class: by name (numbers by size), or shuffled by the trial's seed")
    classes_in_order: list[str] = Field(
        [], description="of tasks by class: every class by name in the order in which they come, as in cat+dog+owl")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of each class, in each task, that is the test, the "
                            "same for every seed; not used where the data have a test part")

    @property
    def tasks_are_named(self) -> bool:
        """Tell whether the options themselves say that the data name the tasks."""
        return False

    @property
    def default_scenario(self) -> Scenario | None:
        """Return the scenario to run if none is asked for: `domain` where tasks are sites or years; None: as ever."""
        return "domain" if self.tasks_are_named else None

    @model_validator(mode="after")
    def _one_division(self) -> OwnOptions:
        """Refuse two orders of classes, and classes in an order where the data name the tasks."""
        if self.classes_in_order and self.class_order == "seed":
            raise ValueError("give classes_in_order or class_order = seed, not both")
        if self.tasks_are_named:
            given = [name for name, value in (("tasks", self.tasks), ("classes_in_order", self.classes_in_order),
                                              ("class_order", self.class_order == "seed")) if value]
            if given:
                raise ValueError(f"{given[0]} divides the data by class, but the options also say that the data name "
                                 f"the tasks ({self._named_by()}); leave one of them out")
        return self

    def _named_by(self) -> str:
        """Return the option that says that the data name the tasks."""
        return ""


class ColumnOptions(OwnOptions):
    """Options of data with columns: which of them hold labels, tasks and groups."""

    label_column: str | None = Field(None, description="column of the labels; none: the one named label, else the last")
    task_column: str | None = Field(None, description="column that names each sample's task, such as a site or a year; "
                                    "tasks come by name (numbers by size)")
    tasks_in_order: list[str] = Field([], description="tasks that the data name, in the order in which they come")
    group: str | None = Field(None, description="column of patients, sites or authors, each of which is kept wholly in "
                              "training or wholly in the held-out share")

    @property
    def tasks_are_named(self) -> bool:
        """Tell whether a column names the tasks."""
        return self.task_column is not None

    def _named_by(self) -> str:
        """Return the option that names the column."""
        return f"task_column = {self.task_column}"


class TokenOptions(Options):
    """Options of benchmarks of texts: how these become tokens."""

    tokenizer: str = Field("", description="whose tokens texts are: a folder or a repository as in hf:NAME; none: the "
                           "model's own")
    length: int = Field(128, ge=2, description="tokens of a text at most, the special ones included; the rest is cut "
                        "off")


class TextOptions(TokenOptions, ColumnOptions):
    """Options of `text:FILE`."""

    text_column: str = Field("text", description="column of the texts")
    label_column: str | None = Field(None, description="column of the labels; none: label")


class NewsgroupsOptions(TokenOptions, ClassOptions):
    """Options of `split-newsgroups`."""

    classes: ClassVar[int] = 20

    tasks: int = Field(10, ge=1, description="number of tasks; divides the number of classes")
    train_per_class: int | None = Field(None, ge=1, description="only the first so many training texts of each class")
    test_per_class: int | None = Field(None, ge=1, description="only the first so many test texts of each class")


@hookimpl
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the benchmarks made of one's own data."""
    place = "clbench.data.own."
    return (
        BenchmarkInfo("text:*", place + "texts:text", "texts of a CSV or JSONL file, or of a folder's files, a task "
                      "each", TextOptions, any_name=True),
        BenchmarkInfo("split-newsgroups", place + "texts:newsgroups", "10 x 2 groups of 20 Newsgroups (11,293 train, "
                      "7,528 test documents)", NewsgroupsOptions, cached=True, files=NEWSGROUPS),
    )
