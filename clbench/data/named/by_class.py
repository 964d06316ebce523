"""Photo benchmarks split by class, from a folder per class: ImageNet-R, ImageNet-A, CUB-200-2011 and OmniBenchmark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from clbench.core.data_sets import DataSet, Download, Needed
from clbench.core.errors import DataError, list_names
from clbench.data.named.options import NamedOptions, SplitFiles
from clbench.data.own.lists import listed_photos, photos_in, read_list
from clbench.data.own.samples import Labeled, PhotoFiles

TRAIN_SHARE = 0.8  # share of training photos if a rule divides them
WNID = r"n\d{8}"
HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks/"
CODA = ("https://raw.githubusercontent.com/GT-RIPL/CODA-Prompt/6417d4f68754be68b697c7ca2323ee61e791e1a3/dataloaders/"
        "splits/")
CODA_LISTS = (("imagenet-r_train.yaml", "6bcaa14ca9359915ac3a44c48ae71388146385686eb15da79a37844421a0b845"),
              ("imagenet-r_test.yaml", "57275ac242d68983a4f39ccb81ec34f48b1bd920b9cd79e6e8040d7c042db02a"))
L2P_LISTS = ("train_list.txt", "val_list.txt")
L2P_SOURCE = "https://gist.githubusercontent.com/gqk/e127fe18bf179bdcbdf5e29a8c1ae523/raw/"
PILOT = ("The README of the repository sun-hailong/LAMDA-PILOT links to {} (MD5 {}); unpack it as the folder {} of the "
         "data folder")


def random_rows(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the rows that `torch.utils.data.random_split` gives to training (80%) and to test, with torch's seed.

    The permutation equals that of `torch.randperm` on the CPU: a Fisher-Yates shuffle with the same Mersenne Twister.
    It is implemented here because data are checked without importing torch.
    """
    import numpy as np  # not at the top: `clbench methods` reads this module and needs no numpy

    draws = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32).tolist()
    rows = list(range(count))
    for place in range(count - 1):
        other = place + draws[place] % (count - place)
        rows[place], rows[other] = rows[other], rows[place]
    train = int(TRAIN_SHARE * count)
    return rows[:train], rows[train:]


