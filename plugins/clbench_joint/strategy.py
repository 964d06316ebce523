"""Joint training: the model goes on from its weights, on the union of all tasks seen so far.

The data it keeps count as replay memory. With a budget in iterations each task gets the same number of steps (as van
de Ven & Tolias 2019, arXiv 1904.07734); with a budget in epochs the number of steps grows with the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, Samples, Strategy, Task, World


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

    def before_task(self, task: Task) -> None:
        """Add the task's samples to those kept."""
        new = task.train
        kept = Samples.concat(Samples(self.kept_x, self.kept_y, self.kept_tasks), new) if task.index else new
        self.kept_x, self.kept_y, self.kept_tasks = kept.x, kept.y, kept.tasks

    def training_samples(self, task: Task) -> Samples:
        """Return the samples of all tasks so far."""
        return Samples(self.kept_x, self.kept_y, self.kept_tasks)
