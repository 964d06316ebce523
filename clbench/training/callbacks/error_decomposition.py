"""Error decomposition: the causes of a method's errors, counted for a row of R from the logits of its evaluation.

docs/error-analysis.md defines the parts.

If a method does not infer the task, its logits are evaluated three times: as they are, among the outputs of the true
task alone, and after logit-bias correction, which adds the best constant to the outputs of each task. A method that
infers the task is evaluated once more with the task given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.stream import Stream
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.results.records import ErrorCounts, Probe
from clbench.strategy.base import Prediction, Strategy
from clbench.strategy.per_sample_gradients import evaluating
from clbench.training.callbacks import probe
from clbench.training.evaluation import batch_size
from clbench.training.replica import Replica

SWEEPS = 100  # most sweeps over the tasks; each sweep but the last gains at least one sample


def find_corrected(scores: Tensor, task: Tensor, correct_within_task: Tensor, half: Tensor) -> Tensor:
    """Return which samples are correct with constants that are fitted to the other half of the samples, bool [N].

    Args:
        scores: the largest logit among the outputs of each task [N, T].
        task: the true task of each sample [N].
        correct_within_task: which samples are correct among the outputs of their own task, bool [N]; no other can
            become correct.
        half: the half of each sample, 0 or 1 [N].
    """
    scores = scores.double()
    correct = torch.zeros_like(correct_within_task)
    for part in (0, 1):
        is_fitted = (half != part) & correct_within_task
        constants = best_constants(scores[is_fitted], task[is_fitted])
        correct |= (half == part) & correct_within_task & ((scores + constants).argmax(1) == task)
    return correct


def best_constants(scores: Tensor, task: Tensor) -> Tensor:
    """Return constants [T] to add to scores [N, T], so that as many samples as possible have their task [N] on top.

    The method is coordinate ascent with an exact search along each coordinate. It starts from zeros, and from constants
    that make the mean scores of all tasks equal. The better result counts, the first of equal ones. Changing a single
    constant cannot improve it, but it need not be the global optimum.
    """
    finite = scores.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    starts = (scores.new_zeros(scores.shape[1]), -finite.mean(0) if len(scores) else scores.new_zeros(scores.shape[1]))
    ends = [ascend(scores, task, start) for start in starts]
    return max(ends, key=lambda constants: count_correct(scores, task, constants))


def count_correct(scores: Tensor, task: Tensor, constants: Tensor) -> int:
    """Return the number of samples whose own task has a larger score than every other task."""
    scores = scores + constants
    best_other = scores.scatter(1, task[:, None], float("-inf")).amax(1) if scores.shape[1] > 1 else scores[:, 0] - 1
    return int((scores.gather(1, task[:, None])[:, 0] > best_other).sum())


def ascend(scores: Tensor, task: Tensor, start: Tensor) -> Tensor:
    """Return the constants [T] that coordinate ascent reaches from `start`."""
    constants = start.clone()
    if not len(scores) or scores.shape[1] < 2:
        return constants
    for _ in range(SWEEPS):
        previous = constants.clone()
        for column in range(len(constants)):
            constants[column] = best_constant(scores, task, constants, column)
        if torch.equal(previous, constants):
            break
    return constants


def best_constant(scores: Tensor, task: Tensor, constants: Tensor, column: int) -> float:
    """Return the best constant for one column with the others fixed; the current constant if none is better.

    A sample of this task is correct above a threshold of the constant, and a sample of another task below one, if at
    all. Between two thresholds nothing changes. The result is the middle of the widest of the best intervals.
    """
    shifted = scores + constants
    shifted[:, column] = float("-inf")
    in_column = task == column
    top, best = shifted.max(1)
    second = shifted.scatter(1, best[:, None], float("-inf")).amax(1)
    thresholds = top - scores[:, column]  # the constant at which this column equals the best other one
    above = thresholds[in_column & thresholds.isfinite()].sort().values
    below = thresholds[~in_column & (best == task) & (top > second) & thresholds.isfinite()].sort().values
    edges = torch.unique(torch.cat([above, below]))
    if not len(edges):
        return float(constants[column])
    margin = max(float(edges[-1] - edges[0]), 1.0)
    places = torch.cat([edges[:1] - margin, (edges[1:] + edges[:-1]) / 2, edges[-1:] + margin, constants[[column]]])
    widths = torch.cat([edges.new_zeros(1), edges.diff(), edges.new_zeros(1), edges.new_full((1,), float("inf"))])
    counts = torch.searchsorted(above, places) + len(below) - torch.searchsorted(below, places, right=True)
    is_highest = counts == counts.max()
    return float(places[int(widths.masked_fill(~is_highest, -1.0).argmax())])


@dataclass
class Batches:
    """Facts about the test samples of learned tasks, with a tensor [n] or [n, T] for each batch."""

    y: list[Tensor] = field(default_factory=list)
    tasks: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    correct_within_task: list[Tensor] = field(default_factory=list)  # correct among the outputs of the true task
    predicted_task: list[Tensor] = field(default_factory=list)  # the task of the predicted output, or the inferred task
    scores: list[Tensor] = field(default_factory=list)  # the largest logit of each task


class ErrorCounter:
    """Counts the errors of one row of R; the evaluation passes every batch to `add`."""

    def __init__(self, stream: Stream, learned: int) -> None:
        """Count the errors on the first `learned` tasks; no two tasks may share a class (`divides`)."""
        self.stream = stream
        self.learned = learned
        self.infers = False
        self.seen = Batches()
        device = stream.tests.y.device
        self.classes_of_task = torch.zeros(len(stream.tasks), stream.classes, dtype=torch.bool, device=device)
        self.task_of = torch.zeros(stream.classes, dtype=torch.int64, device=device)
        for index, task in enumerate(stream.tasks):
            self.classes_of_task[index, list(task.classes)] = True
            self.task_of[list(task.classes)] = index

    def add(self, prediction: Prediction, logits: Tensor, y: Tensor, tasks: Tensor) -> None:
        """Add a batch; see `evaluation.OnBatch` for the arguments."""
        is_learned = tasks < self.learned
        logits, y, tasks = logits[is_learned], y[is_learned], tasks[is_learned]
        best = logits.argmax(1)
        self.seen.y.append(y)
        self.seen.tasks.append(tasks)
        self.seen.correct.append(best == y)
        if prediction.task is not None:
            self.infers = True
            self.seen.predicted_task.append(prediction.task[is_learned])
            return
        self.seen.predicted_task.append(self.task_of[best])
        self.seen.correct_within_task.append(self._predict_in_task(logits, tasks) == y)
        empty = logits.new_full((len(y), len(self.classes_of_task)), float("-inf"))
        self.seen.scores.append(empty.scatter_reduce(1, self.task_of.expand(len(y), -1), logits, "amax"))

    def _predict_in_task(self, logits: Tensor, tasks: Tensor) -> Tensor:
        """Return the predicted output [n] among the outputs of the true task."""
        return logits.masked_fill(~self.classes_of_task[tasks], float("-inf")).argmax(1)

    @torch.no_grad()
    def counts(self, strategy: Strategy) -> ErrorCounts:
        """Return the counts. A strategy that infers the task, in eval mode, is evaluated again with each task given."""
        y, tasks, correct, predicted_task = (torch.cat(parts).cpu() for parts in (
            self.seen.y, self.seen.tasks, self.seen.correct, self.seen.predicted_task))
        correct_given_task = (self._find_correct_given_task(strategy) if self.infers else
                              torch.cat(self.seen.correct_within_task).cpu())

        def count(which: Tensor) -> list[int]:
            return torch.bincount(tasks[which], minlength=self.learned).tolist()

        pairs = torch.bincount(tasks * self.learned + predicted_task.clamp(0, self.learned - 1),
                               minlength=self.learned**2)
        error_counts = ErrorCounts(learned=self.learned, samples=count(torch.ones_like(correct)),
                                   right=count(correct), given=count(correct_given_task),
                                   tasks=pairs.view(self.learned, self.learned).tolist())
        if self.infers:
            lost = correct_given_task & ~correct
            return error_counts.model_copy(update={"misguided": count(lost & (predicted_task != tasks)),
                                                   "outdone": count(lost & (predicted_task == tasks)),
                                                   "only_unguided": count(correct & ~correct_given_task)})
        scores = torch.cat(self.seen.scores)[:, :self.learned].cpu()
        return error_counts.model_copy(
            update={"corrected": count(find_corrected(scores, tasks, correct_given_task, halves(y)))})

    def _find_correct_given_task(self, strategy: Strategy) -> Tensor:
        """Return which samples are correct if the task is given, bool [N]."""
        tests = self.stream.tests
        size = batch_size(self.stream, tests.y.device)
        correct = []
        for task in range(self.learned):
            for x, y, tasks in tests.batches(size, task):
                logits = strategy.predict(x, task).logits
                correct.append(self._predict_in_task(logits, tasks) == y)
        return torch.cat(correct).cpu()


def halves(y: Tensor) -> Tensor:
    """Return the half of each sample for cross-fitting, int64 [N]: 0 and 1 in turn within each class.

    >>> halves(torch.tensor([3, 3, 5, 3, 5]))
    tensor([0, 1, 0, 0, 1])
    """
    order = y.argsort(stable=True)
    class_starts = torch.searchsorted(y[order], y[order])
    half = torch.empty_like(order)
    half[order] = (torch.arange(len(y)) - class_starts) % 2
    return half


def divides(stream: Stream, scenario: Scenario) -> bool:
    """Return whether errors can be decomposed by task.

    The classes of all tasks must compete at test time, no class may be in two tasks, and each task needs a test set.
    """
    classes = list(chain.from_iterable(task.classes for task in stream.tasks))
    return scenario_rules(scenario).seen_compete and len(classes) == len(set(classes)) and not stream.common_test


@dataclass(frozen=True)
class ErrorDecomposition:
    """Decomposes the errors of replicas, row by row.

    Args:
        each: whether to decompose the row after each task, or only the last row.
        probed: whether to fit linear probes to the features.
    """

    each: bool = False
    probed: bool = False

    @classmethod
    def for_settings(cls, settings: ExecutionSettings, scenario: Scenario) -> ErrorDecomposition:
        """Return the error decomposition that the settings of a run request in a scenario."""
        return cls(settings.anatomy == "each", settings.probe and not scenario_rules(scenario).task_given)

    def make_counter(self, stream: Stream, scenario: Scenario, learned: int) -> ErrorCounter | None:
        """Return a counter for the evaluation after `learned` tasks; None if its errors are not decomposed."""
        is_due = learned == len(stream.tasks) or (self.each and learned > 0)
        return ErrorCounter(stream, learned) if is_due and divides(stream, scenario) else None

    def add(self, replica: Replica, counter: ErrorCounter | None, learned: int) -> None:
        """Add the error counts after `learned` tasks and the results of probes to a replica, without other effects."""
        if counter is not None:
            with evaluating(replica.strategy):
                replica.errors.append(counter.counts(replica.strategy))
        if self.probed and learned:
            replica.probe = probe.add_probe(replica.strategy, replica.stream, learned, replica.probe or Probe())

    def covers(self, replica: Replica, learned: int) -> bool:
        """Return whether a replica has all results that are due after `learned` tasks, if more tasks follow."""
        rows = learned if self.each and divides(replica.stream, replica.strategy.stream_info.scenario) else 0
        result = replica.probe
        is_probed = result is not None and (bool(result.missing) or len(result.learned) == learned)
        return len(replica.errors) >= rows and (is_probed or not self.probed)
