"""Trials that go on after the last task that they learned before their process was killed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from clbench.core import identity
from clbench.core.device import out_of_memory
from clbench.experiment.spec import Recipe
from clbench.results.records import Provenance
from clbench.training.lifecycle import Learner, retrace
from clbench.training.stacking import Engine
from clbench.training.trials import checkpoint
from clbench.training.trials.checkpoint import CheckpointHeader
from clbench.training.trials.optimizer_state import optimizer_state
from clbench.training.trials.state import TrialState


class Checkpoints:
    """The checkpoints of trials that run together.

    Args:
        folder: where they are kept, a folder for each trial by its key.
        origin: where and with what the trials run.
    """

    def __init__(self, folder: Path, origin: Provenance) -> None:
        """Start measuring the time since the last checkpoint."""
        self.folder = folder
        self.origin = origin
        self.since = time.monotonic()

    def save(self, members: Sequence[TrialState], engine: Engine | None) -> None:
        """Write a checkpoint of each member if the last one is old enough; `engine` took their last step.

        A disk that is full stops no training; the record notes it.
        """
        if time.monotonic() - self.since < checkpoint.SECONDS:
            return
        for member, moments in zip(members, moments_of(members, engine), strict=True):
            try:
                checkpoint.write(checkpoint.path_of(self.folder, member.trial.key), self.header(member),
                                 member.strategy, moments)
            except OSError as error:
                member.add_note(f"no checkpoint could be written: {error.strerror or error}")
        self.since = time.monotonic()

    def restore(self, member: TrialState) -> None:
        """Restore a new trial from its checkpoint, if there is one.

        Raises:
            Unresumable: that cannot be done; the member is then spoilt.
        """
        for package in checkpoint.packages_of(member.strategy) - checkpoint.LIBRARIES:
            identity.note(package)  # now: by the first save the files may be others than were imported
        path = checkpoint.path_of(self.folder, member.trial.key)
        header = checkpoint.read_header(path)
        if header is None:
            return
        checkpoint.check(header, member.trial.key, checkpoint.code_of(member.strategy), member.stream.fingerprint,
                         self.origin)
        tasks = len(member.stream.tasks)
        rows = [len(row) for row in header.R]
        if not 0 < header.learned < tasks or rows != [tasks] * (header.learned + 1):
            raise checkpoint.Unresumable("the checkpoint's R is not that of its tasks")
        if member.watched is not None:
            wanted, curve = member.watched.curve, header.curve
            if curve is None or (curve.every, curve.samples) != (wanted.every, wanted.samples):
                raise checkpoint.Unresumable("it does not have the accuracy while learning that is asked for")
        member.anatomy.rows, member.anatomy.probe = list(header.errors), header.probe
        if not member.anatomy.covers(member.stream, member.trial.scenario, header.learned):
            raise checkpoint.Unresumable("it lacks what this run asks for (--anatomy, --probe) of the tasks before")
        member.optimizer_state = take_up(path, header, member.learner, member.trial.trained_by)
        member.costs, member.timings = header.costs, header.timings
        member.R, member.task_inference = list(header.R), list(header.task_inference)
        member.notes, member.started = list(header.notes), header.started
        member.last_losses = list(header.last_losses)
        if member.watched is not None and header.curve is not None:
            member.watched.curve = header.curve

    def header(self, member: TrialState) -> CheckpointHeader:
        """Return the header of a trial's checkpoint, without what the strategy adds to it."""
        return CheckpointHeader(
            key=member.trial.key, code=checkpoint.code_of(member.strategy),
            data=member.stream.fingerprint, versions=self.origin.versions,
            device=self.origin.device, threads=self.origin.threads, started=member.started or self.origin.started,
            learned=member.learned, R=member.R, task_inference=member.task_inference, costs=member.costs,
            timings=member.timings, notes=member.notes, last_losses=member.last_losses,
            curve=member.watched and member.watched.curve, errors=member.anatomy.rows, probe=member.anatomy.probe)


def moments_of(members: Sequence[TrialState], engine: Engine | None) -> list[dict[str, Tensor]]:
    """Return the state of the optimiser of each member, where the next task goes on with it; else nothing."""
    keep = members[0].stream.hidden or members[0].trial.trained_by.optimizer_state == "keep"
    return [optimizer_state(engine, position, len(members)) if engine is not None and keep else {}
            for position in range(len(members))]


def take_up(path: Path, header: CheckpointHeader, learner: Learner, recipe: Recipe) -> dict[str, Tensor]:
    """Restore a new strategy from a checkpoint of a trial by a recipe and return the state of the optimiser.

    Raises:
        Unresumable: that cannot be done; the strategy is then spoilt.
    """
    if header.problem:
        raise checkpoint.Unresumable(header.problem)
    try:
        retrace(learner, header.learned, recipe)
    except Exception as error:  # of a plugin, which may not expect to be led without training
        if out_of_memory(error):
            raise
        raise checkpoint.Unresumable(f"{type(error).__name__} when led without training: {error}") from None
    return checkpoint.load(path, header, learner.strategy)
