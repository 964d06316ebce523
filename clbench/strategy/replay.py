"""Replay memory: base classes of strategies that store some samples of the stream in buffers and draw from them.

`SampleMemory` has the buffers and draws from them; the strategy chooses the samples. `ReplayMemory` chooses samples
while they arrive, in one of two ways.

`reservoir` is Algorithm R (Vitter 1985): after n samples, each of them is in the memory with the same probability
capacity/n. `class` is the class-balancing reservoir CBRS (Chrysakis & Moens 2020, "Online Continual Learning from
Imbalanced Data"). Once the memory is full, a sample of a class that has never been the largest class in the memory
replaces a sample of the largest class. A sample of any other class replaces a sample of the same class, with a
probability that makes the class's part of the memory a reservoir sample of that class.

With a quota of N samples of each class, or of each class in each task (`QuotaOptions`), every class (or class in a
task) has a reservoir of N slots, and the memory grows with each new one.

Random numbers come from the generator on the CPU. Each offered sample uses two, whether it is stored or not. The
numbers therefore depend only on the number of offered samples, never on the device. With `reservoir`, a step reads
nothing back from the device. `class` must wait for the labels.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from clbench.core.device import send
from clbench.core.errors import OptionError, SpecError
from clbench.core.options import Options
from clbench.core.renamed import Renamed
from clbench.data.samples import Samples
from clbench.models.network import Network
from clbench.strategy.base import Batch, Strategy, StreamInfo
from clbench.strategy.common_options import QuotaOptions

Balance = Literal["reservoir", "class"]


class SampleMemory(Strategy):
    """Base of strategies that store samples: `store` replaces them, `draw` and `sample` select some at random.

    The M stored samples are in the buffers memory_x [M, ...] (raw, as the stream stores them), memory_y [M] and
    memory_tasks [M].
    """

    roles: tuple[tuple[str, str], ...] = (("memory_*", "replay"),)
    memory_x: Tensor
    memory_y: Tensor
    memory_tasks: Tensor
    recall = Renamed("sample")  # until 0.3

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        super().__init__(model, stream_info, options)
        device = self.class_mask.device
        self.register_buffer("memory_x", torch.empty(0, device=device))
        self.register_buffer("memory_y", torch.empty(0, dtype=torch.int64, device=device))
        self.register_buffer("memory_tasks", torch.empty(0, dtype=torch.int64, device=device))

    @property
    def memory(self) -> Samples:
        """Return the stored samples."""
        return Samples(self.memory_x, self.memory_y, self.memory_tasks)

    def store(self, samples: Samples) -> None:
        """Replace the memory by these raw samples."""
        self.memory_x, self.memory_y, self.memory_tasks = samples.x, samples.y, samples.tasks

    def draw(self, count: int) -> Tensor:
        """Return the slots of `count` different samples, in random order, or of all samples if there are fewer."""
        index = torch.randperm(len(self.memory_y), generator=self.stream_info.generator)[:count]
        return send(index, self.memory_y.device)

    def sample(self, count: int) -> Samples:
        """Return `count` different samples of the memory, in random order, or all samples if there are fewer."""
        return self.memory.take(self.draw(count))


class ReplayMemory(SampleMemory):
    """Base of strategies with a memory of the stream so far, to which `offer` offers samples.

    It grows up to its capacity, or by the quota in its options. memory_seen [C] is the number of samples offered so far
    by class, or [T C] by task and class with `quota = class-and-task`. If there are no classes, it is [T] by task.
    memory_full [C] marks the classes that have been the largest class in the memory (only with `class`).
    """

    # They have one number per class, not per sample. With the role "replay", they would count as stored inputs.
    roles: tuple[tuple[str, str], ...] = (("memory_seen", "counters"), ("memory_full", "counters"), *SampleMemory.roles)
    memory_seen: Tensor
    memory_full: Tensor
    remember = Renamed("offer")  # until 0.3

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None, *, capacity: int,
                 balance: Balance = "reservoir") -> None:
        """Start with an empty memory.

        Raises:
            SpecError: the memory is balanced by class or has a quota per class, but there are no classes.
        """
        super().__init__(model, stream_info, options)
        quota = options if isinstance(options, QuotaOptions) else QuotaOptions()
        self.per_class, self.by_task = quota.per_class, quota.quota == "class-and-task"
        if self.per_class and not stream_info.has_classes:
            raise SpecError(f"per_class = {self.per_class} counts the samples of each class, and this benchmark does "
                            "not have classes; choose a capacity")
        if balance == "class" and not stream_info.has_classes:
            raise OptionError("balance = class divides the memory among classes, which this benchmark does not have",
                              "balance=reservoir")
        self.capacity, self.balance = capacity, balance
        self.joined = 0  # number of new samples for which `sample_share` has drawn samples
        self._offered: int | None = None  # the sum of memory_seen, if it is known on the host
        device = self.class_mask.device
        kinds = stream_info.classes if stream_info.has_classes else stream_info.tasks
        counted = stream_info.classes * stream_info.tasks if self.by_task else kinds
        self.register_buffer("memory_seen", torch.zeros(counted, dtype=torch.int64, device=device))
        self.register_buffer("memory_full", torch.zeros(stream_info.classes, dtype=torch.bool, device=device))

    def offer(self, samples: Samples) -> None:
        """Offer raw samples to the memory, one after the other."""
        draws = torch.rand(len(samples), 2, generator=self.stream_info.generator, dtype=torch.float64)
        kinds = self._groups(samples)
        if self.per_class:
            source = quota_slots(self._groups(self.memory).tolist(), kinds.tolist(), self.memory_seen.tolist(),
                                 self.per_class, draws[:, 0])
        elif self.balance == "class":
            full = self.memory_full.tolist()
            source = class_balanced_slots(self.memory_y.tolist(), samples.y.tolist(), self.memory_seen.tolist(), full,
                                          self.capacity, draws)
            self.memory_full.copy_(torch.tensor(full))
        else:
            if self._offered is None:
                self._offered = int(self.memory_seen.sum())
            source = reservoir_slots(len(self.memory_y), self._offered, self.capacity, draws[:, 0])
            self._offered += len(samples)
        self.memory_seen.index_add_(0, kinds, torch.ones_like(kinds))
        slots = (source >= 0).nonzero()[:, 0]
        if len(slots):  # copy only the selected samples, because the inputs of a task may not fit on the device
            raw = samples.materialized()
            self._write(raw.take(send(source[slots], raw.index_device)), slots)

    def _groups(self, samples: Samples) -> Tensor:
        """Return the index of each sample's counter [N]: by class, by task and class, or by task."""
        if self.by_task:
            return samples.tasks * self.stream_info.classes + samples.y
        return samples.y if self.stream_info.has_classes else samples.tasks

    def sample_share(self, new: int, share: float) -> Samples:
        """Return about `share * new` samples, in random order, to replay in a step with `new` new samples.

        Over all steps so far, with n new samples, floor(n share) samples are requested. With B new samples in each
        step, step i (from 0) requests floor((i + 1) B share) - floor(i B share). It gets fewer if the memory has fewer.
        """
        old_joined, self.joined = self.joined, self.joined + new
        exact = Fraction(str(share))  # with floats, floor(0.29 * 100) is 28
        return self.sample(math.floor(self.joined * exact) - math.floor(old_joined * exact))

    def stored_loss(self, stored: Samples, task: int = 0) -> Tensor:
        """Return the mean cross-entropy of raw stored samples, as if replayed in a batch of `task`; a scalar."""
        x = self.stream_info.prepare(stored.x)
        batch, = self.collate([Batch(x, stored.y, stored.tasks, task, replayed=len(stored))])
        return self.cross_entropy(self(batch.x), batch)

    def _write(self, new: Samples, slots: Tensor) -> None:
        """Write raw samples into slots (int64 [N], ascending, on the CPU); slots beyond the end are appended."""
        self.store(Samples(write_slots(self.memory_x, new.x, slots), write_slots(self.memory_y, new.y, slots),
                           write_slots(self.memory_tasks, new.tasks, slots)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict as any strategy does; the number of offered samples is then computed from it."""
        self._offered = None
        return super().load_state_dict(state_dict, strict, assign)


def write_slots(old: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Return `old` [M, ...] with new[i] in slot slots[i]; slots M, M + 1, ... are appended.

    `slots` are ascending and on the CPU, so that nothing has to be read back from the device.
    """
    if not len(old):
        old = new.new_empty(0, *new.shape[1:])
    changed = slots[slots < len(old)]
    memory = torch.cat([old, new[len(changed):].to(old.dtype)]) if len(changed) < len(slots) else old
    memory[send(changed, new.device)] = new[:len(changed)].to(old.dtype)
    return memory


def reservoir_slots(memory_size: int, seen: int, capacity: int, draws: Tensor) -> Tensor:
    """Return which of N new samples is stored in each slot (-1: none), exactly as in sequential Algorithm R.

    Args:
        memory_size: the number of samples in the memory.
        seen: the number of samples offered so far.
        capacity: the number of slots.
        draws: [N], uniform in [0, 1), float64, on the CPU. If the slots are full, sample i (from 0) goes to slot
            floor(draws[i] (seen + i + 1)) if this slot exists.

    Returns:
        int64 [M], for M slots in use afterwards. If several samples go to one slot, the last is stored.
    """
    number = torch.arange(len(draws))
    slots = (draws * (seen + number + 1)).long()
    filling = number < capacity - memory_size
    slots[filling] = memory_size + number[filling]
    placed = slots < capacity
    source = torch.full((min(capacity, memory_size + len(draws)),), -1)
    return source.scatter_reduce(0, slots[placed], number[placed], "amax")


def quota_slots(memory_groups: list[int], groups: list[int], seen: list[int], quota: int, draws: Tensor) -> Tensor:
    """Return which of N new samples is stored in each slot (-1: none), exactly as in Algorithm R in each group.

    A group has the samples of a class, or of a class in a task.

    Args:
        memory_groups: the groups of the samples in the memory, by slot.
        groups: the groups of the new samples.
        seen: the number of samples offered so far, by group.
        quota: the number of slots of a group, which are numbered in ascending order.
        draws: [N], uniform in [0, 1), float64, on the CPU: as in `reservoir_slots`, within the sample's group.

    Returns:
        int64 [M], for M slots in use afterwards. If several samples go to one slot, the last is stored.
    """
    slots: dict[int, list[int]] = {}
    for index, group in enumerate(memory_groups):
        slots.setdefault(group, []).append(index)
    source, used, seen = dict[int, int](), len(memory_groups), list(seen)
    for i, (group, draw) in enumerate(zip(groups, draws.tolist(), strict=True)):
        seen[group] += 1
        group_slots = slots.setdefault(group, [])
        if len(group_slots) < quota:
            group_slots.append(used)
            used += 1
            source[group_slots[-1]] = i
        elif (number := int(draw * seen[group])) < quota:
            source[group_slots[number]] = i
    return torch.tensor([source.get(index, -1) for index in range(used)])


def class_balanced_slots(memory_labels: list[int], labels: list[int], seen: list[int], full: list[bool], capacity: int,
                         draws: Tensor) -> Tensor:
    """Return which of N new samples is stored in each slot (-1: none), exactly as in sequential CBRS.

    No class is marked as the largest before the memory is full, because the largest class among a few samples is
    random. In the paper, a class does not grow after it has been the largest. If a random number selects a slot of a
    class, or a class among ties for the largest, these are numbered in ascending order.

    Args:
        memory_labels: the labels in the memory, by slot.
        labels: the labels of the new samples.
        seen: the number of samples offered so far, by class.
        full: whether each class has been the largest; changed in place.
        capacity: the number of slots.
        draws: [N, 2], uniform in [0, 1), float64, on the CPU. The first number accepts the sample or not, the second
            selects the slot.

    Returns:
        int64 [M], for M slots in use afterwards. If several samples go to one slot, the last is stored.
    """
    slots: list[list[int]] = [[] for _ in full]
    for index, label in enumerate(memory_labels):
        slots[label].append(index)
    source, used, seen = dict[int, int](), len(memory_labels), list(seen)
    for i, (label, (accept, pick)) in enumerate(zip(labels, draws.tolist(), strict=True)):
        seen[label] += 1
        class_slots = slots[label]
        slot: int | None = None
        if used < capacity:
            slot, used = used, used + 1
        elif not full[label]:
            largest = max(map(len, slots))
            ties = [members for members in slots if len(members) == largest]
            number = int(pick * largest * len(ties))
            slot = ties[number // largest].pop(number % largest)
        elif accept * seen[label] < len(class_slots):
            slot = class_slots.pop(int(pick * len(class_slots)))
        if slot is not None:
            insort(class_slots, slot)
            source[slot] = i
        if used == capacity:
            largest = max(map(len, slots))
            for c, members in enumerate(slots):
                full[c] = full[c] or len(members) == largest
    return torch.tensor([source.get(index, -1) for index in range(used)])
