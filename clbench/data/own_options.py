"""Options of the benchmarks of user data (`images:`, `table:`, `text:` and others), and checks of their paths.

Nothing here imports torch or Avalanche. A run checks paths before it starts a worker (`BenchmarkInfo.check`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open

from clbench.core.errors import DataError, list_names, message_of
from clbench.core.files import expand_home
from clbench.core.objective import CLASSIFICATION, REGRESSION
from clbench.core.options import Options
from clbench.core.scenario import Scenario
from clbench.data.common_options import ClassDivision, PhotoOptions, PixelOptions, StoredPhotoOptions
from clbench.data.own.samples import locate

ARRAY_SUFFIXES = (".npz", ".safetensors", ".npy", ".parquet")
EXPECTED = "expected X and y, or X_train, y_train, X_test and y_test, and if there are such task and group likewise"


def check_path(name: str, options: Mapping[str, Any], data_dir: Path) -> None:
    """Raise a `DataError` if the file or folder of a benchmark `kind:PATH` does not exist."""
    locate(name, data_dir)


def check_arrays(name: str, options: Mapping[str, Any], data_dir: Path) -> None:
    """Raise a `DataError` if the file of `arrays:FILE` is missing, has an unknown format, or lacks inputs or labels."""
    where = f"benchmark {name!r}"
    path, *_ = array_files(name, options, data_dir)
    kind = path.suffix.lower()
    if kind not in ARRAY_SUFFIXES:
        raise DataError(f"{where}: {path.name} is none of {', '.join(ARRAY_SUFFIXES)} (table:FILE reads .csv)")
    labels = options.get("labels") or (options.get("targets") if kind == ".npy" else None)
    if labels is not None and kind != ".npy":
        raise DataError(f"{where}: labels = {labels} is for .npy files, which hold the inputs alone")
    if labels is None and kind == ".npy":
        raise DataError(f"{where}: {path.name} holds the inputs alone; name the file of labels (labels=FILE.npy) or of "
                        "numbers to predict (targets=FILE.npy)")
    try:
        if kind == ".npz":
            with zipfile.ZipFile(path) as arrays:
                require_arrays([name.removesuffix(".npy") for name in arrays.namelist()], where, options.get("targets"))
        elif kind == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                require_arrays(file.keys(), where, options.get("targets"))
    except (OSError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(f"{where}: cannot read {path}: {message_of(error)}") from error


def require_arrays(names: Iterable[str], where: str, targets: str | None = None) -> None:
    """Raise a `DataError` that names the first missing array of inputs and labels (or targets)."""
    names, y = [*names], targets or "y"
    required = ("X_train", f"{y}_train", "X_test", f"{y}_test") if "X_train" in names else ("X", y)
    if missing := [key for key in required if key not in names]:
        raise DataError(f"{where} has no array {missing[0]!r}, only {list_names(names)}; {EXPECTED}")


def array_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the files that `arrays:FILE` reads."""
    path = locate(name, data_dir)
    targets = {"targets": options.get("targets")} if path.suffix.lower() == ".npy" else {}
    files = {"labels": options.get("labels")} if options.get("labels") else targets
    return [path, *(labels_file(path, option, file, data_dir, f"benchmark {name!r}")
                    for option, file in files.items() if file)]


def labels_file(path: Path, option: str, file: str, data_dir: Path, where: str) -> Path:
    """Return the file that an option names; search the working directory, the inputs' folder, and the data folder."""
    places = [folder / expand_home(file) for folder in (Path.cwd(), path.parent, data_dir)]
    if existing := [place for place in places if place.is_file()]:
        return existing[0]
    raise DataError(f"{where}: {option} = {file}: there is no {' and no '.join(map(str, dict.fromkeys(places)))}")


