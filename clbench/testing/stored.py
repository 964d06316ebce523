"""Whether the samples that a strategy stores are counted as such."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.data.stream import Stream
from clbench.strategy.replay import SampleMemory
from clbench.testing.tiny import TASKS, Make, NonConforming
from clbench.training.costs import role

SAMPLE_BUFFERS = ("memory_x", "memory_y", "memory_tasks")  # of a `SampleMemory`, whatever form it stores samples in


def check_stored_samples(make: Make) -> None:
    """Check that stored samples have the role "replay": reports count them as replay samples.

    The buffers of a `SampleMemory` hold samples by definition. Any other parameter or buffer does if one of its rows
    equals a training sample of the tiny stream, as the stream stores it or as the model gets it.
    """
    for scenario in ("task", "class"):
        b = make(scenario)
        known = known_samples(b.stream)
        for index in range(TASKS):
            b.learn(index)
            counted = b.strategy.state_dict()
            tensors = {**dict(b.strategy.named_parameters()), **dict(b.strategy.named_buffers())}
            for name, tensor in tensors.items():
                memory = isinstance(b.strategy, SampleMemory) and name in SAMPLE_BUFFERS and len(tensor)
                if not memory and not holds_samples(tensor, known):
                    continue
                where = f"scenario {scenario}, after task {index + 1}: {name} holds training samples"
                if name not in counted:
                    raise NonConforming(f"{where}, but it is not persistent, so reports do not count it: "
                                        "leave persistent=False out")
                if role(b.strategy, name) != "replay":
                    raise NonConforming(f"{where}, but its role is {role(b.strategy, name)!r}, so reports say that no "
                                        f"samples are kept: add ({name!r}, 'replay') to the front of roles")


def known_samples(stream: Stream) -> Tensor:
    """Return all training samples of a stream as rows [N, D] float64, raw ones and prepared ones."""
    raw = torch.cat([task.train.materialized().x for task in stream.tasks])
    return torch.cat([raw.flatten(1).double(), stream.prepare(raw).flatten(1).double()])


def holds_samples(tensor: Tensor, known: Tensor) -> bool:
    """Tell whether a row of a tensor, read as rows of a sample's length, is one of the known samples [N, D]."""
    length = known.shape[1]
    if not tensor.numel() or tensor.numel() % length or tensor.is_complex():
        return False
    rows = tensor.detach().cpu().reshape(-1, length).double()
    return bool((torch.cdist(rows, known, compute_mode="donot_use_mm_for_euclid_dist") == 0).any())
