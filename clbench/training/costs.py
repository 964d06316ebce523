"""Costs of a strategy: storage, counted from its parameters and buffers, and the time and memory of a trial."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clbench.core.errors import PluginError
from clbench.strategy.base import Strategy


@dataclass(frozen=True)
class Footprint:
    """The storage of a strategy: numbers of parameters by role, bytes by role (with buffers), and replay samples."""

    parameters: dict[str, int]
    bytes: dict[str, int]
    replay_samples: int


def measure(strategy: Strategy) -> Footprint:
    """Return the storage of a strategy. A tensor with several names counts once, a non-persistent buffer not at all.

    The number of replay samples is the length of the longest buffer with the role "replay". If there are several sets
    of such buffers, whose names begin differently (`memory_x`, `validation_x`), it is the sum over the sets. Buffers of
    a module whose names have no `_` (`bank.x`, `bank.y`) are one set.
    """
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    replay: dict[str, int] = {}  # length of the longest buffer, by the module and the first word of the names
    persistent = strategy.state_dict().keys()
    for name, parameter in strategy.named_parameters():
        parameters[role(strategy, name)] += parameter.numel()
        sizes[role(strategy, name)] += nbytes(parameter)
    for name, buffer in strategy.named_buffers():
        if name not in persistent:
            continue
        sizes[role(strategy, name)] += nbytes(buffer)
        if role(strategy, name) == "replay" and buffer.dim():
            module, dot, buffer_name = name.rpartition(".")
            word, underscore, _ = buffer_name.partition("_")
            samples = module if dot and not underscore else f"{module}.{word}"
            replay[samples] = max(replay.get(samples, 0), len(buffer))
    return Footprint(dict(sorted(parameters.items())), {k: v for k, v in sorted(sizes.items()) if v},
                     sum(replay.values()))


def role(strategy: Strategy, name: str) -> str:
    """Return the role of a parameter or buffer, given by the first pattern in `roles` that fits its name; else "base".

    A class adds to the roles of its bases: its own patterns come first, then those of its bases in Python's method
    resolution order. So a replay buffer stays "replay" in a subclass that gives roles to what it adds.

    Raises:
        PluginError: `roles` has something else than pairs.
    """
    declared = [strategy.roles, *(vars(cls).get("roles", ()) for cls in type(strategy).__mro__[1:])]
    pairs = [*chain.from_iterable(declared)]
    if any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise PluginError(f"`roles` of {type(strategy).__name__} must have pairs of a name pattern and a role, as in "
                          'roles = (("anchor_*", "anchors"),)')
    return next((kind for pattern, kind in pairs if fnmatchcase(name, pattern)), "base")


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(map(nbytes, [*model.parameters(), *model.buffers()]))


def nbytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's elements take."""
    return tensor.numel() * tensor.element_size()


class Clock(NamedTuple):
    """A time or a duration in seconds: of the wall clock, and of the CPU in this process."""

    wall: float
    cpu: float  # of all threads

    @classmethod
    def now(cls) -> Clock:
        """Return the current time."""
        return cls(time.perf_counter(), time.process_time())

    def share(self, parts: int) -> Clock:
        """Return this duration divided by `parts`."""
        return Clock(self.wall / parts, self.cpu / parts)

    def plus(self, other: Clock) -> Clock:
        """Return the sum of two durations."""
        return Clock(self.wall + other.wall, self.cpu + other.cpu)

    def since(self, earlier: Clock) -> Clock:
        """Return the duration since an earlier time."""
        return Clock(self.wall - earlier.wall, self.cpu - earlier.cpu)


class PeakMemory:
    """Measures the peak memory since its creation: of the process, and of torch on an accelerator."""

    def __init__(self, device: torch.device) -> None:
        """Reset the peaks, if the system allows it (Linux, CUDA)."""
        self.device = device
        self.reset = True
        if sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self.reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def host(self) -> int | None:
        """Return the peak resident bytes of the process; None if the system cannot give them for this trial alone."""
        if sys.platform != "linux" or not self.reset:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None

    def accelerator(self) -> int | None:
        """Return the peak bytes that torch allocated on the accelerator; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
