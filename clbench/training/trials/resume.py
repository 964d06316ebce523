"""Trials that go on after the last task that was learned before their process was killed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from clbench.core import seeds
from clbench.core.device import out_of_memory
from clbench.data.stream import Stream
from clbench.results.records import Costs, Provenance, Timings
from clbench.strategy.base import Strategy
from clbench.training.stacking import Engine, optimizer_state
from clbench.training.trials import checkpoint
from clbench.training.trials.checkpoint import CheckpointHeader
from clbench.training.trials.costs import Footprint
from clbench.training.trials.state import TrialState, activate, task_of


class Checkpoints:
    """The checkpoints of trials that run together.

    Args:
        folder: where they are kept, a folder for each trial by its key.
        origin: where and with what the trials run.
    """

    def __init__(self, folder: Path, origin: Provenance) -> None:
        """Begin to count the time."""
        self.folder = folder
        self.origin = origin
        self.since = time.monotonic()

    def save(self, members: Sequence[TrialState], engine: Engine | None) -> None:
        """Write a checkpoint of each member, if so much work is at stake; `engine` took their last step.

        A disk that is full stops no training; the record notes it.
        """
        if time.monotonic() - self.since < checkpoint.SECONDS:
            return
        keep = engine is not None and members[0].trial.recipe.optimizer_state == "keep"
        for position, member in enumerate(members):
            state = optimizer_state(engine, position, len(members)) if engine is not None and keep else {}
            try:
                checkpoint.write(checkpoint.path_of(self.folder, member.trial.key), self._facts(member),
                                 member.strategy, state)
            except OSError as error:
                note = f"no checkpoint could be written: {error.strerror or error}"
                member.notes += [] if note in member.notes else [note]
        self.since = time.monotonic()

    def restore(self, member: TrialState) -> None:
        """Take a new member to where its checkpoint was made; nothing happens where there is none.

        Raises:
            Unresumable: that cannot be done; the member is then spoilt.
        """
        code = checkpoint.code_of(member.strategy)  # now: by the first save the files may be others than were imported
        path = checkpoint.path_of(self.folder, member.trial.key)
        facts = checkpoint.read_header(path)
        if facts is None:
            return
        checkpoint.check(facts, member.trial.key, code, self.origin)
        tasks = len(member.stream.tasks)
        if not 0 < facts.learned < tasks or len(facts.R) != facts.learned + 1 or any(len(r) != tasks for r in facts.R):
            raise checkpoint.Unresumable("the checkpoint's R is not that of its tasks")
        member.optimizer_state = take_up(path, facts, member.strategy, member.stream, member.trial.seed)
        costs, timings = facts.costs, facts.timings
        member.matrix, member.inference = list(facts.R), list(facts.task_inference)
        member.trainable, member.steps = list(costs.trainable), list(costs.steps)
        member.footprints = [Footprint(*of) for of in zip(costs.parameters, costs.bytes, costs.replay_samples,
                                                          strict=True)]
        member.train, member.consolidate = list(timings.train), list(timings.consolidate)
        member.evaluate, member.notes, member.started = list(timings.evaluate), list(facts.notes), facts.started

    def _facts(self, member: TrialState) -> CheckpointHeader:
        """Return all that the checkpoint holds of a member but what is its strategy's."""
        costs = Costs(trainable=member.trainable, steps=member.steps,
                      parameters=[f.parameters for f in member.footprints], bytes=[f.bytes for f in member.footprints],
                      replay_samples=[f.replay_samples for f in member.footprints])
        return CheckpointHeader(key=member.trial.key, code=checkpoint.code_of(member.strategy),
                     versions=self.origin.versions, device=self.origin.device, threads=self.origin.threads,
                     started=member.started or self.origin.started, learned=member.learned, R=member.matrix,
                     task_inference=member.inference, costs=costs,
                     timings=Timings(train=member.train, consolidate=member.consolidate, evaluate=member.evaluate),
                     notes=member.notes)


def take_up(path: Path, facts: CheckpointHeader, strategy: Strategy, stream: Stream, seed: int) -> dict[str, Tensor]:
    """Take a new strategy to where a checkpoint was made, and return the optimiser's moments.

    Raises:
        Unresumable: that cannot be done; the strategy is then spoilt.
    """
    if facts.problem:
        raise checkpoint.Unresumable(facts.problem)
    try:
        lead(strategy, stream, seed, facts.learned)
    except Exception as error:  # of a plugin, which may not expect to be led without training
        if out_of_memory(error):
            raise
        raise checkpoint.Unresumable(f"{type(error).__name__} when led without training: {error}") from None
    return checkpoint.load(path, facts, strategy)


def lead(strategy: Strategy, stream: Stream, seed: int, learned: int) -> None:
    """Let a new strategy take on the structure that it has after so many tasks, without training."""
    for index in range(learned):
        activate(strategy, stream, index)
        task = task_of(stream, index)
        with seeds.scope(seed, "strategy", index):
            strategy.before_task(task)
        with seeds.scope(seed, "training", index):
            for phase in range(strategy.phases(task)):
                strategy.before_phase(task, phase)
