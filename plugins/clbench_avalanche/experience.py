"""A task of the stream as an Avalanche experience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import Dataset

from clbench import Samples, Task
from clbench.data.photo_samples import PhotoSamples

PLACE = "place"  # attribute of a data set: the indices of its samples in the whole stream


class Items(Dataset[tuple[Tensor, int]]):
    """Training samples as single inputs of the model.

    The inputs of a batch of the harness are computed together (`batch`), so that they are augmented as for every other
    method. All other inputs are augmented separately.
    """

    def __init__(self, samples: Samples, prepare: Callable[[Tensor], Tensor],
                 augment: Callable[[Tensor, bool], Tensor] | None) -> None:
        """Prepare all samples once if they are in memory and neither random nor augmented."""
        self.samples, self.prepare, self.augment = samples, prepare, augment
        self.ready = None
        self.made: dict[int, Tensor] = {}  # inputs of the last batch that have not been fetched yet, by index
        self.labels: list[int] = samples.y.tolist()
        if augment is None and not samples.is_stochastic and not isinstance(samples, PhotoSamples):
            self.ready = torch.cat([prepare(part.x).cpu().contiguous() for part in samples.chunks(1024)])

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """Return an input of the model (on the CPU, as Avalanche's loaders expect) and its label."""
        if self.ready is not None:
            x = self.ready[place]
        elif place in self.made:
            x = self.made.pop(place)
        else:
            x = self._inputs(torch.tensor([place]), replayed=True)[0]
        return x, self.labels[place]

    def batch(self, places: Tensor) -> Tensor:
        """Compute the items of the batch at indices [N], which are fetched next, and return the indices."""
        if self.ready is None:
            self.made = dict(zip(places.tolist(), self._inputs(places, replayed=False), strict=True))
        return places

    def _inputs(self, places: Tensor, replayed: bool) -> Tensor:
        """Return inputs of the model [N, ...], on the CPU."""
        x = self.samples.take(places.to(self.samples.index_device)).x
        return self.prepare(x if self.augment is None else self.augment(x, replayed)).cpu()


class Experience(CLExperience):  # type: ignore[misc]
    """An experience with all attributes that strategies read."""

    def __init__(self, task: Task, items: Items, label: int, begin: int, seen: set[int]) -> None:
        """Make an experience of a task.

        Args:
            task: the task.
            items: the task's samples.
            label: the task label: its index in scenario `task`, else 0, as in Avalanche's class-incremental streams.
            begin: number of samples of the stream before the task.
            seen: classes of earlier tasks.
        """
        super().__init__(current_experience=task.index, origin_stream=None)
        self.dataset: Any = TaskAwareSupervisedClassificationDataset([items], data_attributes=[
            DataAttribute(items.labels, "targets"), TaskLabels(ConstantSequence(label, len(items))),
            DataAttribute(range(begin, begin + len(items)), PLACE)])
        self.task_label, self.task_labels = label, [label]
        self.classes_in_this_experience = list(task.classes)
        self.previous_classes = set(seen)
        self.classes_seen_so_far = seen | set(task.classes)


def places(dataset: Any) -> list[int]:
    """Return the indices in the stream of a data set's samples; empty if they are not samples of the stream."""
    return list(getattr(dataset, PLACE, ()))
