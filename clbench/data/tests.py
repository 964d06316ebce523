"""`Tests`: the test samples of a stream, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.device import send
from clbench.data.photo_files import Photos
from clbench.data.prepare import Prepare
from clbench.models.scoring import needed_tokens


@dataclass(frozen=True)
class Tests:
    """Test samples of several tasks, one task after the other: x [N, ...], labels y [N], task indices tasks [N].

    `sizes` are the numbers of samples per task. `batches` applies `prepare` to x; None if x are already inputs of the
    model. Photos that stay in their files are decoded batch by batch, while earlier batches are used. `token_labels`
    says whether labels are those of language models, y [N, L].
    """

    x: Tensor | Photos
    y: Tensor
    tasks: Tensor
    sizes: tuple[int, ...]
    prepare: Prepare | None
    token_labels: bool = False

    def batches(self, size: int, task: int | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches of model inputs, labels and task indices, for all samples or for those of one task.

        `first` is the index of the first batch to yield. Tokens are cut to the longest sample of each batch.
        """
        begin, end = self._range(task)
        inputs: Iterator[Tensor]
        if isinstance(self.x, Photos):
            inputs = (send(x, self.y.device) for x in self.x[begin:end].read_chunks(size, first))
        else:
            inputs = islice(torch.split(self.x[begin:end], size), first, None)
        for x, (y, tasks) in zip(inputs, self.labels(size, task, first), strict=True):
            x = x if self.prepare is None else self.prepare(x)
            if self.token_labels:
                x = x[:, :needed_tokens(y)]
            yield (tokens.shortened([x])[0] if tokens.is_text(x) else x), y, tasks

    def labels(self, size: int, task: int | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield only labels and task indices, in the same batches."""
        begin, end = self._range(task)
        parts = (torch.split(column[begin:end], size) for column in (self.y, self.tasks))
        yield from islice(zip(*parts, strict=True), first, None)

    def _range(self, task: int | None) -> tuple[int, int]:
        """Return the first row and the end (exclusive) of a task's samples, or of all samples."""
        return (0, len(self.y)) if task is None else (sum(self.sizes[:task]), sum(self.sizes[:task + 1]))
