"""One row of R: the accuracy on every task of the stream, and how often an unknown task was inferred right.

The outputs that take part are those that the scenario offers at test time: in `task` the classes of the sample's own
task; in `domain` all; in `class` all classes seen so far and, for a task that is still to come, those of the tasks up
to it. The strategy is given the task's index in scenario `task` only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.data.stream import Stream
from clbench.strategy import Scenario, Strategy

BATCH = 1024


@dataclass(frozen=True)
class Row:
    """Accuracy on each task, and the share of its samples whose task was inferred right (None: nothing to infer)."""

    accuracy: list[float]
    task_inference: list[float] | None


def evaluate(strategy: Strategy, stream: Stream, scenario: Scenario, learned: int) -> Row:
    """Evaluate a strategy that has learned the first `learned` tasks on the test samples of all tasks."""
    training = strategy.training
    strategy.eval()
    right: list[Tensor] = []
    inferred: list[Tensor] = []
    with torch.no_grad():
        for index, task in enumerate(stream.tasks):
            offered = offered_outputs(stream, scenario, index, learned).to(task.test.y.device)
            correct = torch.zeros((), device=task.test.y.device)
            own = torch.zeros_like(correct)
            for x, y in zip(torch.split(task.test.x, BATCH), torch.split(task.test.y, BATCH), strict=True):
                prediction = strategy.predict(stream.prepare(x), index if scenario == "task" else None)
                logits = prediction.logits.masked_fill(~offered, float("-inf"))
                correct += (logits.argmax(1) == y).sum()
                if prediction.task is not None:
                    own += (prediction.task == index).sum()
            right.append(correct)
            if prediction.task is not None:
                inferred.append(own)
    strategy.train(training)
    sizes = [len(task.test) for task in stream.tasks]
    shares = [(torch.stack(counts).double().cpu() / torch.tensor(sizes)).tolist() for counts in (right, inferred)
              if counts]
    return Row(shares[0], shares[1] if inferred else None)


def offered_outputs(stream: Stream, scenario: Scenario, task: int, learned: int) -> Tensor:
    """Return which outputs [C] take part when task `task` is tested after `learned` tasks."""
    offered = torch.zeros(stream.classes, dtype=torch.bool)
    if scenario == "domain":
        return ~offered
    first = task if scenario == "task" else 0
    for known in stream.tasks[first:max(learned, task + 1) if scenario == "class" else task + 1]:
        offered[list(known.classes)] = True
    return offered
