"""The base class for the options of photo benchmarks that papers use, and the function that declares a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from clbench.core.data_sets import MISSING, WRONG, DataSet, Download, Needed
from clbench.core.errors import DataError, MissingDataError, list_names
from clbench.core.files import expand_home
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.renamed import old_classes
from clbench.core.scenario import Scenario
from clbench.data.own.samples import PhotoFiles, sort_names
from clbench.data.own_options import StoredTaskOptions

FILE_OPTIONS = ("split", "protocol", "run", "path")
BUILD = "clbench.data.own.photos:build_named"


class SplitFiles(NamedTuple):
    """The photos of a benchmark.

    Args:
        train: training photos.
        test: test photos.
        lists: the files that list these photos.
        notes: what a user who runs the benchmark should know.
    """

    train: PhotoFiles
    test: PhotoFiles
    lists: Sequence[Path] = ()
    notes: Sequence[str] = ()


class NamedOptions(StoredTaskOptions):
    """Options of a benchmark that papers use. A subclass names its data and finds its photos (`find`).

    Its fields are the options of photos and of tasks, with the defaults of the papers.
    """

    NAME: ClassVar[str]
    DATA: ClassVar[DataSet]
    SAMPLES: ClassVar[tuple[int, int]] = (0, 0)  # training and test photos as published; 0 and 0: not known
    CLASSES: ClassVar[int] = 0

    path: str | None = Field(None, description="folder of the data set; none: its default folder in the data folder "
                             "(--data). clbench data NAME shows the required files")
    read: Literal["memory", "files"] = Field("files", description="when photos are decoded. files: whenever a batch "
                                             "needs them; memory: once, if they all fit in memory")
    resize: int | None = Field(
        256, ge=1, description="pixels to which the shorter side is resized before the center crop (crop)")
    crop: int | None = Field(224, ge=1, description="side length of the center crop after resize, in pixels")
    size: int | None = Field(None, ge=1, description="side length of the inputs in pixels, instead of resize and crop: "
                             "the shorter side is resized to it, then the center is cropped")

    @model_validator(mode="before")
    @classmethod
    def _replace_default_size(cls, values: Any) -> Any:
        """Let `size` replace the default resize and crop, and refuse resize or crop alone."""
        if isinstance(values, Mapping):
            crop_options = {"resize", "crop"} & values.keys()
            if len(crop_options) == 1:
                raise ValueError("resize and crop go together, as in resize=256 and crop=224; give both or neither")
            if not crop_options and values.get("size") not in (None, "none"):
                return {**values, "resize": None, "crop": None}
        return values

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write both resize and crop, even if they have their defaults."""
        return {**super()._without_defaults(write), "resize": self.resize, "crop": self.crop}

    @property
    def published(self) -> tuple[int, int]:
        """Return how many training and test photos there should be; 0 and 0 if that is not known."""
        return self.SAMPLES

    def needed(self) -> tuple[Needed, ...]:
        """Return the files and folders that are read with these options."""
        return self.DATA.needed

    def downloads(self) -> Sequence[Download]:
        """Return the files that `clbench data get` downloads for these options."""
        return self.DATA.downloads

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos below the folder of the data set; `where` names the benchmark in errors.

        Raises:
            DataError: the photos are missing or wrong.
        """
        raise NotImplementedError

    @property
    def written(self) -> str:
        """Return the name of the benchmark with the options that decide which files it reads."""
        fields = type(self).model_fields
        return ":".join([self.NAME, *(f"{name}={getattr(self, name)}" for name in FILE_OPTIONS
                                      if name in fields and getattr(self, name) != fields[name].default)])

    @property
    def get_command(self) -> str:
        """Return the command that downloads the files of these options into the data folder."""
        return f"clbench data get {self.model_copy(update={'path': None}).written}"

    def root(self, data_dir: Path) -> Path:
        """Return the data set's folder; a relative path is searched in the working directory, then the data folder."""
        if self.path is None:
            return data_dir / self.DATA.folder
        path = expand_home(self.path)
        return path if path.is_absolute() or path.is_dir() else data_dir / path

    def find_files(self, data_dir: Path) -> SplitFiles:
        """Check that all needed files are present, and return the photos.

        Raises:
            DataError: something is missing or wrong.
        """
        where, root = f"benchmark {self.NAME!r}", self.root(data_dir)
        for needed in self.needed():
            status, problem = needed.check(root)
            path, hint = root / needed.path, f"clbench data {self.written} shows everything that is needed"
            if status == WRONG:
                remedy = "" if needed.sha256 else f"Remove {path} or move it away, and then get it again: "
                raise DataError(f"{where}: {needed.what} in {path} is wrong: {problem}. {remedy}{needed.source}; "
                                f"{hint}")
            if status == MISSING:
                reason = f"{path} is not there" if not problem else f"{path}: {problem}"
                raise MissingDataError(f"{where} needs {needed.what}, and {reason}. {needed.source}; {hint}")
        result = self.find(root, where)
        classes, counts = {*result.train.labeled.labels}, (len(result.train.files), len(result.test.files))
        if self.CLASSES and len(classes) != self.CLASSES:
            raise DataError(f"{where}: the training photos in {root} have {len(classes)} classes and should have "
                            f"{self.CLASSES}; the data set is not complete")
        if self.published != (0, 0) and counts != self.published:
            published = f"{self.published[0]:,} training and {self.published[1]:,} test photos"
            raise DataError(f"{where}: {root} gives {counts[0]:,} training and {counts[1]:,} test photos, and "
                            f"published are {published}; some are missing or do not belong there")
        self.check_parts(result, root, where)
        return result

    def check_parts(self, split: SplitFiles, root: Path, where: str) -> None:
        """Check that the training photos have the tasks and classes of the test photos, as dividing them requires.

        Raises:
            DataError: they have not.
        """
        train, test = split.train.labeled, split.test.labeled
        classes = {*test.labels} - {*train.labels}
        if self.tasks_are_named and not self.common_test:
            tasks = [part.tasks or () for part in (train, test)]
            if unexpected := {*tasks[0]} ^ {*tasks[1]}:
                raise DataError(f"{where}: the photos in {root} have tasks with only training or only test photos: "
                                f"{list_names(sort_names(unexpected))}")
            if not self.shared_classes:
                pairs = {*zip(tasks[1], test.labels, strict=True)} - {*zip(tasks[0], train.labels, strict=True)}
                classes |= {f"{label} of task {task}" for task, label in pairs}
        if classes:
            raise DataError(f"{where}: the photos in {root} have classes with test photos and without training photos: "
                            f"{list_names(sort_names(classes))}")

    @classmethod
    def check_files(cls, name: str, options: Mapping[str, Any], data_dir: Path) -> None:
        """Raise a `DataError` if something that a run needs is missing or wrong (`BenchmarkInfo.check`)."""
        cls.stored(options).find_files(data_dir)

    @classmethod
    def list_files(cls, name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        """Return all files that are read (`BenchmarkInfo.files`)."""
        return files_of(cls.stored(options).find_files(data_dir))


def files_of(split: SplitFiles) -> list[Path]:
    """Return the files of photos and the lists."""
    return [*split.train.files, *split.test.files, *split.lists]


def named_benchmark(summary: str, options: type[NamedOptions], scenarios: Sequence[Scenario],
                    build: str = BUILD) -> BenchmarkInfo:
    """Return the declaration of a benchmark that papers use.

    A plugin gives `build` as a function of its own package, so that results become stale when the package changes.
    """
    return BenchmarkInfo(options.NAME, build, summary, options, scenarios=scenarios, cached=True,
                         files=options.list_files, check=options.check_files, data=options.DATA)


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"Found": "SplitFiles"})  # until 0.3
