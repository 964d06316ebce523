"""Data sets as declarations: which files they consist of, where these come from, and under which license.

`clbench data` shows them and checks what is there; `clbench data get` downloads what has an address and a checksum.
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
        path: below the folder of the data set; `.` is this folder itself.
        what: what it is.
        source: where it comes from and how it gets there, as a sentence.
        sha256: of a file, if it is known.
        classes: of a folder, how many folders of classes it has; 0: it is a file, or a folder of anything.
        pattern: a regular expression of the names of these folders.
    """

    path: str
    what: str
    source: str = ""
    sha256: str = ""
    classes: int = 0
    pattern: str = r"[^.].*"

    def check(self, root: Path) -> tuple[str, str]:
        """Return `found`, `missing` or `wrong`, and what is wrong with it, below the folder of a data set."""
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
    """Yield the folders in a folder whose whole names match a pattern."""
    yield from (path for path in sorted(root.iterdir())
                if re.fullmatch(pattern, path.name) and path.name != "__MACOSX" and path.is_dir())


@dataclass(frozen=True)
class Download:
    """A published file. An archive holds the folder of its data set; another file belongs into this folder.

    Args:
        url: where it is.
        size: in bytes; 0: not known.
        sha256: of its content.
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
        """Tell whether it is unpacked after the download."""
        return self.name.endswith((".tar", ".tgz", ".tar.gz"))


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Args:
        title: its name in papers.
        folder: in the data folder, unless the user names another one.
        license: of the data; `not known` if it was not found at the source.
        citation: paper.
        needed: what benchmarks read of it, as far as their options do not say it (`NamedOptions.needed`).
        downloads: files with address and checksum, in the order in which they are unpacked.
        automatic: whether a run downloads it if it is missing.
    """

    title: str
    folder: str = "."
    license: str = UNKNOWN
    citation: str = ""
    needed: tuple[Needed, ...] = ()
    downloads: tuple[Download, ...] = ()
    automatic: bool = False
