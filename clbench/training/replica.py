"""Replica: one trial in training, with its strategy, its stream and its results so far."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.errors import DivergedError, PluginError
from clbench.core.scenario import scenario_rules
from clbench.core.torch_private import storage_id
from clbench.data.samples import UNSEEN, WriteCounts
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.experiment.trial import PlannedTrial, Progress, Trial
from clbench.results.curve import Curve
from clbench.results.item_scores import ItemScores
from clbench.results.items import ItemResults
from clbench.results.records import Answer, Costs, ErrorCounts, Failure, Probe, Timings
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import PhaseSpec
from clbench.training.budget import phases_of, shares_of, steps_of, whole_phase
from clbench.training.costs import Clock, Footprint


@dataclass
class TaskResult:
    """The result of training one replica on one task."""

    steps: int  # optimizer steps of all phases; the loop adds those taken in `after_task`
    trainable: int = 0  # numbers that the strategy trains, in the phase with the most
    diverged: DivergedError | None = None
    last_losses: tuple[float, ...] = ()  # mean losses of the last two tenths of the steps, see `last_tenths`

    @classmethod
    def of(cls, losses: Tensor, task: int, trainable: int, last_phase: int) -> TaskResult:
        """Return the result for the losses of a task [steps], whose last phase has `last_phase` steps."""
        return cls(len(losses), trainable, divergence(losses, task), last_tenths(losses, last_phase))


@dataclass(kw_only=True, eq=False)
class TrialResults:
    """The results of a trial so far, most with a value for each task; checkpoints store them by these names."""

    notes: list[str] = field(default_factory=list)
    R: list[list[float]] = field(default_factory=list)  # R[i][j]: score on task j after i learned tasks
    scores: dict[str, list[list[float]]] = field(default_factory=dict)  # values of further metrics, in the shape of R
    task_inference: list[list[float]] = field(default_factory=list)
    last_losses: list[list[float]] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    timings: Timings = field(default_factory=Timings)
    curve: Curve | None = None  # accuracy during training, if requested
    errors: list[ErrorCounts] = field(default_factory=list)
    probe: Probe | None = None
    general: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    general_files: dict[str, str] = field(default_factory=dict)
    general_items: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)  # [T + 1][N] each
    answers: list[Answer] = field(default_factory=list)
    started: datetime.datetime | None = None  # start of the trial, if a checkpoint was written or loaded


@dataclass(eq=False)
class Replica(TrialResults):
    """One trial in training. Replicas that differ only in seed and `Scalar` options can train together as a stack.

    Args:
        strategy: the strategy that is trained.
        stream: the stream that it learns.
        seed: the seed of the trial.
        planned: the trial as planned; None if no record is made.
    """

    strategy: Strategy
    stream: Stream
    seed: int
    planned: PlannedTrial | None = None
    items: ItemResults | None = None  # which test samples the last row of R answers correctly
    item_scores: ItemScores | None = None  # scores of single test items in the last row, if there are no classes
    failure: Failure | None = None
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)  # loaded from a checkpoint
    writes: WriteCounts | None = None  # of the current task's training samples, as the task began

    @classmethod
    def of(cls, planned: PlannedTrial, strategy: Strategy, stream: Stream, notes: Sequence[str] = ()) -> Replica:
        """Return the replica of a planned trial, untrained."""
        return cls(strategy, stream, planned.trial.seed, planned, notes=[*notes])

    @property
    def trial(self) -> Trial:
        """Return the trial; `planned` must be set."""
        assert self.planned is not None
        return self.planned.trial

    @property
    def learned(self) -> int:
        """Return the number of tasks that are learned and evaluated."""
        return max(len(self.R) - 1, 0)

    @property
    def progress(self) -> Progress:
        """Return the progress of the trial: the number of learned tasks and the mean score on them."""
        score = sum(self.R[-1][:self.learned]) / self.learned if self.learned else None
        return Progress(self.trial.key, self.learned, len(self.stream.tasks), score)

    def add_result(self, task: int, result: TaskResult, training: Clock, other: Clock) -> None:
        """Add the result of a task, the time of its steps (`training`), and the time of all else in it (`other`).

        Raises:
            PluginError: the strategy or its model changed training samples in place.
        """
        if self.writes and self.writes.differ:
            raise PluginError(f"{type(self.strategy).__name__} or its model changed training samples of task "
                              f"{task + 1} in place, but all trials share them; change a copy, as in "
                              "y = task.train.y - 2 instead of task.train.y -= 2")
        self.costs.trainable.append(result.trainable)
        self.costs.steps.append(result.steps)
        self.last_losses.append(list(result.last_losses))
        self.timings.train.append(training.wall)
        self.timings.train_cpu.append(training.cpu)
        if result.diverged is not None:
            self.failure = Failure(type="DivergedError", message=str(result.diverged))
            return
        self.timings.consolidate.append(other.wall)
        self.timings.consolidate_cpu.append(other.cpu)

    def add_footprint(self, footprint: Footprint) -> None:
        """Add the storage after one more task to the costs."""
        self.costs.parameters.append(footprint.parameters)
        self.costs.bytes.append(footprint.bytes)
        self.costs.replay_samples.append(footprint.replay_samples)

    def add_note(self, note: str) -> None:
        """Add a note, unless the replica already has it."""
        if note not in self.notes:
            self.notes.append(note)

    def task(self, index: int) -> Task:
        """Return a task as the strategy sees it; if boundaries are hidden, the whole stream is one task."""
        if self.stream.hidden:
            return Task(0, tuple(range(self.stream.classes)), UNSEEN)
        stream_task = self.stream.tasks[index]
        return Task(index, stream_task.train_classes, stream_task.train, stream_task.train_class_names)

    def begin(self, index: int) -> Task:
        """Activate the outputs of a task, call `before_task`, and return the task.

        If boundaries are hidden, this happens only once, for the first task. Outputs then become active with their
        first samples (`clbench.training.stream_loop`), or at once if all tasks share them.
        """
        self.writes = WriteCounts([self.stream.tasks[index].train])
        rules, task = scenario_rules(self.strategy.stream_info.scenario), self.task(index)
        if self.stream.hidden and index:
            return task
        if self.stream.hidden:
            self.strategy.class_mask.fill_(rules.shared_outputs)
        else:
            classes = [stream_task.train_classes for stream_task in self.stream.tasks]
            for rows, outputs in rules.in_loss(classes, index, self.strategy.activated):
                self.strategy.class_mask[rows.start:rows.stop, outputs] = True
        with seeds.scope(self.seed, "strategy", index):
            self.strategy.before_task(task)
        return task

    def seed_training(self, index: int) -> AbstractContextManager[None]:
        """Return a context that seeds the global generators for training on a task."""
        return seeds.scope(self.seed, "training", index)

    def finish(self, task: Task) -> None:
        """Call `after_task` with seeded global generators, and check the buffers."""
        self.strategy.extra_steps = 0
        with seeds.scope(self.seed, "consolidation", task.index):
            self.strategy.after_task(task)
        require_copies(self.strategy)

    def retrace(self, learned: int, recipe: Recipe) -> None:
        """Give a new strategy the structure that it has after `learned` tasks, without training it.

        `before_task` and `before_phase` are called as in training. The tensors are loaded afterwards, from a snapshot.
        """
        for index in range(1 if self.stream.hidden else learned):
            task = self.begin(index)
            with self.seed_training(index):
                if self.strategy.owns_loop or not shares_of(self.strategy, task):
                    continue
                if self.stream.hidden:
                    self.strategy.before_phase(task, whole_phase(recipe, self.stream))
                    continue
                steps = steps_of(recipe, len(self.strategy.training_samples(task)))
                for phase in phases_of(self.strategy, task, recipe, steps):
                    self.strategy.before_phase(task, phase)


def begin_phase(strategy: Strategy, task: Task, phase: PhaseSpec) -> None:
    """Prepare a strategy for a phase of a task, check its buffers, and set it to training mode."""
    strategy.before_phase(task, phase)
    require_copies(strategy)
    strategy.train()


def require_copies(strategy: Strategy) -> None:
    """Check that buffers do not follow trained parameters: they have no gradients, and memory of their own.

    With a buffer that follows the parameter of which it should be a copy, a penalty on the distance has no effect.

    Raises:
        PluginError: a buffer has a gradient, or the memory of a trained parameter.
    """
    trained = {storage_id(p): name for name, p in strategy.named_parameters() if p.requires_grad}
    for name, buffer in strategy.named_buffers():
        if buffer.requires_grad or storage_id(buffer) in trained:
            reason = "has a gradient" if buffer.requires_grad else f"shares the memory of {trained[storage_id(buffer)]}"
            raise PluginError(f"the buffer {name} of {type(strategy).__name__} {reason}, so it follows parameters that "
                              "are trained; store a copy, as in parameter.detach().clone()")


def require_losses(strategies: Sequence[Strategy], losses: Tensor) -> None:
    """Check that the losses of a step are a scalar for each strategy, and depend on parameters that are trained.

    Raises:
        PluginError: they are not, or do not.
    """
    name = type(strategies[0]).__name__
    if losses.numel() != len(strategies):
        raise PluginError(f"`loss` of {name} returned a tensor of shape {list(losses.shape[1:])}; it must return a "
                          "scalar, such as the mean over the samples of the batch")
    if not losses.requires_grad:
        raise PluginError(f"`loss` of {name} returned a value that depends on no trained parameter, so there are no "
                          "gradients; torch.no_grad() and detach() can be the reason")


def divergence(losses: Tensor, task: int) -> DivergedError | None:
    """Return an error for the first NaN or infinite loss of a task, or None if all losses are finite.

    `losses` are [steps], or [steps, 1] if a method's loss has shape [1] instead of [].
    """
    finite = torch.isfinite(losses).flatten(1).all(1) if losses.dim() > 1 else torch.isfinite(losses)
    if bool(finite.all()):
        return None
    step = int(torch.nonzero(~finite)[0])
    return DivergedError(f"the loss became NaN or infinite in task {task + 1}, step {step}")


def on_host(losses: Tensor) -> Tensor:
    """Return the losses of a task on the CPU; this waits for the device once instead of in each step."""
    return losses.detach().cpu()


def last_tenths(losses: Tensor, steps: int) -> tuple[float, ...]:
    """Return the mean losses of the second-to-last and the last tenth of the steps of a task's last phase.

    A tenth is at least one step. Only one phase counts, because each phase may have its own loss.

    Args:
        losses: the losses of all steps of the task, in order [steps].
        steps: the number of steps of the last phase.

    Returns:
        The two means. Empty if there are too few steps for two tenths, or if a loss is not finite.
    """
    part = max(1, steps // 10)
    if steps < 2 * part or len(losses) < 2 * part:
        return ()
    means = losses[-2 * part:].detach().float().reshape(2, part).mean(1).tolist()
    return tuple(means) if bool(torch.isfinite(losses).all()) else ()
