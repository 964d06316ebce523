"""Callbacks that write snapshots: checkpoints of unfinished trials, models and states of finished ones (`--keep`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clbench.core import identity, seeds
from clbench.core.entry_points import package_of
from clbench.core.registry import Registry
from clbench.experiment.recipe import Recipe
from clbench.experiment.trial import Trial
from clbench.persistence.snapshot import read, restore, write
from clbench.persistence.strategy_state import SnapshotError
from clbench.results.provenance import CONFIGURATION
from clbench.results.records import Provenance
from clbench.results.store import MODEL, STATE
from clbench.strategy.base import Strategy, overrides
from clbench.training.building import build_model
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.replica import Replica, TrialResults
from clbench.training.steps import TrainStep, make_train_step

SECONDS = 5.0  # minimum between two checkpoints; a killed process loses its task, and at most this much before it
LIBRARIES = frozenset(("timm", "torchvision", "transformers"))  # model libraries, identified by their release


@dataclass(eq=False)
class CheckpointCallback(Callback):
    """Writes checkpoints of replicas between their tasks, and restores trials from checkpoints."""

    folder: Path  # has a folder for each trial, named by its key
    origin: Provenance
    decomposition: ErrorDecomposition
    since: float = field(default_factory=time.monotonic)  # time of the last checkpoint
    general: Mapping[str, str] = field(default_factory=dict)  # hashes of the files of general texts to score, by name

    def on_task(self, training: Training, task: int) -> None:
        """Write a checkpoint of each replica if the last one is old enough, but not after the last task.

        A full disk does not stop training; the record then has a note.
        """
        if task + 1 == len(training.replicas[0].stream.tasks) or time.monotonic() - self.since < SECONDS:
            return
        for member, replica in enumerate(training.replicas):
            replica.started = replica.started or self.origin.started
            try:
                write(self.folder / replica.trial.key / STATE, replica, replica.learned, "training",
                      conditions_of(replica, self.origin), optimizer_state(training, member))
            except OSError as error:
                replica.add_note(f"no checkpoint could be written: {error.strerror or error}")
        self.since = time.monotonic()

    def restore(self, replica: Replica) -> None:
        """Restore a new trial from its checkpoint, if there is one.

        Raises:
            SnapshotError: the checkpoint cannot be used; the replica is then unusable.
        """
        for package in packages_of(replica.strategy) - LIBRARIES:
            identity.note(package)  # now, because the files may change between import and the first checkpoint
        path = self.folder / replica.trial.key / STATE
        if not path.is_file():
            return
        snapshot = read(path)
        header, progress = snapshot.header, snapshot.header.progress
        for name, value in conditions_of(replica, self.origin).items():
            if header.conditions.get(name) != value:
                raise SnapshotError(f"the {name} changed ({header.conditions.get(name)}, now {value})")
        if progress is None or [len(row) for row in progress.R] != [len(replica.stream.tasks)] * (header.learned + 1):
            raise SnapshotError("the checkpoint's R is not that of its tasks")
        if progress.general_files != self.general:
            raise SnapshotError("it does not have the scores of general texts that are asked for (--general)")
        requested_curve, saved_curve = replica.curve, progress.curve
        if requested_curve is not None and (saved_curve is None or (saved_curve.every, saved_curve.samples)
                                            != (requested_curve.every, requested_curve.samples)):
            raise SnapshotError("it does not have the accuracy while learning that is asked for")
        for result in fields(TrialResults):
            setattr(replica, result.name, getattr(progress, result.name))
        replica.curve = None if requested_curve is None else saved_curve
        if not self.decomposition.covers(replica, header.learned):
            raise SnapshotError("it lacks what this run asks for (--anatomy, --probe) of the tasks before")
        restore(snapshot, replica, replica.trial.trained_by)
        replica.optimizer_state = snapshot.optimizer


@dataclass(eq=False)
class SaveCallback(Callback):
    """Saves models, and states if requested, when all tasks are learned."""

    folder: Path  # has a folder for each trial, named by its key
    states: bool  # whether to save states too
    origin: Provenance
    registry: Registry

    def on_end(self, training: Training) -> None:
        """Write the files. If the disk is full, the record is still written and has a note."""
        for member, replica in enumerate(training.replicas):
            folder, tasks = self.folder / replica.trial.key, len(replica.stream.tasks)
            plain = is_plain_network(replica.strategy, replica.trial, self.registry)
            try:
                problem = write(folder / MODEL, replica, tasks, "network" if plain else "strategy")
                if self.states:  # a trial that continues another counts all tasks
                    problem = write(folder / STATE, replica, tasks, "training", conditions_of(replica, self.origin),
                                    optimizer_state(training, member))
                if problem:
                    replica.add_note(f"--keep could not save the method: {problem}")
            except OSError as error:
                replica.add_note(f"no model could be kept: {error.strerror or error}")


def conditions_of(replica: Replica, origin: Provenance) -> dict[str, str]:
    """Return, by name, the values that must be the same when a trial resumes, so that its results do not change."""
    configuration = origin.code.get(CONFIGURATION)
    return {"trial": replica.trial.key, "code": code_of(replica.strategy), "data": replica.stream.fingerprint,
            "libraries": ", ".join(f"{name} {release}" for name, release in sorted(origin.versions.items())),
            "device": origin.device, "number of threads": str(origin.threads),
            **({} if configuration is None else {"configuration of the model": configuration.hash})}


def is_plain_network(strategy: Strategy, trial: Trial, registry: Registry) -> bool:
    """Return whether a strategy predicts by its network alone, which still has the structure of the trial's model."""
    if overrides(strategy, "forward") or overrides(strategy, "predict"):
        return False
    shape, classes = strategy.stream_info.input_shape, strategy.stream_info.classes
    try:
        with torch.device("meta"):
            new_model, _ = build_model(trial.model, None, shape, classes, registry)
    except Exception:  # the code of a model may need values, which meta tensors do not have
        with seeds.scope(trial.seed, "init"):
            new_model, _ = build_model(trial.model, None, shape, classes, registry)
    return layout(strategy.model) == layout(new_model)


