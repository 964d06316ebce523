"""One trial in progress."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from torch import Tensor

from clbench.data.stream import Stream
from clbench.experiment.trial import PlannedTrial, Progress, Trial
from clbench.results.items import ItemResults
from clbench.results.records import Costs, Failure, Timings
from clbench.strategy.base import Strategy
from clbench.training.anatomy import Anatomy
from clbench.training.curve import Watched
from clbench.training.lifecycle import Learner
from clbench.training.prediction_cache import PredictionCache
from clbench.training.trials.costs import Footprint


@dataclass
class TrialState:
    """One trial in progress: its strategy, and what a record will say of it, as far as that is known.

    `costs`, `timings`, `R`, `task_inference` and `last_losses` are those of the record and grow task by task.
    """

    planned: PlannedTrial
    strategy: Strategy
    stream: Stream
    notes: list[str]
    R: list[list[float]] = field(default_factory=list)
    task_inference: list[list[float]] = field(default_factory=list)
    last_losses: list[list[float]] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    timings: Timings = field(default_factory=Timings)
    failure: Failure | None = None
    started: datetime.datetime | None = None  # by an earlier process, where the trial goes on from a checkpoint
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)  # from a checkpoint
    watched: Watched | None = None  # where its accuracy while learning is asked for
    predictions: PredictionCache = field(default_factory=PredictionCache)
    anatomy: Anatomy = field(default_factory=Anatomy)
    items: ItemResults | None = None  # of the last row

    @property
    def trial(self) -> Trial:
        """Return the trial."""
        return self.planned.trial

    @property
    def learner(self) -> Learner:
        """Return the learner: strategy, stream and seed."""
        return Learner(self.strategy, self.stream, self.trial.seed)

    @property
    def learned(self) -> int:
        """Return how many tasks are learned and evaluated."""
        return max(len(self.R) - 1, 0)

    @property
    def progress(self) -> Progress:
        """Return how far the trial has come."""
        accuracy = sum(self.R[-1][:self.learned]) / self.learned if self.learned else None
        return Progress(self.trial.key, self.learned, len(self.stream.tasks), accuracy)

    def add_kept(self, kept: Footprint) -> None:
        """Add what is kept after one more task to the costs."""
        self.costs.parameters.append(kept.parameters)
        self.costs.bytes.append(kept.bytes)
        self.costs.replay_samples.append(kept.replay_samples)

    def add_note(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)
