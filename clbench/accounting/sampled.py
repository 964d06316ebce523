"""FLOPs of code that repeats itself, counted at some of its calls: replay draws, and a strategy's own loop.

What draws replay (`augment_batch`) can compute more or less from step to step. Calls of modules are distinguished by
the shapes of their arguments, the rest by the sizes of the strategy's own buffers. A loop of a strategy's own shows no
more of its steps than the batches that it asks for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from clbench.accounting.flops import FlopCount
from clbench.strategy.base import Batch, Strategy

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

    def __exit__(self, *_: object) -> None:
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


def sizes_of(strategy: Strategy) -> tuple[torch.Size, ...]:
    """Return the shapes of a strategy's own buffers."""
    return tuple([buffer.shape for buffer in strategy._buffers.values() if buffer is not None])


class Draws:
    """What `augment_batch` costs."""

    def __init__(self) -> None:
        self.rest: dict[Hashable, int] = {}  # all but calls of modules
        self.modules: dict[Hashable, int] = {}

    @contextmanager
    def counted(self, strategy: Strategy, batch: Batch) -> Iterator[list[int]]:
        """Count what `augment_batch` computes for a batch in the block; its FLOPs are there at the end."""
        flops: list[int] = []
        kind = (len(batch.y), batch.first_pass, sizes_of(strategy))
        with ModuleCalls(self.modules) as calls:
            if kind in self.rest:
                yield flops
            else:
                with FlopCount() as count:
                    yield flops
                self.rest[kind] = count.total - calls.total
        flops.append(self.rest[kind] + calls.total)


class ModuleCalls:
    """A context that adds up the FLOPs of calls of modules, each counted the first time that it is made.

    Calls are the same if the module, its mode and the shapes of its tensors are. Calls inside a call belong to it.
    """

    def __init__(self, known: dict[Hashable, int]) -> None:
        self.known = known
        self.total = self.depth = 0
        self.kind: Hashable = None
        self.count: FlopCount | None = None

    def __enter__(self) -> ModuleCalls:
        """Begin to watch."""
        self.handles = (register_module_forward_pre_hook(self._before),
                        register_module_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        shapes = tuple([arg.shape if isinstance(arg, Tensor) else None for arg in args])
        self.kind = (module, module.training, torch.is_grad_enabled(), shapes)
        if self.kind not in self.known:
            self.count = FlopCount().start()

    def _after(self, *_: object) -> None:
        self.depth -= 1
        if self.depth:
            return
        if self.count is not None:
            self.count.stop()
            self.known[self.kind] = self.count.total
            self.count = None
        self.total += self.known[self.kind]
