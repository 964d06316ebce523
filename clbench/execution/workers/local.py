"""The embedded executor: worker processes on this machine, or this process only.

Workers are subprocesses in a session of their own, so Ctrl-C reaches only this process. They end when this process
ends, even if it is killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from clbench.execution.workers.plan import Listener, WorkerPlan
from clbench.execution.workers.pool import Pool
from clbench.execution.workers.process import Process
from clbench.execution.workers.protocol import Finished, Message, Prepared, Ready, Refused, Running
from clbench.execution.workers.schedule import PreflightChecks, TrialQueue
from clbench.experiment.trial import PlannedTrial


def execute(todo: Sequence[PlannedTrial], plan: WorkerPlan, listener: Listener) -> None:
    """Run trials and report each to the listener; return when all have ended.

    Raises:
        ClbenchError: bad input that shows only when data or torch are loaded; no trial has started then.
        WorkerError: no worker could be started.
    """
    if plan.workers == 0:
        in_process(todo, plan, listener)
    else:
        Pool(plan, listener, partial(Process, plan.start)).run(todo)


def in_process(todo: Sequence[PlannedTrial], plan: WorkerPlan, listener: Listener) -> None:
    """Run trials in this process, one after the other (debugging, notebooks)."""
    from clbench.execution.workers.worker import Worker

    checks, current = PreflightChecks(todo, listener), todo[0]

    def handle(event: Message) -> None:
        if isinstance(event, Ready):
            listener.ready(event.device, 0, plan.start.threads)
        elif isinstance(event, Prepared):
            checks.passed(event.notes)
            listener.foreseen(current, event.foreseen)
        elif isinstance(event, Refused):
            checks.refused(current, event.error())
        elif isinstance(event, Running):
            listener.progress(event.progress)
        elif isinstance(event, Finished):
            for record in event.records:
                listener.finished(record)

    worker = Worker(plan.start, handle, plan.registry)
    while planned := checks.next():
        current = planned
        worker.prepare(planned)
    waiting = TrialQueue(todo)
    while waiting.left:
        if group := [p for p in waiting.take(plan.settings.stack, str(worker.runner.device)) if plan.claim(p)]:
            for planned in group:
                listener.started(planned)
            worker.run(group)
