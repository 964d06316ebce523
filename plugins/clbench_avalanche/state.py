"""The state that an Avalanche strategy keeps between tasks, found in its attributes and those of its plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor, nn

from clbench_avalanche.experience import places

# Attributes that are not state of the strategy. The model and the optimizer belong to the harness, results of the last
# step are not memory, and the samples that a data loader reads are found where they are stored.
SKIPPED = frozenset({
    "model", "optimizer", "optimized_param_id", "evaluator", "clock", "dataloader", "replay_loader",
    "buffer_dataloader", "buffer_dliter", "mbatch", "mb_output", "loss", "batch_logits", "mb_buffer_x", "mb_buffer_y",
    "mb_buffer_tid", "mb_buffer_out", "reference_gradients", "batch_order"})
STORED = ("*_items", "*_memory_x_*", "*_ext_mem_list_x")


@dataclass
class AgentState:
    """Tensors by the path of attributes that leads to them, samples of the stream, and logits of samples."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)  # which of the tensors are parameters of a network
    stored: list[Tensor] = field(default_factory=list)  # inputs or features [M, ...] that are not samples of the stream
    places: set[int] = field(default_factory=set)
    logits: list[Tensor] = field(default_factory=list)


def agent_state(agent: Any) -> AgentState:
    """Return the state of a strategy without its model; a tensor with two names counts once."""
    storages = {storage(t) for t in (*agent.model.parameters(), *agent.model.buffers())}
    state, seen = AgentState(), {id(agent.model)}
    named_tensors = [*_walk(agent, "", seen, state)]
    ignored_names = {*vars(nn.Module()), "features"}
    for name, value in vars(agent.model).items():  # CWR* stores weights as attributes of the model
        if name not in ignored_names:
            named_tensors += _walk(value, f"_{name}", seen, state)
    for name, tensor in named_tensors:
        if tensor.numel() and storage(tensor) not in storages:
            storages.add(storage(tensor))
            if any(fnmatchcase(name, pattern) for pattern in STORED):
                state.stored.append(tensor)
            else:
                state.tensors[name] = tensor
    return state


def storage(tensor: Tensor) -> int:
    """Return the address of a tensor's storage."""
    return tensor.untyped_storage().data_ptr()


def _walk(value: Any, name: str, seen: set[int], state: AgentState) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that can be reached from a value, with its name; add samples of data sets to `state`."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, np.ndarray):
        yield name, torch.from_numpy(value)
    elif id(value) in seen:
        return
    elif isinstance(value, AvalancheDataset):
        seen.add(id(value))
        sample_places = places(value)
        state.places.update(sample_places)
        if len(value) and not sample_places:  # features, not samples of the stream
            items = [*value]
            yield f"{name}_items", torch.stack([item[0] for item in items])
            yield f"{name}_labels", torch.tensor([int(item[1]) for item in items])
        if len(value) and hasattr(value, "logits"):
            state.logits.append(torch.stack(list(value.logits)))
    elif isinstance(value, nn.Module):
        seen.add(id(value))
        state.weights.update(f"{name}_{inner}" for inner, _ in value.named_parameters())
        yield from ((f"{name}_{inner}", tensor) for inner, tensor in value.state_dict().items())
    else:
        seen.add(id(value))
        for inner, part in _parts(value):
            if inner not in SKIPPED:
                yield from _walk(part, f"{name}_{inner}", seen, state)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the contents of a container, or the attributes of an object of Avalanche, by name."""
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif type(value).__module__.partition(".")[0] in ("avalanche", "clbench_avalanche") and hasattr(value, "__dict__"):
        yield from vars(value).items()
