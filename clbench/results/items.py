"""ItemResults: which test images a trial got right after its last task, one bit each.

They allow comparisons of trials image by image. numpy is imported only when bits are packed or unpacked, so that
reading records does not wait for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ItemResults(BaseModel):
    """Correct and wrong answers by test image, in the order of the complete test part of the data set.

    An image that belongs to several tasks has an answer for each of them, in the order of the tasks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: str = Field(
        description="Hash of the benchmark's name and the rows of the images in the test data; equal if the images "
        "are the same.")
    count: int = Field(ge=1, description="Number of different images.")
    tasks: int = Field(1, ge=1, description="Number of tasks that each image belongs to.")
    right: str = Field(description="base64 of numpy.packbits of a [tasks, images] array, row by row.")

    @model_validator(mode="after")
    def _whole(self) -> ItemResults:
        """Check that there is a bit for each answer."""
        try:
            size = len(base64.b64decode(self.right, validate=True))
        except binascii.Error as error:
            raise ValueError("right is not base64") from error
        if size != -(-self.tasks * self.count // 8):
            raise ValueError(f"right has {size} bytes, not a bit for each of {self.tasks} x {self.count} answers")
        return self

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64], right: npt.NDArray[np.bool_], source: str) -> ItemResults | None:
        """Return the results of tests, task after task, or None if images differ in their number of tasks.

        Args:
            rows: [N] int64, row of each tested image in the test part of the data set.
            right: [N] bool, whether the answer is correct.
            source: name of the benchmark.
        """
        import numpy as np

        images, counts = np.unique(rows, return_counts=True)
        if len(set(counts.tolist())) != 1:
            return None
        by_image = right[np.argsort(rows, kind="stable")].reshape(len(images), -1)  # stable: tasks keep their order
        ids = hashlib.sha256(source.encode() + b"\n" + images.astype("<i8").tobytes())
        bits = np.packbits(np.ascontiguousarray(by_image.T))
        return cls(ids=ids.hexdigest(), count=len(images), tasks=by_image.shape[1],
                   right=base64.b64encode(bits.tobytes()).decode())

    def matrix(self) -> npt.NDArray[np.bool_]:
        """Return whether answers are right, bool [tasks, images]."""
        import numpy as np

        bits = np.frombuffer(base64.b64decode(self.right), np.uint8)
        return np.unpackbits(bits, count=self.tasks * self.count).view(np.bool_).reshape(self.tasks, self.count)
