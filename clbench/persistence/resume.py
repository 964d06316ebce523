"""Trials that go on after the last task that they learned before their process was killed."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from clbench.core import identity
from clbench.core.device import out_of_memory
from clbench.experiment.spec import Recipe
from clbench.persistence import checkpoint
from clbench.persistence.checkpoint import CheckpointHeader
from clbench.persistence.optimizer_state import optimizer_state
from clbench.results.records import Provenance
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.replica import Replica


class CheckpointCallback(Callback):
    """Writes checkpoints of trials that run together after their tasks, and restores trials from them.

    Args:
        folder: where they are, a folder for each trial by its key.
        origin: where and with what the trials run.
        decomposition: what is to be counted of their errors.
    """

    def __init__(self, folder: Path, origin: Provenance, decomposition: ErrorDecomposition | None = None) -> None:
        """Start measuring the time since the last checkpoint."""
        self.folder = folder
        self.origin = origin
        self.decomposition = decomposition or ErrorDecomposition()
        self.since = time.monotonic()

    def on_task(self, training: Training, task: int) -> None:
        """Write a checkpoint of each replica if the last one is old enough, but not after the last task.

        A disk that is full stops no training; the record notes it.
        """
        replicas = training.replicas
        if task + 1 == len(replicas[0].stream.tasks) or time.monotonic() - self.since < checkpoint.SECONDS:
            return
        for replica, moments in zip(replicas, moments_of(training), strict=True):
            try:
                checkpoint.write(checkpoint.path_of(self.folder, replica.trial.key), self.header(replica),
                                 replica.strategy, moments)
            except OSError as error:
                replica.add_note(f"no checkpoint could be written: {error.strerror or error}")
        self.since = time.monotonic()

    def restore(self, replica: Replica) -> None:
        """Restore a new trial from its checkpoint, if there is one.

        Raises:
            Unresumable: that cannot be done; the replica is then unusable.
        """
        for package in checkpoint.packages_of(replica.strategy) - checkpoint.LIBRARIES:
            identity.note(package)  # now: by the first save the files may be others than were imported
        path = checkpoint.path_of(self.folder, replica.trial.key)
        header = checkpoint.read_header(path)
        if header is None:
            return
        checkpoint.check(header, replica.trial.key, checkpoint.code_of(replica.strategy), replica.stream.fingerprint,
                         self.origin)
        tasks = len(replica.stream.tasks)
        rows = [len(row) for row in header.R]
        if not 0 < header.learned < tasks or rows != [tasks] * (header.learned + 1):
            raise checkpoint.Unresumable("the checkpoint's R is not that of its tasks")
        if replica.curve is not None:
            wanted, curve = replica.curve, header.curve
            if curve is None or (curve.every, curve.samples) != (wanted.every, wanted.samples):
                raise checkpoint.Unresumable("it does not have the accuracy while learning that is asked for")
        replica.errors, replica.probe = list(header.errors), header.probe
        if not self.decomposition.covers(replica, header.learned):
            raise checkpoint.Unresumable("it lacks what this run asks for (--anatomy, --probe) of the tasks before")
        replica.optimizer_state = take_up(path, header, replica, replica.trial.trained_by)
        replica.costs, replica.timings = header.costs, header.timings
        replica.R, replica.task_inference = list(header.R), list(header.task_inference)
        replica.notes, replica.started = list(header.notes), header.started
        replica.last_losses = list(header.last_losses)
        if replica.curve is not None and header.curve is not None:
            replica.curve = header.curve

    def header(self, replica: Replica) -> CheckpointHeader:
        """Return the header of a trial's checkpoint, without what the strategy adds to it."""
        return CheckpointHeader(
            key=replica.trial.key, code=checkpoint.code_of(replica.strategy),
            data=replica.stream.fingerprint, versions=self.origin.versions,
            device=self.origin.device, threads=self.origin.threads, started=replica.started or self.origin.started,
            learned=replica.learned, R=replica.R, task_inference=replica.task_inference, costs=replica.costs,
            timings=replica.timings, notes=replica.notes, last_losses=replica.last_losses,
            curve=replica.curve, errors=replica.errors, probe=replica.probe)


def moments_of(training: Training) -> list[dict[str, Tensor]]:
    """Return the state of the optimizer of each replica, where the next task goes on with it; else nothing."""
    engine, count = training.engine, len(training.replicas)
    keep = engine is not None and training.recipe.optimizer_state == "keep"
    return [optimizer_state(engine, position, count) if engine is not None and keep else {}
            for position in range(count)]


def take_up(path: Path, header: CheckpointHeader, replica: Replica, recipe: Recipe) -> dict[str, Tensor]:
    """Restore a new strategy from a checkpoint of a trial by a recipe and return the state of the optimiser.

    Raises:
        Unresumable: that cannot be done; the strategy is then unusable.
    """
    if header.problem:
        raise checkpoint.Unresumable(header.problem)
    try:
        replica.retrace(header.learned, recipe)
    except Exception as error:  # of a plugin, which may not expect to be led without training
        if out_of_memory(error):
            raise
        raise checkpoint.Unresumable(f"{type(error).__name__} when led without training: {error}") from None
    return checkpoint.load(path, header, replica.strategy)
