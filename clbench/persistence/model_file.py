"""Model snapshots: what `--keep models` saves of a trial, and the strategy that is rebuilt of it without the data.

Where one plain network answers for the method (naive, ewc, er and kin), the file has its weights, by the names of the
library that the model is from. Else it has the strategy's state, without the old samples, Fisher terms and networks
that only training needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clbench.core import seeds
from clbench.core.device import out_of_memory
from clbench.core.errors import StoreError
from clbench.core.registry import Registry
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask, stored
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Trial
from clbench.models.network import Network
from clbench.persistence.snapshot import Contents, ModelHeader, write
from clbench.persistence.strategy_state import capture, restore, retrace
from clbench.strategy.base import Strategy, overrides
from clbench.training.building import build_model, build_strategy, channels_last, world_of
from clbench.training.costs import role
from clbench.training.evaluation import batch_size, offered_outputs
from clbench.training.replica import Replica

TO_LEARN = frozenset(("replay", "counters", "importance", "old network", "class statistics", "subspaces"))  # roles
STAND_INS = 4  # samples of each class with which a strategy passes through tasks again whose data are not there


def write_model(path: Path, replica: Replica, registry: Registry) -> None:
    """Write the model of a trial that has learned all its tasks; if it cannot be saved, a file that says why.

    Raises:
        OSError: it cannot be written.
    """
    network = plain_network(replica.strategy, replica.trial, registry)
    if network is None:
        write(path, header_of(replica, "strategy"), lambda: strategy_contents(replica))
    else:
        write(path, header_of(replica, "network"), lambda: network_contents(network))


def network_contents(network: Network) -> Contents:
    """Return the weights of a network by their published names, and which have another name in clbench."""
    names = {name: network.published_name(name) for name in network.state_dict()}
    tensors = {names[name]: tensor for name, tensor in network.state_dict().items()}
    return {"names": {name: published for name, published in names.items() if published != name}}, tensors


def strategy_contents(replica: Replica) -> Contents:
    """Return the state of a strategy without what only training needs."""
    fields, tensors = capture(replica.strategy)
    left_out = training_state(replica.strategy, replica.stream)
    fields["left_out"] = {name: (str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].shape))
                          for name in sorted(left_out)}
    return fields, {name: tensor for name, tensor in tensors.items() if name not in left_out}


def header_of(replica: Replica, kind: Literal["network", "strategy"]) -> ModelHeader:
    """Return what a model takes and answers, without what its state adds."""
    stream, trial = replica.stream, replica.trial
    raw = stored(stream.tasks[0].test)
    offered = offered_outputs(stream, trial.scenario, len(stream.tasks)).cpu()
    return ModelHeader(kind=kind, key=trial.key, learned=len(stream.tasks), sample_shape=list(raw.shape[1:]),
                       sample_dtype="uint8" if raw.dtype == torch.uint8 else "int32" if stream.is_text else "float32",
                       input_shape=list(stream.input_shape), prepare=stream.prepare,
                       outputs=stream.classes, class_names=names_of(stream),
                       classes=[list(task.classes) for task in stream.tasks],
                       taught=[list(task.taught) for task in stream.tasks],
                       offered=[row.nonzero().flatten().tolist() for row in offered], hidden=stream.hidden,
                       batch=batch_size(stream, stream.tests.y.device), steps=max(replica.costs.steps, default=0))


def names_of(stream: Stream) -> list[str]:
    """Return a name for each output: those of its classes, which may differ between tasks; else its number."""
    names: dict[int, dict[str, None]] = {}
    for task in stream.tasks:
        for output, name in zip(task.classes, task.class_names, strict=False):  # there may be none
            names.setdefault(output, {})[name] = None
    return [" / ".join(names.get(output, {str(output): None})) for output in range(stream.classes)]


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


def training_state(strategy: Strategy, stream: Stream) -> set[str]:
    """Return the names of state that only training needs, by its role; none where predictions change without it."""
    state = strategy.state_dict()
    names = {name for name, tensor in state.items() if tensor.numel() and role(strategy, name) in TO_LEARN}
    copies = {name: state[name].clone() for name in names}
    with torch.no_grad():
        expected = first_logits(strategy, stream)
        for name in names:
            state[name].zero_()
        try:
            unchanged = torch.equal(first_logits(strategy, stream), expected)
        except Exception:  # of a method that predicts with it
            unchanged = False
        for name, values in copies.items():
            state[name].copy_(values)
    return names if unchanged else set()


def first_logits(strategy: Strategy, stream: Stream) -> Tensor:
    """Return the logits of the first test samples of each task."""
    training, logits = strategy.training, []
    strategy.eval()
    for index in range(len(stream.tasks)):
        inputs = next(stream.tests.batches(STAND_INS, index))[0]
        logits.append(strategy.predict(inputs, index if strategy.world.task_given else None).logits)
    strategy.train(training)
    return torch.cat(logits)


def rebuild(header: ModelHeader, tensors: Mapping[str, Tensor], trial: Trial, registry: Registry) -> Strategy:
    """Return the strategy of a saved model, on the CPU and in eval mode; one of a plain network is naive.

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
            model.load_state_dict({name: tensors[header.names.get(name, name)] for name in model.state_dict()})
            strategy = Strategy(model, world)
        else:
            with seeds.scope(trial.seed, "strategy"):
                strategy = build_strategy(trial.method, model, world, registry)
            retrace(Replica(strategy, stream, trial.seed), header.learned, stand_in_recipe(header, trial))
            left_out = {name: torch.zeros(shape, dtype=getattr(torch, dtype))
                        for name, (dtype, shape) in header.left_out.items()}
            restore(header, {**tensors, **left_out}, strategy)
    except Exception as error:  # of a plugin, whose code may have changed since
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StoreError(f"the saved model of {trial.method.name} does not fit the present code ({reason}); run the "
                         "trial again") from error
    return strategy.requires_grad_(False).eval()


def stand_in_recipe(header: ModelHeader, trial: Trial) -> Recipe:
    """Return a trial's recipe in iterations: of the few stand-ins an epoch might be too short for the phases."""
    return trial.trained_by.model_copy(update={"epochs": None, "iterations": max(header.steps, 1)})


def stand_in(header: ModelHeader) -> Stream:
    """Return a stream like the trial's, with noise in the place of its samples: structure, and nothing to learn."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, header.sample_dtype)

    def noise(outputs: list[int], task: int) -> Samples:
        y = torch.tensor(outputs).repeat(STAND_INS)
        shape = (len(y), *header.sample_shape)
        if header.sample_dtype == "float32":
            x = torch.rand(shape, generator=generator)
        else:
            x = torch.randint(256 if dtype == torch.uint8 else 2, shape, generator=generator, dtype=dtype)
        return Samples(x, y, torch.full_like(y, task))

    tasks = []
    for index, (classes, taught) in enumerate(zip(header.classes, header.taught, strict=True)):
        met = () if taught == classes else tuple(taught)
        tasks.append(StreamTask(tuple(classes), noise(taught, index), noise(classes, index), met=met))
    return Stream(tuple(tasks), header.outputs, tuple(header.input_shape), header.prepare, "", (), hidden=header.hidden)