def layout(network: nn.Module) -> list[Any]:
    """Return the structure of a network: its modules, whether they have hooks, and the shapes of its tensors."""
    return [[(name, type(module), bool(module._forward_hooks or module._forward_pre_hooks))
             for name, module in network.named_modules()],
            [(name, tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()]]


def optimizer_state(training: Training, member: int) -> dict[str, Tensor]:
    """Return the optimizer state of one replica, by `<parameter>/<field>`; empty if the next task does not need it."""
    tensors: dict[str, Tensor] = {}
    train_step, members = training.train_step, len(training.replicas)
    if train_step is None or training.recipe.optimizer_state != "keep":
        return tensors
    parameters = dict(training.replicas[0].strategy.named_parameters())
    for name, (sources, state) in train_step.states.items():
        if parameters.get(name) is not sources[0]:
            continue  # the strategy has replaced it, so the next task does not take over its state
        for key, value in state.items():
            if isinstance(value, Tensor):
                stacked = members > 1 and value.dim() and len(value) == members
                tensors[f"{name}/{key}"] = value[member] if stacked else value
    return tensors


def restore_optimizer_state(strategies: Sequence[Strategy], recipe: Recipe,
                            states: Sequence[Mapping[str, Tensor]]) -> TrainStep | None:
    """Return a training step whose optimizer has these states, one for each member; None if they are empty."""
    if not states[0]:
        return None
    names = {key.rpartition("/")[0] for key in states[0]}
    flags = {}
    for strategy in strategies:  # parameters that were trained last may be frozen by now
        for name, parameter in strategy.named_parameters():
            flags[parameter] = parameter.requires_grad
            parameter.requires_grad_(name in names)
    train_step = make_train_step(strategies, recipe, None)
    for key in states[0]:
        name, _, entry = key.rpartition("/")
        parameter = train_step.trained[name]
        values = [state[key].to(parameter.device) for state in states]
        value = torch.stack(values) if len(values) > 1 and entry != "step" else values[0]  # Adam's steps are equal
        if value.shape == parameter.shape:  # a fused optimizer reads both in the order in which memory stores them
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        train_step.optimizer.state[parameter][entry] = value
    train_step.close()
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return train_step


def packages_of(strategy: Strategy) -> set[str]:
    """Return the packages whose code a strategy uses: its own, its model's, and clbench.

    clbench counts here, although it alone makes no record stale, because one trial must not mix two versions of it.
    """
    packages = {"clbench"}
    for module in strategy.modules():
        packages.update(package_of(cls) for cls in type(module).__mro__)
    return packages - {"torch", "builtins"}


def code_of(strategy: Strategy) -> str:
    """Return an identifier of the code that a strategy uses, as this process noted it.

    Model libraries count by their version, because reading all of transformers takes 13 s.
    """
    packages = packages_of(strategy)
    releases = [f"{name} {version(name)}" for name in sorted(packages & LIBRARIES)]
    return " ".join([identity.hash_running(*packages - LIBRARIES), *releases])