class TaskOptions(ClassDivision):
    """Options for dividing samples into tasks, for data that have a test part."""

    tasks: int | None = Field(None, ge=1, description="number of tasks into which the classes are divided; none: the "
                              "tasks that the data name, else half as many tasks as classes, at most 5")
    class_order: str = Field("natural", description="order of the classes, if they are divided into tasks. natural: by "
                             "name; seed: shuffled with the trial's seed; numpy:N or python:N: shuffled by NumPy's or "
                             "Python's generator with seed N, the same for every trial")
    classes_in_order: list[str] = Field([], description="all classes by name in the order in which they are learned, "
                                        "as in cat+dog+owl, if they are divided into tasks")

    @property
    def tasks_are_named(self) -> bool:
        """Return whether the options say that the data name the tasks."""
        return False

    @property
    def common_test(self) -> bool:
        """Return whether each task that the data name is tested on the whole test part."""
        return False

    @property
    def shared_classes(self) -> bool:
        """Return whether each task that the data name has all classes, even classes of which it has no photos."""
        return False

    @property
    def default_scenario(self) -> Scenario | None:
        """Return the scenario to run by default: `domain` if the data name tasks (sites, years), else None."""
        return "domain" if self.tasks_are_named else None

    @model_validator(mode="after")
    def _check_division(self) -> TaskOptions:
        """Refuse options that divide the data by class if the data name the tasks."""
        if self.tasks_are_named:
            class_options = [name for name, value in (("tasks", self.tasks), ("task_sizes", self.task_sizes),
                                                      ("classes_in_order", self.classes_in_order),
                                                      ("class_order", self.class_order != "natural")) if value]
            if class_options:
                raise ValueError(f"{class_options[0]} divides the data by class, but the options also say that the "
                                 f"data name the tasks ({self._named_by()}); leave one of them out")
        return self

    def _named_by(self) -> str:
        """Return the option that says that the data name the tasks."""
        return ""


class OwnOptions(TaskOptions):
    """Options for dividing user data of any kind into tasks, and into training and test samples."""

    LATER: ClassVar[tuple[str, ...]] = ("class_names_by",)

    held_out: float = Field(0.2, gt=0, lt=1, description="share of each class, in each task, that is held out as the "
                            "test set, the same for every seed; not used if the data have a test part")
    class_names_by: Literal["size", "text"] = Field(
        "size", description="how classes are sorted by name before class_order applies. size: as the data number their "
        "classes, else numbers by value; text: as text, 10 before 9, as in ImageFolder")


class ColumnOptions(OwnOptions):
    """Options of data with columns: which of them hold labels, tasks and groups."""

    label_column: str | None = Field(
        None, description="column with the labels; none: the column named label, else the last column")
    task_column: str | None = Field(None, description="column with each sample's task, such as a site or a year; tasks "
                                    "are learned in the order of their names (numbers by value)")
    tasks_in_order: list[str] = Field(
        [], description="all tasks that the data name, in the order in which they are learned")
    group: str | None = Field(None, description="column with groups, such as patients, sites or authors; all samples "
                              "of a group stay together, in training or in the held-out share")

    @property
    def tasks_are_named(self) -> bool:
        """Return whether a column names the tasks."""
        return self.task_column is not None

    def _named_by(self) -> str:
        """Return the option that names the column of tasks."""
        return f"task_column = {self.task_column}"


class StoredTaskOptions(TaskOptions, StoredPhotoOptions):
    """Options of photos that are divided into tasks; each photo has its own file."""


class ImagesOptions(OwnOptions, StoredTaskOptions):
    """Options of `images:DIR`."""

    LATER: ClassVar[tuple[str, ...]] = ("train_list", "test_list")

    tasks_from: Literal["classes", "folders"] = Field(
        "classes", description="meaning of the outer folders. classes: a folder is a class; folders: a folder is a "
        "task, and its subfolders are classes")
    tasks_in_order: list[str] = Field(
        [], description="folders of the tasks in the order in which they are learned, if tasks_from = folders")
    groups_from: Literal["files", "folders"] = Field(
        "files", description="how photos are grouped. files: not at all; folders: photos in a subfolder of a class, "
        "such as one patient or site, stay together, in training or in the held-out share. Subfolders with the same "
        "name in several classes are one group")
    train_list: list[str] = Field(
        [], description="files that list the training photos, in the folder or elsewhere: lines PATH LABEL with paths "
        "relative to the folder, or YAML with data and targets; several files as in a.txt+b.txt")
    test_list: list[str] = Field([], description="files that list the test photos, in the same form as train_list; if "
                                 "missing, a share is held out")

    @property
    def tasks_are_named(self) -> bool:
        """Return whether folders name the tasks."""
        return self.tasks_from == "folders"

    def _named_by(self) -> str:
        """Return the option that says that folders name the tasks."""
        return "tasks_from = folders"

    @model_validator(mode="after")
    def _check_lists(self) -> ImagesOptions:
        """Refuse a list of test photos without a list of training photos, and groups together with lists."""
        if self.test_list and not self.train_list:
            raise ValueError("test_list goes with train_list, the list of the training photos; give both")
        if self.train_list and self.groups_from == "folders":
            raise ValueError("groups_from = folders is for photos that no list names; leave groups_from or train_list "
                             "out")
        return self