def stratified_rows(labels: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Return the rows of `train_test_split(test_size=0.2, stratify=labels, random_state=seed)` of scikit-learn."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return train, test


def select_photos(photos: PhotoFiles, rows: Sequence[int]) -> PhotoFiles:
    """Return the photos at `rows`, in that order; the photos name no tasks."""
    labeled = photos.labeled
    return PhotoFiles(tuple(photos.files[row] for row in rows),
                      Labeled([labeled.labels[row] for row in rows], classes=labeled.classes))


def folders_by_text(root: Path, where: str, notes: list[str]) -> PhotoFiles:
    """Return the photos in a folder of classes, which are sorted as text, as in ImageFolder; append to `notes`."""
    photos = photos_in(root, where, notes)
    return PhotoFiles(photos.files, replace(photos.labeled, classes=tuple(sorted(set(photos.labeled.labels)))))


def pilot_parts(classes: int, archive: str, md5: str, folder: str) -> tuple[Needed, ...]:
    """Return the folders of a data set as PILOT publishes it."""
    source = PILOT.format(archive, md5, folder)
    return tuple(Needed(part, f"PILOT's folder {part} with {classes} folders of classes", source, classes=classes)
                 for part in ("train", "test"))


class ByClassOptions(NamedOptions):
    """Options of data sets with a folder per class; by default, the split is that of PILOT's folders."""

    PILOT_SAMPLES: ClassVar[tuple[int, int] | None] = None  # photos in PILOT's folders, if they differ

    split: str

    @property
    def published(self) -> tuple[int, int]:
        """Return the numbers of photos of the split."""
        return self.PILOT_SAMPLES if self.split == "pilot" and self.PILOT_SAMPLES is not None else self.SAMPLES

    def downloads(self) -> Sequence[Download]:
        """Return the files to download; none for PILOT's split, whose files a program cannot download."""
        return () if self.split == "pilot" else super().downloads()

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos of PILOT's folders `train` and `test`."""
        notes: list[str] = []
        train, test = (folders_by_text(root / part, where, notes) for part in ("train", "test"))
        return SplitFiles(train, test, notes=notes)


def raw_folders(what: str, source: str) -> Needed:
    """Return the folder of a data set with 200 folders of classes that have names from WordNet."""
    return Needed(".", what, source, classes=200, pattern=WNID)


def wnid_photos(root: Path, where: str) -> PhotoFiles:
    """Return the photos in folders with names from WordNet, sorted by folder and file name."""
    photos = folders_by_text(root, where, [])  # lists and README.txt in it need no note
    return select_photos(photos, [row for row, label in enumerate(photos.labeled.labels) if re.fullmatch(WNID, label)])


class ImageNetROptions(ByClassOptions):
    """Options of `split-imagenet-r`."""

    NAME: ClassVar[str] = "split-imagenet-r"
    CLASSES: ClassVar[int] = 200
    SAMPLES: ClassVar[tuple[int, int]] = (24_000, 6_000)
    DATA: ClassVar[DataSet] = DataSet(
        "ImageNet-R", "imagenet-r", "MIT", "Hendrycks et al. 2021, arXiv 2006.16241",
        downloads=(Download(HENDRYCKS + "imagenet-r.tar", 2_191_079_936,
                            "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52"),
                   *(Download(CODA + name, 0, digest) for name, digest in CODA_LISTS)))

    tasks: int | None = Field(10, ge=1, description="number of tasks into which the classes are divided")
    split: Literal["coda", "inflora", "dualprompt", "zheng", "pilot", "l2p"] = Field(
        "coda", description="split into training and test photos. coda: CODA-Prompt's lists; inflora: torch's "
        "random_split with seed 40; dualprompt: likewise with seed 42; zheng: scikit-learn's stratified split with "
        "seed 42; pilot: PILOT's folders train and test; l2p: L2P's train_list.txt and val_list.txt")

    def needed(self) -> tuple[Needed, ...]:
        """Return the folders, and the lists if the split has any."""
        if self.split == "pilot":
            return pilot_parts(200, "imagenet-r.zip", "730aa3fb9c7d2ec0b6381c6b23040681", self.DATA.folder)
        lists: tuple[Needed, ...] = ()
        if self.split == "coda":
            lists = tuple(Needed(name, "CODA-Prompt's list",
                                 f"{self.get_command} downloads it (dataloaders/splits of the repository "
                                 "GT-RIPL/CODA-Prompt)", digest) for name, digest in CODA_LISTS)
        elif self.split == "l2p":
            lists = tuple(Needed(name, "L2P's list", f"Download {L2P_SOURCE}{name} to the folder of the data set",
                                 by_hand=True) for name in L2P_LISTS)
        return raw_folders("the 200 folders of classes of imagenet-r.tar, n01443537 and so on",
                           f"{self.get_command} downloads and unpacks it ({HENDRYCKS}imagenet-r.tar)"), *lists

    def downloads(self) -> Sequence[Download]:
        """Return the archive, and CODA-Prompt's lists if the split has them."""
        return [download for download in super().downloads() if download.is_archive or self.split == "coda"]

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos as the split divides them."""
        if self.split == "pilot":
            return super().find(root, where)
        if self.split in ("coda", "l2p"):
            names = [name for name, _ in CODA_LISTS] if self.split == "coda" else L2P_LISTS
            lists = [root / name for name in names]
            train, test = listed_photos(root, lists[:1], lists[1:], where)
            return SplitFiles(train, test, lists)
        return apply_rule(wnid_photos(root, where), self.split, where)


def apply_rule(photos: PhotoFiles, split: str, where: str) -> SplitFiles:
    """Divide photos into training and test by the rule of `split`.

    Raises:
        DataError: a class has too few photos for the rule.
    """
    single = [label for label, count in Counter(photos.labeled.labels).items() if count == 1]
    if split == "zheng" and single:
        raise DataError(f"{where}: split = zheng needs two photos of each class, and there is one of "
                        f"{list_names(single)}; the data set is not complete")
    train, test = (stratified_rows(photos.labeled.labels, 42) if split == "zheng" else
                   random_rows(len(photos.files), {"inflora": 40, "dualprompt": 42}[split]))
    return SplitFiles(select_photos(photos, train), select_photos(photos, test))


class ImageNetAOptions(ByClassOptions):
    """Options of `split-imagenet-a`."""

    NAME: ClassVar[str] = "split-imagenet-a"
    CLASSES: ClassVar[int] = 200
    SAMPLES: ClassVar[tuple[int, int]] = (6_000, 1_500)  # of split zheng
    PILOT_SAMPLES: ClassVar[tuple[int, int]] = (5_981, 1_519)
    DATA: ClassVar[DataSet] = DataSet(
        "ImageNet-A", "imagenet-a", citation="Hendrycks et al. 2021, arXiv 1907.07174", downloads=(
            Download(HENDRYCKS + "imagenet-a.tar", 687_552_512,
                     "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e"),))

    tasks: int | None = Field(10, ge=1, description="number of tasks into which the classes are divided")
    split: Literal["zheng", "pilot"] = Field(
        "zheng", description="split into training and test photos. zheng: scikit-learn's stratified split with seed "
        "42; pilot: PILOT's folders train and test")

    def needed(self) -> tuple[Needed, ...]:
        """Return the folders of the split."""
        if self.split == "pilot":
            return pilot_parts(200, "ina.zip", "7f4aaf0b1532b7a0bd670822c152d3c5", self.DATA.folder)
        return (raw_folders("the 200 folders of classes of imagenet-a.tar, n01498041 and so on",
                            f"{self.get_command} downloads and unpacks it ({HENDRYCKS}imagenet-a.tar)"),)

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos as the split divides them."""
        if self.split == "pilot":
            return super().find(root, where)
        return apply_rule(wnid_photos(root, where), "zheng", where)


class CUBOptions(ByClassOptions):
    """Options of `split-cub200`."""

    NAME: ClassVar[str] = "split-cub200"
    CLASSES: ClassVar[int] = 200
    SAMPLES: ClassVar[tuple[int, int]] = (5_994, 5_794)  # of the official split
    PILOT_SAMPLES: ClassVar[tuple[int, int]] = (9_430, 2_358)
    LISTS: ClassVar[tuple[str, ...]] = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    DATA: ClassVar[DataSet] = DataSet(
        "CUB-200-2011", "CUB_200_2011", citation="Wah et al. 2011, Caltech technical report CNS-TR-2011-001",
        # TFDS publishes size and SHA-256. Public code gives this address with the MD5 that Avalanche publishes.
        downloads=(Download("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", 1_150_585_339,
                            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"),))

    tasks: int | None = Field(10, ge=1, description="number of tasks into which the classes are divided")
    split: Literal["official", "pilot"] = Field(
        "official", description="split into training and test photos. official: train_test_split.txt (5,994 and 5,794 "
        "photos); pilot: PILOT's folders train and test, another split")

    def needed(self) -> tuple[Needed, ...]:
        """Return the folders, and the lists of the official split."""
        if self.split == "pilot":
            return pilot_parts(200, "cub.zip", "85e342a2d5f941e740193602057df7a5", self.DATA.folder)
        source = f"{self.get_command} downloads and unpacks it (CUB_200_2011.tgz)"
        return (Needed("images", "the 200 folders of classes, 001.Black_footed_Albatross and so on", source,
                       classes=200),
                *(Needed(name, "a list of the official split", source) for name in self.LISTS))

    def find(self, root: Path, where: str) -> SplitFiles:
        """Return the photos as the split divides them."""
        if self.split == "pilot":
            return super().find(root, where)
        lists = [root / name for name in self.LISTS]
        paths, labels, train_flags = (dict(read_list(path, where)) for path in lists)
        if not paths.keys() == labels.keys() == train_flags.keys():
            raise DataError(f"{where}: {', '.join(self.LISTS)} in {root} do not number the same photos; unpack the "
                            "archive again")
        if wrong := [f"{row} {label}" for row, label in labels.items() if not label.isdecimal()]:
            raise DataError(f"{where}: line {wrong[0]!r} of {lists[1]} does not end in the number of a class; unpack "
                            "the archive again")
        names = {label: Path(paths[row]).parts[0] for row, label in labels.items()}
        classes = tuple(names[label] for label in sorted(names, key=int))
        parts = []
        for part in ("1", "0"):
            rows = [row for row in paths if train_flags[row] == part]
            files = tuple(root / "images" / paths[row] for row in rows)
            if missing := [file for file in files if not file.is_file()]:
                raise DataError(f"{where}: {len(missing)} of {len(files)} photos that images.txt lists are not there; "
                                f"the first is {missing[0]}. Unpack the archive again")
            parts.append(PhotoFiles(files, Labeled([names[labels[row]] for row in rows], classes=classes)))
        return SplitFiles(parts[0], parts[1], lists)


class OmniBenchmarkOptions(ByClassOptions):
    """Options of `split-omnibenchmark`."""

    NAME: ClassVar[str] = "split-omnibenchmark"
    CLASSES: ClassVar[int] = 300
    DATA: ClassVar[DataSet] = DataSet(
        "OmniBenchmark (PILOT's 300 classes)", "omnibenchmark", citation="Zhang et al. 2022, arXiv 2207.07106; Zhou et "
        "al. 2025, arXiv 2303.07338", needed=pilot_parts(300, "omnibenchmark.zip",
                                                         "f1c30808a707f9197c6c811ea52e5cbb", "omnibenchmark"))

    tasks: int | None = Field(10, ge=1, description="number of tasks into which the classes are divided")
    split: Literal["pilot"] = Field(
        "pilot", description="split into training and test photos. pilot: PILOT's folders train and test")
