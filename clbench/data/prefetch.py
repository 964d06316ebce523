"""Prefetching of random transforms: another process draws the next batches while training runs on the current one."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from clbench.core import seeds
from clbench.core.device import send
from clbench.data.samples import Samples, StochasticSamples

DEPTH = 4  # steps to prefetch at most
Next = Callable[[], Tensor]  # returns the indices of the next batch


class PrefetchedDraws(IterableDataset[list[Tensor | seeds.State]]):
    """Yields, for each step, the inputs of its batch and the state of the global generators after it."""

    def __init__(self, samples: StochasticSamples, next_indices: Next, steps: int) -> None:
        """Store the samples, the function that returns the indices of the next batch, and the number of steps."""
        self.samples, self.next_indices, self.steps = samples, next_indices, steps

    def __iter__(self) -> Iterator[list[Tensor | seeds.State]]:
        """Draw in the order of training, step by step."""
        for _ in range(self.steps):
            yield [self.samples.drawn(self.next_indices()), seeds.state()]


class PrefetchedSamples(Samples):
    """Samples whose inputs come from a queue of draws, in the order of the requests."""

    is_stochastic = True

    def __init__(self, samples: StochasticSamples, queue: Iterator[Tensor]) -> None:
        """Take inputs from the queue and everything else from the samples."""
        super().__init__(samples.x, samples.y, samples.tasks)
        object.__setattr__(self, "queue", queue)

    queue: Iterator[Tensor]

    @property
    def index_device(self) -> torch.device:
        """Return the host, as `StochasticSamples` do."""
        return torch.device("cpu")

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M]), which must be the indices of the next draw in the queue."""
        sent_index = send(index, self.y.device)
        return Samples(send(next(self.queue), self.x.device), self.y[sent_index], self.tasks[sent_index])


def can_prefetch(device: torch.device) -> bool:
    """Return whether another process can draw while this one trains: with an accelerator, if a fork is safe.

    On a CPU all cores train already, so drawing in another process costs more than it gains.
    """
    return device.type != "cpu" and sys.platform == "linux" and not multiprocessing.current_process().daemon


@contextmanager
def prefetch(samples: Samples, next_indices: Next, steps: int) -> Iterator[Samples]:
    """Yield samples that another process draws ahead of their use, if they have random transforms.

    The draws are the same as without prefetching. The other process starts with the state of the global generators, and
    this process continues with the state in which the other one ended. The other process is a fork, because the objects
    inside an Avalanche data set often cannot be pickled. It runs one thread and never touches the device. If
    `can_prefetch` is False, this process draws the samples.

    Args:
        samples: the samples; only a replica that trains alone can have random transforms (`require_stackable`).
        next_indices: returns the indices of the next batch; the fork calls its own copy.
        steps: the largest number of batches.
    """
    if not isinstance(samples, StochasticSamples) or not can_prefetch(samples.y.device):
        yield samples
        return
    state = seeds.state()
    loader = DataLoader(
        PrefetchedDraws(samples, next_indices, steps), batch_size=None, num_workers=1, prefetch_factor=DEPTH,
        multiprocessing_context="fork", pin_memory=samples.y.device.type == "cuda",
        worker_init_fn=lambda _: seeds.restore(state),
        generator=torch.Generator())  # the loader draws a seed, which must not come from the global generator

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # about forks, from Python 3.12 on
        batches = iter(loader)  # forks now, before this process asks for the indices of any batch

    def inputs(batches: Iterator[Any]) -> Generator[Tensor, None, None]:
        nonlocal state
        for batch in batches:
            drawn, state = batch
            yield drawn

    queue = inputs(batches)
    del batches
    try:
        yield PrefetchedSamples(samples, queue)
    finally:
        queue.close()  # ends the other process
    seeds.restore(state)
