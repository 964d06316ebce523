"""Declarations of data sets: their files, the sources of the files, and the license.

`clbench data` shows the data sets and checks their files. `clbench data get` downloads files with an address and a
checksum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clbench.core.files import hash_file

UNKNOWN = "not known"
PRESENT, MISSING, WRONG = "found", "missing", "wrong"


@dataclass(frozen=True)
class Needed:
    """A file or folder that a benchmark reads, below the folder of its data set.

    Args:
        path: the path below the folder of the data set; `.` is this folder itself.
        what: a description of the file or folder.
        source: where the file comes from and how to put it there, as a sentence.
        sha256: the SHA-256 of a file, if it is known.
        classes: the number of class folders in a folder; 0 means a file, or a folder with any content.
        pattern: a regular expression for the names of the class folders.
        by_hand: whether no download of the data set has the file.
    """

    path: str
    what: str
    source: str = ""
    sha256: str = ""
    classes: int = 0
    pattern: str = r"[^.].*"
    by_hand: bool = False

    def check(self, root: Path) -> tuple[str, str]:
        """Return `found`, `missing` or `wrong` and a description of the problem; `root` is the data set's folder."""
        path = root / self.path
        if not path.exists():
            return MISSING, ""
        if self.classes:
            if not path.is_dir():
                return WRONG, "it is a file and should be a folder"
            count = sum(1 for _ in class_folders(path, self.pattern))
            if not count:
                return MISSING, f"none of its {self.classes} folders of classes is there"
            if count != self.classes:
                return WRONG, f"it has {count} folders of classes and should have {self.classes}"
        if self.sha256:
            if not path.is_file():
                return WRONG, "it is a folder and should be a file"
            if (digest := hash_file(path)) != self.sha256:
                return WRONG, f"its SHA-256 is {digest} and should be {self.sha256}"
        return PRESENT, ""


def class_folders(root: Path, pattern: str = r"[^.].*") -> Iterator[Path]:
    """Yield the folders in `root` whose full names match a pattern."""
    yield from (path for path in sorted(root.iterdir())
                if re.fullmatch(pattern, path.name) and path.name != "__MACOSX" and path.is_dir())


@dataclass(frozen=True)
class Download:
    """A published file. An archive contains the folder of its data set; any other file is put into this folder.

    Args:
        url: its address.
        size: its size in bytes; 0 if it is not known.
        sha256: the SHA-256 of its content.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Return whether the file is unpacked after the download."""
        return self.name.endswith((".tar", ".tgz", ".tar.gz"))


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Args:
        title: its name in papers.
        folder: its folder inside the data folder, unless the user names another one.
        license: the license of the data; `not known` if it was not found at the source.
        citation: the paper.
        needed: the files that benchmarks read, except those that their options name (`NamedOptions.needed`).
        downloads: the files with address and checksum, in the order in which they are unpacked.
        automatic: whether a run downloads it if it is missing.
    """

    title: str
    folder: str = "."
    license: str = UNKNOWN
    citation: str = ""
    needed: tuple[Needed, ...] = ()
    downloads: tuple[Download, ...] = ()
    automatic: bool = False
