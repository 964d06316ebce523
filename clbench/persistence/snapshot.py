"""Snapshots of replicas: one safetensors file with tensors and, as JSON in its metadata, a header.

- A training snapshot has the state from which training continues. It is the checkpoint of an unfinished trial, or the
  state of a finished one (`--keep state`).
- A model snapshot has the tensors that predictions need (`--keep models`). If the method predicts by its network alone
  (such as naive, ewc and er), this is the network. Else it is the strategy without tensors that only training needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.device import out_of_memory
from clbench.core.errors import StoreError, typed_message
from clbench.core.objective import CAUSAL_LM, CLASSIFICATION, REGRESSION
from clbench.core.scenario import names_by_output
from clbench.data.prepare import Prepare
from clbench.data.raw import NO_SCALE
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask, stored_inputs
from clbench.experiment.recipe import Recipe
from clbench.models.scoring import IGNORED
from clbench.persistence.strategy_state import SnapshotError, StrategyState, capture, grow, load
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import evaluating
from clbench.training.costs import role
from clbench.training.evaluation import batch_size, candidate_outputs
from clbench.training.replica import Replica, TrialResults

Kind = Literal["training", "strategy", "network"]  # the last two are model snapshots
OPTIMIZER, GENERATOR = "/optimizer/", "/generator"  # prefixes of the names of tensors that are not the strategy's
TO_LEARN = frozenset(("replay", "counters", "importance", "old network", "class statistics", "subspaces"))  # roles
NOISE_SAMPLES = 4  # of each class, in place of samples that are not available
NOISE_BELOW = {"uint8": 256, "float32": 1, "int32": 2}  # their values are uniform from 0 to this number, by dtype


class StreamOutline(BaseModel):
    """The inputs and outputs of a model, and the classes of the tasks that it has learned."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sample_shape: list[int]  # of a raw sample
    sample_dtype: Literal["uint8", "float32", "int32"]
    input_shape: list[int]  # of a prepared one
    prepare: Prepare
    outputs: int
    class_names: list[str]  # of each output; several names if the output is another class in each task
    classes: list[list[int]]  # of each task, as outputs
    taught: list[list[int]]  # of the training samples of each task, as outputs
    offered: list[list[bool]]  # by task and output: whether the output competes in predictions
    hidden: bool  # whether task boundaries were hidden
    batch: int  # samples that the trial predicted at once
    objective: str = ""  # empty in older files
    target: tuple[float, float] = NO_SCALE  # mean and deviation of a standardized target


class Header(BaseModel):
    """The contents of a snapshot except its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[2] = 2
    kind: Kind
    learned: int  # tasks
    steps: int  # optimizer steps of its longest task
    outline: StreamOutline
    state: StrategyState
    problem: str  # why the snapshot has no state; empty if it has one
    left_out: dict[str, tuple[str, list[int]]]  # dtype and shape of tensors that only training needs
    progress: TrialResults | None  # only in training snapshots, like `conditions`
    conditions: dict[str, str]  # values that must not change for a trial to resume, by name

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with a budget in iterations, because an epoch of the few noise samples may be too short."""
        return recipe.model_copy(update={"epochs": None, "iterations": max(self.steps, 1)})


class Snapshot(NamedTuple):
    """The contents of a snapshot file."""

    header: Header
    tensors: dict[str, Tensor]  # of the strategy
    optimizer: dict[str, Tensor]  # its state, as `<parameter>/<field>`
    generator: Tensor | None


def write(path: Path, replica: Replica, learned: int, kind: Kind = "training",
          conditions: Mapping[str, str] | None = None, optimizer: Mapping[str, Tensor] | None = None) -> str:
    """Write a snapshot of a replica that has learned `learned` tasks, replacing an older one.

    If the strategy cannot be saved, the snapshot has the reason instead of a state, and the reason is returned; else
    the result is empty. `conditions` and `optimizer` are for training snapshots.

    Raises:
        OSError: the file cannot be written.
    """
    strategy, problem, left_out = replica.strategy, "", {}
    if kind == "network":
        strategy = Strategy(strategy.model, strategy.stream_info)
    try:
        state, tensors = capture(strategy)
    except SnapshotError as error:
        state, tensors, problem = StrategyState(), {}, str(error)
    if kind == "strategy" and not problem:
        for name in sorted(training_state(strategy, replica.stream)):
            tensor = tensors.pop(name)
            left_out[name] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
    if kind == "training" and not problem:
        tensors.update({f"{OPTIMIZER}{name}": tensor for name, tensor in (optimizer or {}).items()})
        tensors[GENERATOR] = strategy.stream_info.generator.get_state()
    header = Header(kind=kind, learned=learned, steps=max(replica.costs.steps, default=0), outline=outline_of(replica),
                    state=state, problem=problem, left_out=left_out, conditions=dict(conditions or {}),
                    progress=replica if kind == "training" else None)
    save_tensors(path, tensors, {"format": "pt", "clbench": header.model_dump_json()})
    return problem


def training_state(strategy: Strategy, stream: Stream) -> set[str]:
    """Return the names of tensors that only training needs, by their roles; none if predictions change without them."""
    state = strategy.state_dict()
    names = {name for name, tensor in state.items() if tensor.numel() and role(strategy, name) in TO_LEARN}
    copies = {name: state[name].clone() for name in names}
    with torch.no_grad():
        expected = first_logits(strategy, stream)
        for name in names:
            state[name].zero_()
        try:
            unchanged = torch.equal(first_logits(strategy, stream), expected)
        except Exception:  # the method predicts with these tensors
            unchanged = False
        for name, values in copies.items():
            state[name].copy_(values)
    return names if unchanged else set()


