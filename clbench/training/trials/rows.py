"""A row of R of a trial in progress, with what is taken apart of its errors."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.data.stream import Stream
from clbench.results.items import ItemResults
from clbench.strategy.base import Prediction
from clbench.training import numerics
from clbench.training.evaluation import evaluate
from clbench.training.trials.costs import Clock
from clbench.training.trials.state import TrialState


def record_row(member: TrialState, learned: int) -> None:
    """Evaluate on all tasks and add the row; where its errors come from is no part of the time of evaluation."""
    scenario = member.trial.scenario
    began = Clock.now()
    with numerics.forward(member.trial.trained_by, member.strategy.active.device, member.strategy):
        tally = member.anatomy.tally(member.stream, scenario, learned)
        right: list[Tensor] | None = [] if learned == len(member.stream.tasks) else None

        def watch(prediction: Prediction, logits: Tensor, y: Tensor, tasks: Tensor) -> None:
            if tally is not None:
                tally.add(prediction, logits, y, tasks)
            if right is not None:
                right.append(logits.argmax(1) == y)

        row = evaluate(member.strategy, member.stream, scenario, learned, member.predictions, watch)
        ended = Clock.now()
        member.anatomy.look(member.strategy, member.stream, tally, learned)
    if right is not None:
        member.items = item_results(member.stream, torch.cat(right), member.trial.benchmark.name)
    member.timings.evaluate.append(ended.wall - began.wall)
    member.timings.evaluate_cpu.append(ended.cpu - began.cpu)
    if row.flops is not None:
        member.costs.inference_flops.append(row.flops)
    member.R.append(row.accuracy)
    if row.task_inference is not None:
        member.task_inference.append(row.task_inference)


def item_results(stream: Stream, right: Tensor, source: str) -> ItemResults | None:
    """Return by image what is right, bool [N] in the order of `stream.tests`; None where the images are not known.

    `source` is the benchmark's name.
    """
    rows = [task.test_rows for task in stream.tasks if task.test_rows is not None]
    if len(rows) < len(stream.tasks):
        return None
    return ItemResults.of(torch.cat(rows).numpy(), right.cpu().numpy(), source)
