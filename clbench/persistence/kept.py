"""The file of a trial's final model, `--keep models`: written here, and made a strategy again without the data.

Where one plain network answers for the method (naive, ewc, er and kin), the file has its weights, by the names of the
library that the model is from. Else it has the strategy's state the way a checkpoint has it
(`clbench.persistence.checkpoint`), without the old samples, Fisher terms and networks that no prediction reads. The
metadata say, as JSON, what inputs it takes and which outputs take part in its answers. Nothing in it is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clbench.core import seeds
from clbench.core.artifacts import save_tensors
from clbench.core.device import out_of_memory
from clbench.core.errors import StoreError
from clbench.core.registry import Registry
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask, stored
from clbench.experiment.trial import Trial
from clbench.models.network import Network
from clbench.persistence.checkpoint import Described, Unresumable, described, put_back, tensors_of
from clbench.strategy.base import Strategy, overrides
from clbench.training.building import build_model, build_strategy, channels_last, world_of
from clbench.training.costs import role
from clbench.training.evaluation import batch_size, offered_outputs
from clbench.training.replica import Replica

SCHEMA = 1
TO_LEARN = frozenset(("replay", "counters", "importance", "old network", "class statistics", "subspaces"))  # roles
STAND_INS = 4  # samples of each class by which a strategy is led again through tasks whose data are not there


class KeptHeader(Described):
    """What a kept model's file says beside its tensors."""

    schema_version: int = SCHEMA
    kind: Literal["network", "strategy"]
    key: str  # of the trial
    learned: int  # tasks
    sample_shape: list[int]  # of a raw sample
    sample_dtype: Literal["uint8", "float32", "int32"]
    input_shape: list[int]  # of a prepared one
    prepare: Prepare
    outputs: int
    class_names: list[str]  # of each output; those of several tasks where it is another class in each
    classes: list[list[int]]  # of each task, as outputs
    taught: list[list[int]]  # those of its training samples
    offered: list[list[int]]  # outputs that take part in the answer to a sample of each task
    hidden: bool = False  # whether it was learned without boundaries
    batch: int  # samples that the trial predicted at once
    steps: int  # optimiser steps of its longest task
    names: Mapping[str, str] = Field(default_factory=dict)  # in the file, of tensors that have another name here
    left_out: Mapping[str, tuple[str, list[int]]] = Field(default_factory=dict)  # dtype and shape


def write_model(path: Path, replica: Replica, registry: Registry) -> None:
    """Write the model of a trial that has learned all its tasks; if it cannot be kept, a file that says why.

    Raises:
        OSError: it cannot be written.
    """
    strategy = replica.strategy
    network = plain_network(strategy, replica.trial, registry)
    header = _header(replica, "strategy" if network is None else "network")
    try:
        if network is not None:
            tensors = network.state_dict()
            names = {name: theirs for name in tensors if (theirs := network.published_name(name)) != name}
            header = header.model_copy(update={"names": names})
            tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        else:
            if strategy.not_resumable:
                raise Unresumable(strategy.not_resumable)
            header = header.model_copy(update=described(strategy))
            tensors = tensors_of(strategy)
            unread = unread_state(strategy, replica.stream)
            header = header.model_copy(update={"left_out": {
                name: (str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].shape))
                for name in sorted(unread)}})
            tensors = {name: tensor for name, tensor in tensors.items() if name not in unread}
    except Unresumable as error:
        tensors, header = {}, header.model_copy(update={"problem": str(error)})
    save_tensors(path, tensors, {"format": "pt", "clbench": header.model_dump_json()})


def _header(replica: Replica, kind: Literal["network", "strategy"]) -> KeptHeader:
    stream, trial = replica.stream, replica.trial
    raw = stored(stream.tasks[0].test)
    offered = offered_outputs(stream, trial.scenario, len(stream.tasks)).cpu()
    return KeptHeader(kind=kind, key=trial.key, learned=len(stream.tasks), sample_shape=list(raw.shape[1:]),
                      sample_dtype="uint8" if raw.dtype == torch.uint8 else "int32" if stream.is_text else "float32",
                      input_shape=list(stream.input_shape), prepare=stream.prepare,
                      outputs=stream.classes, class_names=names_of(stream),
                      classes=[list(t.classes) for t in stream.tasks], taught=[list(t.taught) for t in stream.tasks],
                      offered=[row.nonzero().flatten().tolist() for row in offered], hidden=stream.hidden,
                      batch=batch_size(stream, stream.tests.y.device), steps=max(replica.costs.steps, default=0))


def names_of(stream: Stream) -> list[str]:
    """Return a name for each output: those of its classes, which may differ between tasks; else its number."""
    found: dict[int, dict[str, None]] = {}
    for task in stream.tasks:
        for output, name in zip(task.classes, task.class_names, strict=False):  # there may be none
            found.setdefault(output, {})[name] = None
    return [" / ".join(found.get(output, {str(output): None})) for output in range(stream.classes)]


