"""Detect methods and models that write to samples: the trials of a process share the tensors of their stream.

torch counts the writes to a tensor and to its views. It does not count writes through `Tensor.data` or NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable

from clbench.core.torch_private import write_count
from clbench.data.samples import Samples


class WriteCounts:
    """The numbers of writes to the tensors of samples at one time."""

    def __init__(self, samples: Iterable[Samples]) -> None:
        """Count the writes to the samples' tensors so far."""
        self.samples = list(samples)
        self.counts = {id(tensor): (tensor, write_count(tensor)) for part in self.samples for tensor in part.tensors}

    @property
    def differ(self) -> bool:
        """Return whether a tensor was written to since then; for a newer tensor, since its creation."""
        return any(write_count(tensor) != self.counts.get(id(tensor), (tensor, 0))[1]
                   for part in self.samples for tensor in part.tensors)
