"""Random transforms done ahead: a process of its own draws the next batches while the step runs on these."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from clbench.core import seeds
from clbench.core.device import send
from clbench.data.samples import Samples, StochasticSamples

DEPTH = 4  # steps whose inputs are ready at most
Next = Callable[[], Tensor]  # the indices of a member's next batch


class PrefetchedDraws(IterableDataset[list[Tensor | seeds.State]]):
    """The inputs of every member's batch, step by step, and the state of the global generators after each step."""

    def __init__(self, samples: Sequence[StochasticSamples], indices: Sequence[Next], steps: int) -> None:
        """Draw, for so many steps, the samples of each member that its indices name."""
        self.samples, self.indices, self.steps = samples, indices, steps

    def __iter__(self) -> Iterator[list[Tensor | seeds.State]]:
        """Draw in the order in which training would: a step's members one after the other."""
        for _ in range(self.steps):
            inputs = [part.drawn(following()) for part, following in zip(self.samples, self.indices, strict=True)]
            yield [*inputs, seeds.state()]


class PrefetchedSamples(Samples):
    """Samples whose new draws come out of a queue, where they lie in the order in which they are asked for."""

    is_stochastic = True

    def __init__(self, samples: StochasticSamples, queue: Iterator[Tensor]) -> None:
        """Take inputs from the queue and all else from the samples."""
        super().__init__(samples.x, samples.y, samples.tasks)
        object.__setattr__(self, "queue", queue)

    queue: Iterator[Tensor]

    @property
    def index_device(self) -> torch.device:
        """Return the host, as the samples behind it do."""
        return torch.device("cpu")

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M]), which must be the next that were drawn."""
        there = send(index, self.y.device)
        return Samples(send(next(self.queue), self.x.device), self.y[there], self.tasks[there])


def core_to_spare(device: torch.device) -> bool:
    """Return whether another process can draw while this one trains: beside an accelerator, where forks are safe.

    On a CPU all cores train already, and drawing in another process costs more than it gains.
    """
    return device.type != "cpu" and sys.platform == "linux" and not multiprocessing.current_process().daemon


@contextmanager
def prefetched(samples: Sequence[Samples], indices: Sequence[Next], steps: int) -> Iterator[list[Samples]]:
    """Give samples of which those with random transforms are drawn in another process, before they are asked for.

    What is drawn is what would be drawn here: the process starts with the state of the global generators, and this one
    goes on from where it came to. It is a fork, since what is under an Avalanche data set often cannot be sent
    elsewhere; it runs one thread and never touches the device. Without `core_to_spare`, samples are drawn here.

    Args:
        samples: of each member.
        indices: what gives the indices of each member's next batch; the fork calls them, and has copies of its own.
        steps: how many batches each member is going to take, at most.
    """
    stochastic = [part for part in samples if isinstance(part, StochasticSamples)]
    if len(stochastic) < len(samples) or not core_to_spare(samples[0].y.device):
        yield list(samples)
        return
    state = seeds.state()
    loader = DataLoader(
        PrefetchedDraws(stochastic, indices, steps), batch_size=None, num_workers=1, prefetch_factor=DEPTH,
        multiprocessing_context="fork", pin_memory=samples[0].y.device.type == "cuda",
        worker_init_fn=lambda _: seeds.restore(state),
        generator=torch.Generator())  # which the loader draws a seed from: not ours

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # of forks, from Python 3.12 on
        batches = iter(loader)  # forks now, before any batch's indices are asked for here

    def inputs(batches: Iterator[Any]) -> Generator[Tensor, None, None]:
        nonlocal state
        for batch in batches:
            *drawn, state = batch
            yield from drawn

    queue = inputs(batches)
    del batches
    try:
        yield [PrefetchedSamples(part, queue) for part in stochastic]
    finally:
        queue.close()  # ends the process
    seeds.restore(state)
