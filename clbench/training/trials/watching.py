"""Trials that are evaluated while they learn (`clbench.training.curve`): what is said beforehand, and what is noted."""

from __future__ import annotations

from clbench.data.stream import Stream
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Trial
from clbench.strategy.base import Strategy
from clbench.training.curve import Watched, cost_in_words
from clbench.training.trials.costs import Clock
from clbench.training.trials.facts import steps_in_words
from clbench.training.trials.state import TrialState

OWN_LOOP = "trains by a loop of its own, so its accuracy while learning is known at the boundaries only"


def words(trial: Trial, label: str, stream: Stream, settings: ExecutionSettings) -> list[str]:
    """Return lines on how many steps a trial has, and on what evaluating meanwhile costs if that is asked for."""
    steps, every = steps_in_words(trial, label, stream), settings.evaluate_every
    cost = [] if every is None else [cost_in_words(trial.trained_by, stream, every, settings.evaluate_samples)]
    return [steps, *cost]


def watched(trial: Trial, strategy: Strategy, stream: Stream, settings: ExecutionSettings) -> Watched | None:
    """Return a strategy as it is to be evaluated while it learns, None if that is not asked for."""
    if settings.evaluate_every is None:
        return None
    return Watched.begin(strategy, stream, trial.trained_by, settings.evaluate_every, settings.evaluate_samples)


def note_looks(member: TrialState) -> Clock:
    """Note the time that looks at a task took while it was trained, and return it."""
    if member.watched is None:
        return Clock(0.0, 0.0)
    looked = member.watched.take_spent()
    member.timings.curve.append(looked.wall)
    member.timings.curve_cpu.append(looked.cpu)
    return looked


def look_after(member: TrialState, index: int) -> None:
    """Add to the curve what is known after consolidating a task, if there is one."""
    if member.watched is None:
        return
    member.watched.consolidated(index)
    looked = member.watched.take_spent()
    member.timings.curve[-1] += looked.wall
    member.timings.curve_cpu[-1] += looked.cpu
    if member.strategy.owns_loop:
        member.add_note(OWN_LOOP)
