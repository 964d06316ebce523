"""A trial in the making."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from torch import Tensor

from clbench.core.scenario import scenario_rules
from clbench.data.stream import Stream
from clbench.experiment.trial import PlannedTrial, Trial
from clbench.results.records import Costs, Failure
from clbench.strategy.base import Strategy, Task
from clbench.training.trials.costs import Footprint, PeakMemory


@dataclass
class TrialState:
    """One trial in the making: its strategy, and what has been seen of it so far, whatever becomes of it."""

    planned: PlannedTrial
    strategy: Strategy
    stream: Stream
    notes: list[str]
    matrix: list[list[float]] = field(default_factory=list)
    inference: list[list[float]] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    consolidate: list[float] = field(default_factory=list)
    evaluate: list[float] = field(default_factory=list)
    failure: Failure | None = None
    started: datetime.datetime | None = None  # by an earlier process, of a trial that goes on from a checkpoint
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)  # of the optimiser, from a checkpoint

    @property
    def trial(self) -> Trial:
        """Return what is being run."""
        return self.planned.trial

    @property
    def learned(self) -> int:
        """Return how many tasks are learned and evaluated."""
        return max(len(self.matrix) - 1, 0)

    def costs(self, memory: PeakMemory) -> Costs:
        """Return what has been spent and kept so far."""
        return Costs(trainable=self.trainable, steps=self.steps, parameters=[f.parameters for f in self.footprints],
                     bytes=[f.bytes for f in self.footprints],
                     replay_samples=[f.replay_samples for f in self.footprints], peak_host_bytes=memory.host(),
                     peak_device_bytes=memory.accelerator())


def task_of(stream: Stream, index: int) -> Task:
    """Return a task of a stream as a strategy sees it."""
    known = stream.tasks[index]
    return Task(index, known.classes, known.train)


def activate(strategy: Strategy, stream: Stream, index: int) -> None:
    """Switch on the outputs that take part in the loss from task `index` on; later tasks stay unknown."""
    tasks, outputs = scenario_rules(strategy.world.scenario).in_loss([t.classes for t in stream.tasks], index)
    strategy.active[tasks.start:tasks.stop, outputs] = True