def first_logits(strategy: Strategy, stream: Stream) -> Tensor:
    """Return the concatenated logits of the first test samples of each task."""
    logits = []
    with evaluating(strategy):
        for index in range(len(stream.tested_tasks)):
            inputs = next(stream.tests.batches(NOISE_SAMPLES, index))[0]
            logits.append(strategy.predict(inputs, index if strategy.stream_info.task_given else None).logits.flatten())
    return torch.cat(logits)


def read(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        SnapshotError: the file is damaged or has another format.
    """
    try:
        with safe_open(path, "pt") as file:
            header = Header.model_validate_json((file.metadata() or {}).get("clbench", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except ValidationError:
        raise SnapshotError("the snapshot cannot be read: another version of clbench wrote it in another "
                            "format") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot cannot be read ({type(error).__name__})") from None
    generator = tensors.pop(GENERATOR, None)
    optimizer = {name.removeprefix(OPTIMIZER): tensors.pop(name) for name in [*tensors] if name.startswith(OPTIMIZER)}
    for name, (dtype, shape) in header.left_out.items():
        tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    return Snapshot(header, tensors, optimizer, generator)


def read_saved(path: Path, keep: Literal["models", "state"]) -> Snapshot:
    """Return a snapshot that `--keep` has saved of a finished trial.

    Raises:
        StoreError: the file does not exist, cannot be read, or has no state; the error then says why.
    """
    advice = f"run the experiment again with --keep {keep}"
    if not path.is_file():
        raise StoreError(f"{path} does not exist: {advice}")
    try:
        snapshot = read(path)
    except SnapshotError as error:
        raise StoreError(f"{path}: {error}; remove it and {advice}") from None
    if snapshot.header.problem:
        raise StoreError(f"{path} is empty, because the method cannot be saved: {snapshot.header.problem}")
    return snapshot


def restore(snapshot: Snapshot, replica: Replica, recipe: Recipe, original: Replica | None = None) -> None:
    """Restore a snapshot into a new replica's strategy: first the structure after the learned tasks, then the state.

    If the replica has more tasks and outputs than the saved trial, `original` is another new replica of the old size.

    Raises:
        SnapshotError: the snapshot cannot be restored; the strategy is then unusable.
    """
    header, state, tensors = snapshot.header, snapshot.header.state, snapshot.tensors
    if header.problem:
        raise SnapshotError(header.problem)
    try:
        replica.retrace(header.learned, recipe)
        if original is not None:
            original.retrace(header.learned, recipe)
            state, tensors = grow(state, tensors, original.strategy, replica.strategy)
        load(state, tensors, replica.strategy)
        if snapshot.generator is not None:
            replica.strategy.stream_info.generator.set_state(snapshot.generator)
    except Exception as error:  # a plugin may need training first, or the state does not fit
        if isinstance(error, SnapshotError) or out_of_memory(error):
            raise
        raise SnapshotError(f"the saved state does not fit: {typed_message(error, 200)}") from error


def outline_of(replica: Replica) -> StreamOutline:
    """Return the outline of a replica's stream and model."""
    stream = replica.stream
    raw = stored_inputs(stream.tasks[0].test)
    offered = candidate_outputs(stream, replica.strategy.stream_info.scenario, len(stream.tasks))
    return StreamOutline(
        sample_shape=list(raw.shape[1:]),
        sample_dtype="uint8" if raw.dtype == torch.uint8 else "int32" if stream.is_text else "float32",
        input_shape=list(stream.input_shape), prepare=stream.prepare, outputs=stream.classes,
        class_names=names_of(stream), classes=[list(task.classes) for task in stream.tasks],
        taught=[list(task.train_classes) for task in stream.tasks],
        offered=offered.tolist(), hidden=stream.hidden, batch=batch_size(stream, stream.tests.y.device),
        objective=stream.objective, target=stream.target)


def names_of(stream: Stream) -> list[str]:
    """Return a name for each output: the names of its classes, which may differ between tasks, or else its number."""
    names = names_by_output((task.classes, task.class_names) for task in stream.tasks)
    return [" / ".join(names.get(output, [str(output)])) for output in range(stream.classes)]


def make_noise_stream(outline: StreamOutline) -> Stream:
    """Return a stream with an outline and with noise instead of samples, to rebuild the structure of a strategy."""
    generator = torch.Generator().manual_seed(0)
    objective = outline.objective or (CLASSIFICATION if outline.outputs else CAUSAL_LM).name

    def noise(outputs: list[int], task: int) -> Samples:
        shape = (NOISE_SAMPLES * max(len(outputs), 1), *outline.sample_shape)
        x = NOISE_BELOW[outline.sample_dtype] * torch.rand(shape, generator=generator)
        x = x.to(getattr(torch, outline.sample_dtype))
        if objective == CAUSAL_LM.name:  # all tokens but the first are scored
            y = x.clone()
            y[:, 0] = IGNORED
        else:
            y = torch.tensor(outputs * NOISE_SAMPLES, dtype=torch.float32 if objective == REGRESSION.name else None)
        return Samples(x, y, torch.full((len(x),), task))

    tasks = []
    for index, (classes, taught) in enumerate(zip(outline.classes, outline.taught, strict=True)):
        tasks.append(StreamTask(tuple(classes), noise(taught, index), noise(classes, index),
                                train_classes=tuple(taught)))
    return Stream(tuple(tasks), outline.outputs, tuple(outline.input_shape), outline.prepare, "", (),
                  hidden=outline.hidden, objective=objective, target=outline.target)
