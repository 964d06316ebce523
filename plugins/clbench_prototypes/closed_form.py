"""What `ncm`, `slda` and `ranpac` have in common: sums over features of a frozen network, and a linear rule from them.

Sums do not depend on the order of samples or tasks (but for rounding, which float64 keeps small), and nothing that was
learned is changed by later tasks but through them. So nothing is forgotten but what a rule for more classes loses.

No weights given (`base = task1`), the first task trains the whole network as `naive` does, with its steps and its head:
the features are then those of `naive` after its first task, bit for bit. From then on nothing is trained by gradients,
and the budget of the other tasks is left unused. Features are those of the training samples as they are, not augmented.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Network, Strategy, Task, World
from clbench.strategy.per_sample_gradients import evaluating
from clbench.strategy.per_task import check_base
from clbench.strategy.per_task_options import StartOptions

CHUNK = 1024  # samples per step of a pass


class ClosedForm(Strategy, ABC):
    """A frozen network and, on a map of its D features to K numbers, the linear rule `weight` [C, K], `bias` [C].

    The buffers `sums` [C, K] and `counts` [C] are the sums of mapped features and the number of samples by class.
    Answers are the starting network's where no task is learned, and for a given task that is not.

    Args:
        model: the network before any method touched it.
        world: where the strategy lives.
        options: `base` and the method's own.
        width: K; None for D.
    """

    method: ClassVar[str]
    roles: tuple[tuple[str, str], ...] = (("weight", "heads"), ("bias", "heads"), ("sums", "prototypes"),
                                          ("counts", "prototypes"), ("moment", "second moments"))
    options: StartOptions
    sums: Tensor
    counts: Tensor

    def __init__(self, model: Network, world: World, options: StartOptions, width: int | None = None) -> None:
        """Start with nothing summed up."""
        super().__init__(model, world, options)
        check_base(self.method, options, world)
        self.learned = 0
        self.base_learns = self.options.base == "task1"
        self.model.requires_grad_(self.base_learns)
        none = model.head.weight.new_zeros(world.classes, width or model.head.in_features, dtype=torch.float64)
        self.weight, self.bias = (nn.Parameter(of, requires_grad=False) for of in (none, none[:, 0].clone()))
        self.register_buffer("sums", none.clone())
        self.register_buffer("counts", none[:, 0].clone())
        self.train(self.training)

    @abstractmethod
    def rule(self) -> tuple[Tensor, Tensor]:
        """Return weight [C, K] and bias [C] from what has been summed up; those of classes not met do not matter."""

    def map(self, features: Tensor) -> Tensor:
        """Return what the rule reads, [N, K], of features [N, D], both float64. Default: the features."""
        return features

    def add(self, mapped: Tensor, labels: Tensor) -> None:
        """Sum up mapped features [N, K] with one-hot labels [N, C], float64."""
        self.sums += labels.T @ mapped
        self.counts += labels.sum(0)

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """Learn a task's features [N, D] with one-hot labels [N, C]. Default: sum them up."""
        for mapped, own in self.chunks(features, labels):
            self.add(mapped, own)

    def chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features [N, D] mapped to [n, K], with their labels [n, C], some at a time."""
        for some, own in zip(torch.split(features, CHUNK), torch.split(labels, CHUNK), strict=True):
            yield self.map(some.double()), own

    def phases(self, task: Task) -> int:
        """Return 1 for the first task with `base = task1`, else 0: nothing is trained."""
        return int(self.base_learns and task.index == 0)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the network once it is frozen."""
        return () if self.base_learns else (self.model,)

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Freeze the network for good, learn the task's features, and fit the rule anew."""
        self.base_learns = False
        self.model.requires_grad_(False)
        self.train(self.training)
        with evaluating(self):
            features = torch.cat([self.model.features(self.world.prepare(part.x))
                                  for part in task.train.chunks(CHUNK)])
        self.take_in(features, F.one_hot(task.train.y, self.world.classes).to(features.device, torch.float64))
        weight, bias = self.rule()
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.learned = task.index + 1

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] by the rule, -inf for classes not met yet; or the starting network's (see the class)."""
        if not self.learned or (task is not None and task >= self.learned):
            return super().forward(x, task)
        # In float64, which autocast leaves alone: the rule was fitted in it.
        logits = F.linear(self.map(self.model.features(x).double()), self.weight, self.bias)
        return logits.masked_fill(self.counts == 0, float("-inf"))

    @property
    def means(self) -> Tensor:
        """Return the class means [C, K] of mapped features, 0 for classes not met."""
        return self.sums / self.counts.clamp(min=1)[:, None]


class SecondOrder(ClosedForm):
    """Sums up second moments too: `moment` [K, K] is the sum of h h^T over mapped features h, empty before any task."""

    moment: Tensor

    def __init__(self, model: Network, world: World, options: StartOptions, width: int | None = None) -> None:
        """Start with nothing summed up; the moment takes its size later, so that a stack has no copies of zeros."""
        super().__init__(model, world, options, width)
        self.register_buffer("moment", self.sums.new_empty(0, 0))

    def add(self, mapped: Tensor, labels: Tensor) -> None:
        """Sum up mapped features [N, K] with one-hot labels [N, C], float64."""
        super().add(mapped, labels)
        if not len(self.moment):
            self.moment = self.sums.new_zeros(2 * (mapped.shape[1],))
        self.moment.addmm_(mapped.T, mapped)
