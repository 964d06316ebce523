"""Benchmarks whose tasks are domains, sessions or years: DomainNet, CORe50 and CLEAR-10."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.data_sets import DataSet, Needed
from clbench.core.errors import DataError
from clbench.data.named.options import NamedOptions, SplitFiles
from clbench.data.own.lists import listed_photos, photos_in, read_list
from clbench.data.own.samples import Labeled, PhotoFiles

BY_CLASS = Field(None, ge=1, description="number of tasks into which the classes are divided, each with photos of all "
                 "domains; none: each domain is a task")
VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
GROUND_TRUTH = ("clipart", "painting")  # domains whose corrected archives are in the folder `groundtruth`
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
PHOTO_OF_OBJECT = re.compile(r"s\d+/o([1-9]|[1-4]\d|50)/")  # the start of a path in CORe50's lists
DOMAIN_LISTS = tuple(tuple(f"{domain}_{part}.txt" for domain in DOMAINS) for part in ("train", "test"))


class ByDomainOptions(NamedOptions):
    """Options of data sets that name their tasks, unless the user asks for a number of tasks by class."""

    tasks_in_order: list[str] = Field([], description="all tasks that the data name, in the order in which they are "
                                      "learned; if missing, their natural order")

    @property
    def tasks_are_named(self) -> bool:
        """Return whether tasks are those that the data name."""
        return self.tasks is None and not self.task_sizes

    def _named_by(self) -> str:
        """Return the condition under which the data name the tasks."""
        return "as long as neither tasks nor task_sizes is given"


class DomainNetOptions(ByDomainOptions):
    """Options of `domainnet`."""

    NAME: ClassVar[str] = "domainnet"
    CLASSES: ClassVar[int] = 345
    SAMPLES: ClassVar[tuple[int, int]] = (409_832, 176_743)
    DATA: ClassVar[DataSet] = DataSet(
        "DomainNet", "domainnet", citation="Peng et al. 2019, arXiv 1812.01754", needed=(
            *(Needed(domain, f"the 345 folders of classes of the domain {domain}",
                     f"Download {VISDA}{'groundtruth/' if domain in GROUND_TRUTH else ''}{domain}.zip and unpack it in "
                     "the folder of the data set", classes=345) for domain in DOMAINS),
            *(Needed(name, "an official list", f"Download {VISDA}domainnet/txt/{name} to the folder of the data set")
              for names in DOMAIN_LISTS for name in names)))

    tasks: int | None = BY_CLASS

    @property
    def shared_classes(self) -> bool:
        """Return True, because each domain has all classes. Painting has only test photos of t-shirts."""
        return True

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos of the official lists."""
        lists = [[root / name for name in names] for names in DOMAIN_LISTS]
        train, test = listed_photos(root, lists[0], lists[1], where, tasks=True)
        return SplitFiles(train, test, [*lists[0], *lists[1]])


