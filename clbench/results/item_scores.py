"""Scores of single items, for language models and models that predict numbers.

They are in a compressed file next to the record, `records/KEY.items.npz`. It has an array [N] for each metric, in the
order of the stream's test items, after the last task. For each file of general texts and each metric, it has an array
[T + 1, N]: a row before training and one after each of T tasks. Numbers are float32, and right or wrong answers are
bool. The record has the SHA-256 of the file. numpy is imported only when it is needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from clbench.core.objective import METRICS
from clbench.results.record_parts import RecordPart

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GENERAL = "general"  # first part of the names of arrays of general texts: `general/METRIC/FILE`


class ItemScores(RecordPart):
    """Scores of single test items by metric, in the unit of the metric."""

    LATER: ClassVar[tuple[str, ...]] = ("content",)

    ids: str = Field(
        description="Hash of the benchmark's name and the tokens of the test items; equal for the same items.")
    count: int = Field(ge=1, description="Number of test items.")
    sha256: str = Field(description="SHA-256 of the file of scores.")
    content: str = Field("", description="Content of the file in base64, which only passes it between processes. A "
                         "stored record leaves it out, and the file is `KEY.items.npz` next to the record.")

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: str) -> str:
        """Check that the content is base64."""
        try:
            base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError("content is not base64") from error
        return content

    @classmethod
    def of(cls, scores: Mapping[str, npt.NDArray[np.generic]], ids: str) -> ItemScores:
        """Return the scores of items [N] by metric; `ids` is the hash of the items."""
        return cls._of_arrays(scores, ids, len(next(iter(scores.values()))))

    @classmethod
    def _of_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]], ids: str, count: int) -> ItemScores:
        import numpy as np

        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        content = file.getvalue()
        return cls(ids=ids, count=count, sha256=hashlib.sha256(content).hexdigest(),
                   content=base64.b64encode(content).decode())

    @property
    def file(self) -> bytes:
        """Return the content of the file; empty if it is not known."""
        return base64.b64decode(self.content)

    def with_file(self, content: bytes) -> ItemScores | None:
        """Return the scores with the content of their file, or None if the content is that of another file."""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return None
        return self.model_copy(update={"content": base64.b64encode(content).decode()})

    def scores(self, metric: str) -> npt.NDArray[np.float32] | None:
        """Return the score of each test item [N] by a metric, or None if the file is not known or does not have it."""
        return self._array(metric)

    def general(self, name: str, metric: str) -> npt.NDArray[np.float32] | None:
        """Return the scores [T + 1, N] of the general texts in a file, or None if they are not known."""
        return self._array(f"{GENERAL}/{metric}/{name}")

    def with_general(self, scores: Mapping[str, Mapping[str, list[list[float]]]]) -> ItemScores:
        """Return the scores together with those of general texts [T + 1][N], by file and metric."""
        import numpy as np

        if not scores:
            return self
        arrays = {f"{GENERAL}/{metric}/{name}": np.array(rows, np.bool_ if METRICS[metric].is_share else np.float32)
                  for name, by_metric in scores.items() for metric, rows in by_metric.items()}
        return self._of_arrays({**self._arrays(), **arrays}, self.ids, self.count)

    def with_general_of(self, other: ItemScores, names: Collection[str]) -> ItemScores:
        """Return the scores together with those that another record has of the general texts in some files."""
        added = {name: array for name, array in other._arrays().items()
                 if name.startswith(f"{GENERAL}/") and name.split("/", 2)[2] in names}
        return self._of_arrays({**self._arrays(), **added}, self.ids, self.count) if added else self

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays of the file; empty if it is not known."""
        import numpy as np

        if not self.content:
            return {}
        with np.load(io.BytesIO(self.file), allow_pickle=False) as arrays:
            return dict(arrays)

    def _array(self, name: str) -> npt.NDArray[np.float32] | None:
        import numpy as np

        if not self.content:
            return None
        with np.load(io.BytesIO(self.file), allow_pickle=False) as arrays:
            return arrays[name].astype(np.float32) if name in arrays else None
