"""Joint training: the model continues from its current weights, on the union of all tasks seen so far.

The stored data count as replay memory. With a budget in iterations, each task gets the same number of steps (as in van
de Ven & Tolias 2019, arXiv 1904.07734). With a budget in epochs, the number of steps grows with the data.

If a benchmark's transforms are random, samples of old tasks are drawn again for every batch, like the new ones. One
draw of each sample is stored, and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

from clbench import Network, Options, Samples, Strategy, Task, World
from clbench.data.samples import StochasticSamples


class Joint(Strategy):
    """Keeps every training sample in its buffers and draws the batches from all of them."""

    roles = (("kept_*", "replay"),)
    kept_x: Tensor
    kept_y: Tensor
    kept_tasks: Tensor

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with no samples."""
        super().__init__(model, world, options)
        for name in ("kept_x", "kept_y", "kept_tasks"):
            self.register_buffer(name, torch.empty(0))
        self.ends: list[int] = []  # where each task's samples end among those kept
        self.draws: list[Callable[[int], Tensor] | None] = []  # of each task, what draws its samples anew

    def before_task(self, task: Task) -> None:
        """Add the task's samples to the stored samples."""
        new = task.train
        samples = Samples.concat(self.stored_samples, new) if task.index else new
        self.kept_x, self.kept_y, self.kept_tasks = samples.x, samples.y, samples.tasks
        self.ends.append(len(samples))
        self.draws.append(new.draw if isinstance(new, StochasticSamples) else None)

    @property
    def stored_samples(self) -> Samples:
        """Return the stored samples of all tasks so far."""
        return Samples(self.kept_x, self.kept_y, self.kept_tasks)

    def training_samples(self, task: Task) -> Samples:
        """Return the samples of all tasks so far."""
        samples = self.stored_samples
        if not any(self.draws):
            return samples
        host = samples.x.cpu()  # samples are drawn there, where no device may be touched

        def draw(index: int) -> Tensor:
            number = bisect_right(self.ends, index)
            begin, task_draw = self.ends[number - 1] if number else 0, self.draws[number]
            return host[index] if task_draw is None else task_draw(index - begin)

        return StochasticSamples(samples.x, samples.y, samples.tasks, draw)