class CORe50Options(ByDomainOptions):
    """Options of `core50`."""

    NAME: ClassVar[str] = "core50"
    PHOTOS: ClassVar[str] = "core50_128x128"
    CATEGORIES: ClassVar[tuple[str, ...]] = (  # of five objects each
        "plug adapters", "mobile phones", "scissors", "light bulbs", "cans", "glasses", "balls", "markers", "cups",
        "remote controls")
    BATCHES: ClassVar[dict[str, int]] = {"ni": 8, "nc": 9}
    DATA: ClassVar[DataSet] = DataSet("CORe50", "core50", "CC BY 4.0", "Lomonaco & Maltoni 2017, arXiv 1705.03550")

    protocol: Literal["ni", "nc"] = Field(
        "ni", description="ni (new instances): 8 tasks, each a session with all classes; nc (new classes): 9 tasks, "
        "the first with 10 objects and the others with 5 objects each")
    run: int = Field(0, ge=0, le=9, description="number of the published task order, from 0 to 9")
    labels: Literal["objects", "categories"] = Field(
        "objects", description="classes to predict. objects: 50 objects; categories: 10 categories of 5 objects each, "
        "only with protocol = ni")

    @model_validator(mode="after")
    def _check_protocol(self) -> CORe50Options:
        """Refuse options for tasks by class, and categories with protocol NC."""
        if self.tasks is not None or self.task_sizes:
            raise ValueError("tasks are those of the lists; protocol=nc has tasks by class")
        if self.protocol == "nc" and self.labels == "categories":
            raise ValueError("labels = categories goes with protocol = ni; objects of protocol = nc share categories "
                             "across tasks")
        return self

    @property
    def common_test(self) -> bool:
        """Return True, because all tasks have the same test: the photos of all objects in sessions 3, 7 and 10."""
        return True

    @property
    def default_scenario(self) -> Literal["domain", "class"]:
        """Return the scenario to run by default."""
        return "domain" if self.protocol == "ni" else "class"

    def lists(self) -> list[str]:
        """Return the paths of the lists below the data set's folder: one per task in order, then that of the test."""
        folder = f"batches_filelists/{self.protocol.upper()}_inc/run{self.run}"
        return [f"{folder}/{name}_filelist.txt" for name in
                (*(f"train_batch_{batch:02}" for batch in range(self.BATCHES[self.protocol])), "test")]

    def needed(self) -> tuple[Needed, ...]:
        """Return the sessions and the lists of a run."""
        return (Needed(self.PHOTOS, "the 11 folders of sessions, s1 to s11",
                       "Download core50_128x128.zip (MD5 745f3373fed08d69343f1058ee559e13) from "
                       "https://vlomonaco.github.io/core50 and unpack it in the folder of the data set", classes=11,
                       pattern=r"s\d+"),
                *(Needed(name, "a list of CORe50", "Download batches_filelists.zip (MD5 "
                         "e3297508a8998ba0c99a83d6b36bde62) from the same page and unpack it there")
                  for name in self.lists()))

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the listed photos. Folders name the classes, because the lists of each run number them differently."""
        paths = [root / name for name in self.lists()]
        batches = [[path for path, _ in read_list(name, where)] for name in paths]
        if unexpected_paths := [path for path in chain.from_iterable(batches) if not PHOTO_OF_OBJECT.match(path)]:
            raise DataError(f"{where}: {unexpected_paths[0]!r} in the lists of run {self.run} is not sN/oN/FILE with "
                            "an object from o1 to o50; unpack batches_filelists.zip again")
        names = ([",".join(dict.fromkeys(path.partition("/")[0] for path in batch)) for batch in batches]
                 if self.protocol == "ni" else [str(number + 1) for number in range(len(batches))])
        tasks = [name for name, batch in zip(names, batches[:-1], strict=False) for _ in batch]
        train = self._photos(root, [path for batch in batches[:-1] for path in batch], where)
        test = self._photos(root, batches[-1], where)
        classes = self.CATEGORIES if self.labels == "categories" else tuple(f"o{n}" for n in range(1, 51))
        parts = [PhotoFiles(part.files, Labeled(part.labeled.labels, part_tasks, classes=classes,
                                                task_names=tuple(names[:-1])))
                 for part, part_tasks in ((train, tasks), (test, None))]
        return SplitFiles(parts[0], parts[1], paths)

    def _photos(self, root: Path, paths: list[str], where: str) -> PhotoFiles:
        """Return photos labeled with their object or category."""
        files = tuple(root / self.PHOTOS / path for path in paths)
        if missing := [path for path, file in zip(paths, files, strict=True) if not file.is_file()]:
            raise DataError(f"{where}: {len(missing)} of {len(files)} photos that the lists of run {self.run} name are "
                            f"not in {root / self.PHOTOS}; the first is {missing[0]}. Unpack core50_128x128.zip again")
        objects = [path.split("/")[1] for path in paths]
        return PhotoFiles(files, Labeled([self.CATEGORIES[(int(name[1:]) - 1) // 5] for name in objects]
                                          if self.labels == "categories" else objects))


class CLEAR10Options(ByDomainOptions):
    """Options of `clear10`."""

    NAME: ClassVar[str] = "clear10"
    CLASSES: ClassVar[int] = 11
    DATA: ClassVar[DataSet] = DataSet(
        "CLEAR-10", "clear10", citation="Lin et al. 2021, arXiv 2201.06289", needed=tuple(
            Needed(f"{part}/labeled_images", f"the 10 folders of buckets of the {part} photos, 1 to 10",
                   f"Download clear10-{part}.zip of elvishelvis6/CLEAR-Continual_Learning_Benchmark (Hugging Face Hub) "
                   f"and unpack it in the folder of the data set, as the folder {part}", classes=10, pattern=r"\d+")
            for part in ("train", "test")))

    tasks: int | None = BY_CLASS

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos of the given training and test folders; a bucket is a task."""
        notes: list[str] = []
        train, test = (photos_in(root / part / "labeled_images", where, notes, tasks=True)
                       for part in ("train", "test"))
        return SplitFiles(train, test, notes=notes)
