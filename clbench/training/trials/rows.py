"""A row of R of a trial in progress, with what is taken apart of its errors."""

from __future__ import annotations

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
        row = evaluate(member.strategy, member.stream, scenario, learned, member.answers, tally.add if tally else None)
        ended = Clock.now()
        member.anatomy.look(member.strategy, member.stream, tally, learned)
    member.timings.evaluate.append(ended.wall - began.wall)
    member.timings.evaluate_cpu.append(ended.cpu - began.cpu)
    if row.flops is not None:
        member.costs.inference_flops.append(row.flops)
    member.R.append(row.accuracy)
    if row.task_inference is not None:
        member.task_inference.append(row.task_inference)
