"""FLOPs of a strategy's own loop, which shows no more of its steps than the batches that it asks for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from types import TracebackType

from torch import Tensor

from clbench.accounting.flops import FlopCount

EVERY = 17  # of the steps one in so many is counted; prime, so that it falls on no rhythm


class LoopFlops:
    """The FLOPs of a strategy's own loop (`Strategy.fit`).

    From one batch that it asks for to the next is a step. Counted are what comes before the first, the first of each
    size, one in `EVERY`, and the last of the budget with all that follows it; a step that is not counted costs the
    mean of those of its size that are. A loop that asks for its batches beforehand is so counted whole.

    Args:
        following: gives the indices of the next batch.
        steps: how many batches the budget has.
    """

    def __init__(self, following: Callable[[], Tensor], steps: int) -> None:
        self._following = following
        self.steps = steps
        self.taken = 0
        self.count: FlopCount | None = None
        self.size: int | None = None  # of the batch of the step at hand; None outside the steps
        self.outside = 0
        self.counted: defaultdict[int, list[int]] = defaultdict(list)  # FLOPs of steps, by size
        self.skipped: Counter[int] = Counter()

    def __enter__(self) -> LoopFlops:
        """Begin before the first step."""
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End the last step."""
        self._end()

    def following(self) -> Tensor:
        """Return the indices of the next batch: the next step begins, unless the budget is spent."""
        if self.taken >= self.steps:
            return self._following()  # a loader that reads ahead; no step follows
        self._end()
        index = self._following()
        self.taken += 1
        size = len(index)
        self.size = size if self.taken != self.steps else None
        if self.size is None or size not in self.counted or self.taken % EVERY == 0:
            self._begin()
        return index

    @property
    def total(self) -> int:
        """Return the FLOPs of all steps and of what is outside them."""
        uncounted = sum(Fraction(sum(self.counted[size]), len(self.counted[size])) * times
                        for size, times in self.skipped.items())
        return self.outside + sum(map(sum, self.counted.values())) + round(uncounted)

    def _begin(self) -> None:
        self.count = FlopCount().start()

    def _end(self) -> None:
        if self.count is None:
            assert self.size is not None
            self.skipped[self.size] += 1
            return
        self.count.stop()
        if self.size is None:
            self.outside += self.count.total
        else:
            self.counted[self.size].append(self.count.total)
        self.count = None
