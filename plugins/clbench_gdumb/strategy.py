"""GDumb: a greedy sampler and a dumb learner (Prabhu et al. 2020, ECCV).

The sampler (algorithm 1) stores a sample if its class has fewer than k / |Y| samples in the memory, for k slots and |Y|
classes seen so far. If the memory is full, the sample replaces a random sample of the largest class. Nothing else is
ever replaced, so the first samples of a class stay. The learner discards its weights and trains on the memory alone.

Before the steps of a task, its samples pass the sampler once, in random order. All the task's steps, as many as every
method has, are then passes over the memory. They use no other samples of the task. They start from the weights and
running statistics that the network had before the first task (with `--weights`, the pretrained ones). No checkpoint
stores these: a trial builds its network from its seed, so a resumed trial has them again. What a task trained is lost,
except an optimizer's moments if the training configuration keeps them (`optimizer_state = keep`). Do not use that
setting with this method.

The authors train for up to 256 passes (SGD, learning rate from 0.05 to 0.0005 along cosines with restarts, batches
of 16, weight decay 1e-6, norms of gradients up to 10, CutMix with probability 0.5 except on MNIST). None of this is
part of the method here; the training configuration decides.

Reference codes differ: the authors' code takes the first k / C samples of each of all C classes, without the stream,
and trains once, after the last task. Mammoth has a reservoir, which is not balanced, and also trains once. Avalanche
refills by a reservoir for each class and starts each task from a copy of the first network, as here. Its epochs are
over the memory, so it takes far fewer steps. If several classes are the largest, the paper leaves open which one loses
a sample. Here it is the class that comes first in the memory as the task begins, or of the classes that are new in the
task, the one seen first.

Beyond the paper: in scenario `domain`, every task has the same classes, so the sampler would keep the first task's
samples forever. There, each class of each task counts as a class of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, Samples, StreamInfo, Task
from clbench.core.device import send
from clbench.strategy.granted import PhaseSpec
from clbench.strategy.regularization import slot
from clbench.strategy.replay import SampleMemory, write_slots
from clbench_gdumb import GDumbOptions


class GDumb(SampleMemory):
    """A network that is reset for each task; the buffers `start__*` are its initial state, not a memory."""

    options: GDumbOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory, and copy the initial weights."""
        options = options or GDumbOptions()
        assert isinstance(options, GDumbOptions)
        super().__init__(model, stream_info, options)
        for name, value in self._network().items():
            self.register_buffer(f"start__{slot(name)}", value.detach().clone(), persistent=False)

    @torch.no_grad()
    def before_task(self, task: Task) -> None:
        """Offer the task's samples to the sampler, and reset the network to its initial weights."""
        count = len(task.train)
        order = torch.randperm(count, generator=self.stream_info.generator)
        draws = torch.rand(count, generator=self.stream_info.generator, dtype=torch.float64)
        new_groups, memory_groups = self._groups(task.train), self._groups(self.memory)
        source = greedy_slots(memory_groups, [new_groups[i] for i in order.tolist()], self.options.capacity, draws)
        slots = (source >= 0).nonzero()[:, 0]
        if len(slots):
            chosen = order[source[slots]]
            raw = task.train.materialized()
            samples = raw.take(send(chosen, raw.index_device))
            self.store(Samples(write_slots(self.memory_x, samples.x, slots),
                               write_slots(self.memory_y, samples.y, slots),
                               write_slots(self.memory_tasks, samples.tasks, slots)))
        for name, value in self._network().items():
            value.copy_(self.get_buffer(f"start__{slot(name)}"))

    def phase_samples(self, task: Task, phase: PhaseSpec) -> Samples:
        """Return the memory, on which all steps of the task are trained."""
        return self.memory

    def _network(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers by name, including non-persistent buffers."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _groups(self, samples: Samples) -> list[tuple[int, int]]:
        """Return the group in which each sample counts: (its task in scenario `domain`, else 0; its class)."""
        tasks = samples.tasks.tolist() if self.stream_info.shared_outputs else [0] * len(samples)
        return list(zip(tasks, samples.y.tolist(), strict=True))


def greedy_slots(memory_groups: list[tuple[int, int]], offered: list[tuple[int, int]], capacity: int, draws: Tensor
                 ) -> Tensor:
    """Return which of N new samples ends up in each slot (-1: none), by algorithm 1 of the paper.

    Args:
        memory_groups: the group of each stored sample, by slot (see `GDumb._groups`).
        offered: the groups of the new samples, in order.
        capacity: the number of slots.
        draws: [N], uniform in [0, 1), float64, on the CPU: they choose which sample of the largest group is replaced.

    Returns:
        int64 [M], for the M slots in use afterwards.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for index, group in enumerate(memory_groups):
        members.setdefault(group, []).append(index)
    source, used = dict[int, int](), len(memory_groups)
    for i, (group, draw) in enumerate(zip(offered, draws.tolist(), strict=True)):
        group_slots = members.setdefault(group, [])
        if len(group_slots) * len(members) >= capacity:
            continue
        if used < capacity:
            index, used = used, used + 1
        else:
            largest = max(members.values(), key=len)
            index = largest.pop(int(draw * len(largest)))
        group_slots.append(index)
        source[index] = i
    return torch.tensor([source.get(index, -1) for index in range(used)], dtype=torch.int64)
