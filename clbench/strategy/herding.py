"""A memory of exemplars that are chosen by herding (Rebuffi et al. 2017, arXiv 1611.07725), a set for each class.

Exemplars x_1, x_2, ... of a class are picked one after the other. Each pick brings the mean of the picked features as
near as possible to the mean of all features phi (algorithm 4). All classes seen share K equally; if the number per
class shrinks, the first exemplars are kept. Features are L2-normalized. With unit vectors, algorithm 4 picks the
largest phi(x) . (k mu - sum of the picked features). No sample is picked twice. With `per_class` N, each class has N
exemplars instead, from the beginning on.

Exemplars are mixed into the training samples in proportion, so that both are seen equally often. A pass replays as many
exemplars as the memory has, distributed over its batches. A small batch may have none. Reference codes append exemplars
to the task's samples, which lengthens the epoch. Here, every method has the same number of steps, and each step has the
same new samples. A class that returns (in scenario `domain`, every class returns with each task) has a set from each of
its tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.core.errors import SpecError
from clbench.core.options import Options
from clbench.data.samples import Samples
from clbench.models.network import Network
from clbench.strategy.base import Batch, StreamInfo, Task
from clbench.strategy.common_options import ExemplarOptions
from clbench.strategy.gaussians import features_of
from clbench.strategy.replay import SampleMemory


class HerdedMemory(SampleMemory):
    """Base of strategies that replay exemplars. The memory stores one set after the other, each in herding order.

    A strategy that also distills inherits from this class first and from `Distilled` second. Subclasses set `method`,
    their name in error messages.
    """

    method: ClassVar[str]
    options: ExemplarOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start without exemplars.

        Raises:
            SpecError: the memory would be too small for the classes of the stream.
        """
        assert isinstance(options, ExemplarOptions)
        super().__init__(model, stream_info, options)
        times = stream_info.tasks if stream_info.shared_outputs else 1  # the number of tasks that have a class
        self._require(stream_info.classes * times, times, "of each class (and, in scenario domain, task)")
        self.sizes: list[int] = []  # of the sets of exemplars
        self.samples = 0  # the number of samples of the task
        self.owed = 0  # fraction of an exemplar that the next batch still has to replay, in units of 1 / samples

    @property
    def fewest(self) -> int:
        """Return the minimum number of stored samples of a set. Default: 1."""
        return 1

    @property
    def needed(self) -> str:
        """Return the minimum in words, for error messages."""
        return "an exemplar" if self.fewest == 1 else f"{self.fewest} samples"

    @property
    def labels(self) -> list[int]:
        """Return the class of each set; -1 if sets share a capacity, which avoids waiting for the device."""
        if self.options.per_class is None:
            return [-1] * len(self.sizes)
        return first_labels(self.memory_y, self.sizes)

    def before_task(self, task: Task) -> None:
        """Start to distribute the exemplars over the batches of the task.

        Raises:
            SpecError: after the task, there would be too few exemplars for the number of sets. `__init__` cannot detect
                this if classes return.
        """
        labels = [*self.labels, *task.classes]
        self._require(len(labels), max(Counter(labels).values()),
                      f"of each of the {len(labels)} sets after task {task.index + 1} (a class that returns has a set "
                      "from each of its tasks)")
        super().before_task(task)
        self.samples, self.owed = len(self.training_samples(task)), 0

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with its share of exemplars appended."""
        if not self.sizes:
            return batch
        count, self.owed = divmod(self.owed + sum(self.sizes) * len(batch.y), self.samples)
        return batch.extended(self.sample(count))

    def after_task(self, task: Task) -> None:
        """Choose the exemplars of the task."""
        super().after_task(task)
        self.keep_exemplars(task)

    def keep_exemplars(self, task: Task) -> None:
        """Shorten the existing sets of exemplars and add those of the task."""
        train = self.training_samples(task).materialized()
        parts = [part.double() for _, part in features_of(self, train, self.unit_features)]
        features = torch.cat(parts)
        sets = {c: rows for c in task.classes if len(rows := (train.y == c).nonzero()[:, 0])}
        old_count = len(self.sizes)
        sizes = sizes_of([*self.labels, *sets], self.set_size)
        chosen = [rows[herding(features[rows], size)]
                  for rows, size in zip(sets.values(), sizes[old_count:], strict=True)]
        exemplars = train.take(torch.cat(chosen).to(train.index_device))
        if self.sizes:
            old_exemplars, self.sizes = shortened(self.memory, self.sizes, sizes[:old_count])
            exemplars = Samples.concat(old_exemplars, exemplars)
        self.store(exemplars)
        self.sizes = self.sizes + [len(rows) for rows in chosen]

    def slots_per_set(self, sets: int, of_class: int) -> int:
        """Return the maximum number of samples in a set.

        Args:
            sets: number of all sets, which share the capacity.
            of_class: number of sets of the same class, which share its quota.
        """
        if self.options.per_class is None:
            return self.options.capacity // sets
        return self.options.per_class // (of_class if self.options.quota == "class" else 1)

    def set_size(self, sets: int, of_class: int) -> int:
        """Return the maximum number of exemplars in a set, with arguments as in `slots_per_set`, the default."""
        return self.slots_per_set(sets, of_class)

    def _require(self, sets: int, of_class: int, of_what: str) -> None:
        """Raise a `SpecError` if a set would have fewer samples than needed."""
        if self.slots_per_set(sets, of_class) >= self.fewest:
            return
        if self.options.per_class is None:
            setting, minimum = f"capacity = {self.options.capacity}", sets * self.fewest
        else:
            times = of_class if self.options.quota == "class" else 1
            setting, minimum = f"per_class = {self.options.per_class}", times * self.fewest
        advice = ", or quota = class-and-task" if self.options.per_class and minimum > self.fewest else ""
        raise SpecError(f"{self.method}: {setting} cannot hold {self.needed} {of_what}; choose at least {minimum}"
                        + advice)

    def unit_features(self, x: Tensor) -> Tensor:
        """Return the normalized features [N, D] of inputs [N, *input_shape]."""
        return F.normalize(self.model.features(x))


def first_labels(y: Tensor, sizes: Sequence[int]) -> list[int]:
    """Return the label of the first sample of each set, or -1 for an empty set; labels y [N] are set after set."""
    labels, starts = y.tolist(), accumulate(sizes, initial=0)
    return [labels[start] if size else -1 for size, start in zip(sizes, starts, strict=False)]


def sizes_of(labels: Sequence[int], size: Callable[[int, int], int]) -> list[int]:
    """Return the size of each set, computed by `size(sets, of_class)`, given the class of each set."""
    counts = Counter(labels)
    return [size(len(labels), counts[label]) for label in labels]


def shortened(samples: Samples, sizes: list[int], most: Sequence[int]) -> tuple[Samples, list[int]]:
    """Return samples, stored set after set, reduced to the first most[i] samples of set i, and the new set sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    new_sizes = [min(size, count) for size, count in zip(most, sizes, strict=True)]
    slots = [torch.arange(end - count, end - count + new_size)
             for end, count, new_size in zip(ends, sizes, new_sizes, strict=True)]
    return samples.take(torch.cat(slots).to(samples.y.device)), new_sizes


def herding(features: Tensor, count: int) -> Tensor:
    """Return the indices of rows, int64 [count], whose mean approximates the mean of all rows; all n rows if n < count.

    The k-th row is argmin_x |mu - (phi(x) + sum of the earlier picks) / k| among the remaining rows. On the meta
    device, where features have no values, the first rows are returned.

    Args:
        features: phi [n, D].
        count: the number of rows to pick.
    """
    count = min(count, len(features))
    if features.is_meta:
        return torch.arange(count)
    mean, squares = features.mean(0), features.square().sum(1)
    residual = mean.clone()  # k mu minus the sum of the picked features
    penalties = torch.zeros_like(squares)
    picked = torch.empty(count, dtype=torch.int64, device=features.device)
    for k in range(count):
        best = (squares - 2 * features @ residual + penalties).argmin()
        picked[k] = best
        penalties[best] = math.inf
        residual += mean - features[best]
    return picked