class FeatureOptions(ColumnOptions):
    """Options of data whose remaining columns are inputs; targets are classes or numbers to predict."""

    TARGET: ClassVar[str] = ""  # the option that names numbers to predict

    leave_out: list[str] = Field([], description="columns that are not used as inputs, as in id+date")

    @property
    def target(self) -> str | None:
        """Return the name of the numbers to predict; None if there are classes."""
        return getattr(self, self.TARGET) if self.TARGET else None

    @property
    def objective(self) -> str:
        """Return the name of the training objective."""
        return (CLASSIFICATION if self.target is None else REGRESSION).name

    @property
    def default_scenario(self) -> Scenario | None:
        """Return `domain` if the data name tasks, as they must if there are numbers to predict, else None."""
        return "domain" if self.tasks_are_named or self.target is not None else None

    @model_validator(mode="after")
    def _check_target(self) -> FeatureOptions:
        """Refuse options about classes together with a target."""
        class_options = [name for name in ("label_column", "labels", "tasks", "task_sizes", "classes_in_order")
                         if getattr(self, name, None)] + ["class_order"] * (self.class_order != "natural")
        if self.target is not None and class_options:
            raise ValueError(f"{class_options[0]} is about classes, and {self.target} has numbers to predict; leave "
                             "one of them out")
        return self


class ArraysOptions(FeatureOptions, PixelOptions):
    """Options of `arrays:FILE`."""

    LATER: ClassVar[tuple[str, ...]] = ("targets",)
    TARGET: ClassVar[str] = "targets"

    labels: str | None = Field(
        None, description=".npy file with the labels, if FILE is a .npy file, which has only the inputs")
    targets: str | None = Field(None, description="numbers to predict instead of classes: an array by its name (NAME, "
                                "or NAME_train and NAME_test), a column of a .parquet file, or a .npy file")


class TableOptions(FeatureOptions):
    """Options of `table:FILE`."""

    LATER: ClassVar[tuple[str, ...]] = ("target_column",)
    TARGET: ClassVar[str] = "target_column"

    target_column: str | None = Field(
        None, description="column with numbers to predict instead of classes; task_column must name the tasks")
    standardise: bool = Field(True, description="subtract each column's mean and divide by its standard deviation, "
                              "both computed on the first task's training samples")


class TokenOptions(Options):
    """Options for turning texts into tokens."""

    tokenizer: str = Field("", description="tokenizer of the texts: a folder, or OWNER/NAME on the Hugging Face Hub; "
                           "if missing, the model's own")
    length: int = Field(128, ge=2, description="maximum number of tokens of a text, including special tokens; longer "
                        "texts are truncated")


class HubOptions(TokenOptions, FeatureOptions, PhotoOptions):
    """Options of `hf:NAME`."""

    config: str | None = Field(None, description="name of the configuration of the data set, if it has several")
    split: str | None = Field(None, description="the only split to use, as in train[:10%]; none: train, with test or "
                              "validation as the test set if there is one")
    text_column: str | None = Field(
        None, description="column with the texts, for models hf:NAME; none: the inputs are images or numbers")


class TextOptions(TokenOptions, ColumnOptions):
    """Options of `text:FILE`."""

    text_column: str = Field("text", description="column with the texts")
    label_column: str | None = Field(None, description="column with the labels; none: the column named label")


class InstructionOptions(TokenOptions):
    """Options of `instructions:PATH`."""

    length: int = Field(512, ge=2, description="maximum number of tokens of an item; longer prompts lose their start")
    task_column: str | None = Field(None, description="field with each item's task, if PATH is one file")
    tasks_in_order: list[str] = Field([], description="all tasks by name in the order in which they are learned; if "
                                      "missing, sorted by name (numbers by value)")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of a task's items that is held out as the test set, "
                            "the same for every seed; not used if the task has a test file")
    cut_responses: bool = Field(False, description="truncate responses that are too long, which are otherwise an error")