def plain_network(strategy: Strategy, trial: Trial, registry: Registry) -> Network | None:
    """Return the network that answers for a strategy, if that is the trial's model as it was built; else None."""
    network = strategy.model
    if overrides(strategy, "forward") or overrides(strategy, "predict"):
        return None
    with torch.device("meta"):
        fresh, _ = build_model(trial.model, None, strategy.world.input_shape, strategy.world.classes, registry)
    return network if _layout(network) == _layout(fresh) else None


def _layout(network: nn.Module) -> list[Any]:
    """Return what a network is made of: its modules, whether they are hooked, and the shapes of its tensors."""
    return [[(name, type(module), bool(module._forward_hooks or module._forward_pre_hooks))
             for name, module in network.named_modules()],
            [(name, tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()]]


def unread_state(strategy: Strategy, stream: Stream) -> set[str]:
    """Return the names of state that is there to learn on (`TO_LEARN`) and that no prediction reads.

    Predictions of the first test samples of each task are watched. State of other roles is kept in any case: which of
    it is read may depend on the samples.
    """
    state = strategy.state_dict()
    watch = _Reads()
    training = strategy.training
    strategy.eval()
    with torch.no_grad(), watch:
        for index in range(len(stream.tasks)):
            x = next(stream.tests.batches(STAND_INS, index))[0]
            strategy.predict(x, index if strategy.world.task_given else None)
    strategy.train(training)
    kept = {_address(tensor) for name, tensor in state.items() if role(strategy, name) not in TO_LEARN}
    return {name for name, tensor in state.items() if tensor.numel() and role(strategy, name) in TO_LEARN
            and _address(tensor) not in watch.addresses | kept}


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory of every tensor that an operation gets."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.addresses.update(_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    """Return what tells a tensor's memory from others, without ending the sharing of memory."""
    return int(tensor.untyped_storage()._cdata)


def read_model(path: Path) -> tuple[KeptHeader, dict[str, Tensor]]:
    """Return what `write_model` has written, tensors by their names here.

    Raises:
        StoreError: it is not there, not whole, or says why there is no model.
    """
    again = "run the experiment again with --keep models"
    try:
        with safe_open(path, "pt") as file:
            header = KeptHeader.model_validate_json((file.metadata() or {}).get("clbench", ""))
            own = {theirs: name for name, theirs in header.names.items()}
            tensors = {own.get(name, name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StoreError(f"the trained model was not saved ({path} does not exist): {again}") from None
    except (OSError, SafetensorError, ValidationError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({type(error).__name__}); remove it and {again}") from None
    if header.problem:
        raise StoreError(f"no model could be kept: {header.problem}")
    return header, tensors


def rebuilt(header: KeptHeader, tensors: Mapping[str, Tensor], trial: Trial, registry: Registry) -> Strategy:
    """Return the strategy of a kept model, on the CPU and in eval mode; one of a plain network is naive.

    Raises:
        StoreError: the file does not fit the code that there is now.
    """
    stream = stand_in(header)
    try:
        with seeds.scope(trial.seed, "init"):
            model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
        channels_last(model)
        world = world_of(stream, trial.scenario, trial.seed, trial.weights is not None)
        if header.kind == "network":
            model.load_state_dict(dict(tensors))
            strategy = Strategy(model, world)
        else:
            with seeds.scope(trial.seed, "strategy"):
                strategy = build_strategy(trial.method, model, world, registry)
            # Of the few stand-ins an epoch might be too short for the phases.
            recipe = trial.trained_by.model_copy(update={"epochs": None, "iterations": max(header.steps, 1)})
            Replica(strategy, stream, trial.seed).retrace(header.learned, recipe)
            absent = {name: torch.zeros(shape, dtype=getattr(torch, dtype))
                      for name, (dtype, shape) in header.left_out.items()}
            put_back(header, strategy, {**tensors, **absent})
    except Exception as error:  # of a plugin, whose code may have changed since
        if out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StoreError(f"the kept model of {trial.method.name} does not fit the code that there is now ({said}); run "
                         "the trial again") from error
    return strategy.requires_grad_(False).eval()


def stand_in(header: KeptHeader) -> Stream:
    """Return a stream like the trial's, with noise in the place of its samples: structure, and nothing to learn."""
    generator = torch.Generator().manual_seed(0)

    def samples(outputs: list[int], task: int) -> Samples:
        y = torch.tensor(outputs).repeat(STAND_INS)
        shape = (len(y), *header.sample_shape)
        x = (torch.rand(shape, generator=generator) if header.sample_dtype == "float32" else torch.randint(
            0, 256 if header.sample_dtype == "uint8" else 2, shape, generator=generator,
            dtype=getattr(torch, header.sample_dtype)))
        return Samples(x, y, torch.full_like(y, task))

    tasks = tuple(StreamTask(tuple(classes), samples(taught, index), samples(classes, index),
                             met=() if taught == classes else tuple(taught))
                  for index, (classes, taught) in enumerate(zip(header.classes, header.taught, strict=True)))
    return Stream(tasks, header.outputs, tuple(header.input_shape), header.prepare, "", (), hidden=header.hidden)
