"""Files with the scores of single items that `clbench forget` writes and reuses."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from clbench.core.errors import StoreError
from clbench.core.files import write_atomically
from clbench.models.scoring import Precision
from clbench.results.audit import FileScores

FORMAT = 4  # version of the files; a new number invalidates old ones
SCORES = "scores"  # their folder in the output folder


@dataclass(frozen=True)
class ScoreFiles:
    """The files with scores in an output folder; nothing is stored if there is no folder."""

    folder: Path | None

    def path_of(self, hashes: Iterable[str], tokens_hash: str, precision: Precision) -> str:
        """Return the path, within the output folder, of the scores of a model on the tokens of a file.

        Args:
            hashes: the hashes of the model's folders, and its scale if it has one.
            tokens_hash: the hash of the tokens that are scored.
            precision: the precision of the model.
        """
        key = sha256(json.dumps([FORMAT, *hashes, tokens_hash, precision]).encode()).hexdigest()[:32]
        return f"{SCORES}/{key}.npz"

    def read(self, path: str) -> FileScores | None:
        """Return scores, or None if they are not there.

        Raises:
            StoreError: the file is broken.
        """
        if self.folder is None or not (file := self.folder / path).is_file():
            return None
        try:
            with np.load(file) as arrays:
                return FileScores(tuple(arrays["nll"].tolist()), tuple(arrays["exact"].tolist()))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(f"{file} cannot be read ({error}); delete it, and it is computed again") from error

    def write(self, path: str, scores: FileScores) -> None:
        """Write scores.

        Raises:
            StoreError: the file cannot be written.
        """
        if self.folder is None:
            return
        content, file = io.BytesIO(), self.folder / path
        np.savez_compressed(content, nll=np.array(scores.nll), exact=np.array(scores.exact, dtype=bool))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.getvalue())
        except OSError as error:
            raise StoreError(f"cannot write {file}: {error.strerror or error}") from error
