"""The scores of single test items after the last task, in a compressed file next to the record.

Language models have them, and models that predict numbers; classifiers have `clbench.results.items`.

The file, `records/KEY.items.npz`, has an array [N] for each metric, in the order of the stream's test items: numbers as
float32, what is right or wrong as bool. The record has its SHA-256. numpy is imported only when scores are used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from clbench.results.record_parts import RecordPart

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ItemScores(RecordPart):
    """Scores of single test items by metric, in the unit of the metric."""

    LATER: ClassVar[tuple[str, ...]] = ("content",)

    ids: str = Field(description="Hash of the benchmark's name and the tokens of the test items; equal if the items "
                     "are the same.")
    count: int = Field(ge=1, description="Number of test items.")
    sha256: str = Field(description="SHA-256 of the file of scores.")
    content: str = Field("", description="base64 of the file between processes. A stored record leaves it out, and the "
                         "file is `KEY.items.npz` next to the record.")

    @field_validator("content")
    @classmethod
    def _decodable(cls, content: str) -> str:
        """Check that the content is base64."""
        try:
            base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError("content is not base64") from error
        return content

    @classmethod
    def of(cls, scores: Mapping[str, npt.NDArray[np.generic]], ids: str) -> ItemScores:
        """Return the scores of items [N] by metric; `ids` is the hash of the items."""
        import numpy as np

        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **dict(scores))
        content = file.getvalue()
        return cls(ids=ids, count=len(next(iter(scores.values()))), sha256=hashlib.sha256(content).hexdigest(),
                   content=base64.b64encode(content).decode())

    @property
    def file(self) -> bytes:
        """Return the content of the file; empty if it is not known."""
        return base64.b64decode(self.content)

    def with_file(self, content: bytes) -> ItemScores | None:
        """Return the scores with the content of their file, or None if it is another file's."""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return None
        return self.model_copy(update={"content": base64.b64encode(content).decode()})

    def scores(self, metric: str) -> npt.NDArray[np.float32] | None:
        """Return the score of each item [N] by a metric, or None if the file is not known or does not have it."""
        import numpy as np

        if not self.content:
            return None
        with np.load(io.BytesIO(self.file), allow_pickle=False) as arrays:
            return arrays[metric].astype(np.float32) if metric in arrays else None
