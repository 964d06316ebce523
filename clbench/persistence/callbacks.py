"""Callbacks that write snapshots: of trials that may be interrupted, and of finished ones (`--keep`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from clbench.core import identity
from clbench.core.entry_points import package_of
from clbench.core.registry import Registry
from clbench.experiment.execution_settings import Keep
from clbench.experiment.spec import Recipe
from clbench.persistence.model_file import write_model
from clbench.persistence.snapshot import TrainingHeader, read, resume, training_contents, write
from clbench.persistence.strategy_state import SnapshotError
from clbench.results.records import Provenance
from clbench.results.store import MODEL, STATE
from clbench.strategy.base import Strategy
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.replica import Replica
from clbench.training.steps import Engine, make_engine

SECONDS = 5.0  # of work that a killed process may lose: no checkpoint is written sooner after the last one
LIBRARIES = frozenset(("timm", "torchvision", "transformers"))  # of models, installed as releases
PROGRESS = ("R", "task_inference", "costs", "timings", "errors", "probe", "notes", "last_losses")  # header and replica


class CheckpointCallback(Callback):
    """Writes checkpoints of trials that run together after their tasks, and restores trials from them.

    Args:
        folder: where they are, a folder for each trial by its key.
        origin: where and with what the trials run.
        decomposition: what is to be counted of their errors.
    """

    def __init__(self, folder: Path, origin: Provenance, decomposition: ErrorDecomposition) -> None:
        """Start measuring the time since the last checkpoint."""
        self.folder = folder
        self.origin = origin
        self.decomposition = decomposition
        self.since = time.monotonic()

    def on_task(self, training: Training, task: int) -> None:
        """Write a checkpoint of each replica if the last one is old enough, but not after the last task.

        A full disk does not stop training; the record notes it.
        """
        if task + 1 == len(training.replicas[0].stream.tasks) or time.monotonic() - self.since < SECONDS:
            return
        for replica, moments in zip(training.replicas, optimizer_states(training), strict=True):
            try:
                write_training_state(self.folder / replica.trial.key / STATE, replica, replica.learned, moments,
                                     self.origin)
            except OSError as error:
                replica.add_note(f"no checkpoint could be written: {error.strerror or error}")
        self.since = time.monotonic()

    def restore(self, replica: Replica) -> None:
        """Restore a new trial from its checkpoint, if there is one.

        Raises:
            SnapshotError: that cannot be done; the replica is then unusable.
        """
        for package in packages_of(replica.strategy) - LIBRARIES:
            identity.note(package)  # now: by the first checkpoint the files may differ from those that were imported
        try:
            header, tensors = read(self.folder / replica.trial.key / STATE, TrainingHeader)
        except FileNotFoundError:
            return
        self._check(header, replica)
        for name in PROGRESS:
            setattr(replica, name, getattr(header, name))
        replica.started = header.started
        if replica.curve is not None:
            replica.curve = header.curve
        if not self.decomposition.covers(replica, header.learned):
            raise SnapshotError("it lacks what this run asks for (--anatomy, --probe) of the tasks before")
        replica.optimizer_state = resume(header, tensors, replica, replica.trial.trained_by)

    def _check(self, header: TrainingHeader, replica: Replica) -> None:
        """Raise a SnapshotError where a checkpoint is of another trial, or was made with other code or settings."""
        if header.key != replica.trial.key:
            raise SnapshotError("the checkpoint is another trial's")
        if (header.code, header.versions) != (code_of(replica.strategy), self.origin.versions):
            raise SnapshotError("the code has changed since")
        if header.data != replica.stream.fingerprint:
            raise SnapshotError("the data have changed since")
        if (header.device, header.threads) != (self.origin.device, self.origin.threads):
            raise SnapshotError(f"it had {header.threads} threads on {header.device}, now {self.origin.threads} on "
                                f"{self.origin.device}")
        tasks = len(replica.stream.tasks)
        if not 0 < header.learned < tasks or [len(row) for row in header.R] != [tasks] * (header.learned + 1):
            raise SnapshotError("the checkpoint's R is not that of its tasks")
        wanted, curve = replica.curve, header.curve
        if wanted is not None and (curve is None or (curve.every, curve.samples) != (wanted.every, wanted.samples)):
            raise SnapshotError("it does not have the accuracy while learning that is asked for")


class SaveCallback(Callback):
    """Saves models, and states where these are asked for, once all tasks are learned.

    Args:
        folder: has a folder for each trial by its key.
        states: whether to save states too.
        origin: where and with what the trials ran.
        registry: what is installed.
    """

    def __init__(self, folder: Path, states: bool, origin: Provenance, registry: Registry) -> None:
        self.folder = folder
        self.states = states
        self.origin = origin
        self.registry = registry

    @classmethod
    def wanted(cls, keep: Keep, folder: Path | None, origin: Provenance, registry: Registry) -> SaveCallback | None:
        """Return one where something is to be saved and there is a folder for it."""
        return None if keep == "nothing" or folder is None else cls(folder, keep == "state", origin, registry)

    def on_end(self, training: Training) -> None:
        """Write the files. A full disk costs no record, which notes it."""
        for replica, moments in zip(training.replicas, optimizer_states(training), strict=True):
            folder = self.folder / replica.trial.key
            try:
                write_model(folder / MODEL, replica, self.registry)
                if self.states:  # of a trial that continues another, all tasks
                    write_training_state(folder / STATE, replica, len(replica.stream.tasks), moments, self.origin)
            except OSError as error:
                replica.add_note(f"no model could be kept: {error.strerror or error}")


def write_training_state(path: Path, replica: Replica, learned: int, moments: Mapping[str, Tensor],
                         origin: Provenance) -> None:
    """Write a training snapshot of a replica that has learned so many tasks; OSError if it cannot be written."""
    progress = {name: getattr(replica, name) for name in PROGRESS}
    header = TrainingHeader(
        key=replica.trial.key, learned=learned, code=code_of(replica.strategy), data=replica.stream.fingerprint,
        versions=origin.versions, device=origin.device, threads=origin.threads,
        started=replica.started or origin.started, curve=replica.curve, **progress)
    write(path, header, lambda: training_contents(replica.strategy, moments))


def optimizer_states(training: Training) -> list[dict[str, Tensor]]:
    """Return the state of each replica's optimizer as tensors `<parameter>/<field>`.

    It is empty where the next task does not continue with it.
    """
    members = len(training.replicas)
    if training.engine is None or training.recipe.optimizer_state != "keep":
        return [{} for _ in range(members)]
    return [optimizer_state(training.engine, member, members) for member in range(members)]


def optimizer_state(engine: Engine, member: int, members: int) -> dict[str, Tensor]:
    """Return one member's part of an engine's optimizer state, as `<parameter>/<field>`."""
    tensors = {}
    for name, parameter in engine.trained.items():
        for field, value in engine.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                stacked = members > 1 and value.dim() and len(value) == members
                tensors[f"{name}/{field}"] = value[member] if stacked else value
    return tensors


def restore_optimizer_state(strategies: Sequence[Strategy], recipe: Recipe,
                            states: Sequence[Mapping[str, Tensor]]) -> Engine | None:
    """Return an engine whose optimizer has that state, one mapping per member; None where there is none."""
    if not states[0]:
        return None
    names = {key.rpartition("/")[0] for key in states[0]}
    flags = []
    for strategy in strategies:  # what was trained last may be frozen by now
        for name, parameter in strategy.named_parameters():
            flags.append((parameter, parameter.requires_grad))
            parameter.requires_grad_(name in names)
    engine = make_engine(strategies, recipe, None)
    positions = {name: position for position, name in enumerate(engine.trained)}
    whole = engine.optimizer.state_dict()
    for key in states[0]:
        name, _, field = key.rpartition("/")
        values = [state[key] for state in states]
        value = torch.stack(values) if len(values) > 1 and values[0].dim() else values[0]
        whole["state"].setdefault(positions[name], {})[field] = value
    engine.optimizer.load_state_dict(whole)
    engine.close()
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return engine


def packages_of(strategy: Strategy) -> set[str]:
    """Return the packages of all that a strategy is made of: its own, its model's, and clbench.

    clbench counts here, though no record is stale for it alone: a trial is not to be half an old clbench's.
    """
    packages = {"clbench"}
    for module in strategy.modules():
        packages.update(package_of(cls) for cls in type(module).__mro__)
    return packages - {"torch", "builtins"}


def code_of(strategy: Strategy) -> str:
    """Return the identity of the code of all that a strategy is made of, as this process noted it.

    Libraries of models count by their version: reading all of transformers takes 13 s.
    """
    packages = packages_of(strategy)
    releases = [f"{name} {version(name)}" for name in sorted(packages & LIBRARIES)]
    return " ".join([identity.running(*packages - LIBRARIES), *releases])
