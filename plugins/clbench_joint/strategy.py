"""Joint training: continue from the current weights on the union of all tasks seen so far.

The stored data count as replay memory. With a budget in iterations, each task gets the same number of steps (as in van
de Ven & Tolias 2019, arXiv 1904.07734). With a budget in epochs, the number of steps grows with the data.

If a benchmark's transforms are random, samples of old tasks are drawn again for every batch, like the new ones. One
draw of each sample is stored, and counted.

Photos that stay in their files (`read = files`) are not copied: they count as stored samples, but not as stored bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

from clbench import Network, Options, Samples, Strategy, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.data.photo_samples import PhotoSamples
from clbench.data.samples import StochasticSamples


class Joint(Strategy):
    """Stores every training sample in buffers and trains on all of them."""

    roles = (("kept_*", "replay"),)
    kept_x: Tensor
    kept_y: Tensor
    kept_tasks: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no samples."""
        super().__init__(model, stream_info, options)
        for name in ("kept_x", "kept_y", "kept_tasks"):
            self.register_buffer(name, torch.empty(0))
        self.ends: list[int] = []  # for each task, the index after its last stored sample
        self.photos: PhotoSamples | None = None  # samples of all tasks whose inputs stay in their files
        self.draws: list[Callable[[int], Tensor] | None] = []  # functions that draw each task's samples again

    def before_task(self, task: Task) -> None:
        """Add the task's samples to the stored samples.

        Raises:
            SpecError: photos of earlier tasks stayed in files that are no longer available.
        """
        task_samples = task.train
        if task.index and self.photos is None and len(self.kept_x) < len(self.kept_y):
            raise SpecError("joint: the photos of earlier tasks stayed in their files (read = files), which a saved "
                            "model does not have; train all tasks in one run, or choose read=memory")
        samples = Samples.concat(self.stored_samples, task_samples) if task.index else task_samples
        if isinstance(samples, PhotoSamples):
            self.photos = samples
        else:
            self.kept_x = samples.x
        self.kept_y, self.kept_tasks = samples.y, samples.tasks
        self.ends.append(len(samples))
        self.draws.append(task_samples.draw if isinstance(task_samples, StochasticSamples) else None)

    @property
    def stored_samples(self) -> Samples:
        """Return the stored samples of all tasks so far."""
        if self.photos is not None:
            return self.photos
        return Samples(self.kept_x, self.kept_y, self.kept_tasks)

    def training_samples(self, task: Task) -> Samples:
        """Return the samples of all tasks so far."""
        samples = self.stored_samples
        if not any(self.draws):
            return samples
        host = samples.x.cpu()  # `draw` runs on the CPU and must not use the device

        def draw(index: int) -> Tensor:
            number = bisect_right(self.ends, index)
            begin, task_draw = self.ends[number - 1] if number else 0, self.draws[number]
            return host[index] if task_draw is None else task_draw(index - begin)

        return StochasticSamples(samples.x, samples.y, samples.tasks, draw)
