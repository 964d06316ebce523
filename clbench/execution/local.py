"""The embedded executor: worker processes on this machine, each running one trial after the other.

Workers are plain subprocesses in a session of their own, so Ctrl-C reaches only this process; they end when it does,
however it does. A worker that dies costs its trial and nothing else.
"""

from __future__ import annotations

import datetime
import queue
from collections.abc import Sequence

from clbench.errors import ClbenchError
from clbench.execution import Checks, How, Listener, Waiting, protocol
from clbench.execution.process import Inbox, Process, start_request
from clbench.execution.protocol import Finished, Message, Prepare, Prepared, Ready, Refused, Run, Running
from clbench.plan import Planned
from clbench.records import Failure


class WorkerError(ClbenchError):
    """Worker processes that do not start, or die before any trial has."""


def execute(todo: Sequence[Planned], how: How, listener: Listener) -> None:
    """Run trials and tell the listener of each; returns when all are over.

    Raises:
        ClbenchError: bad input that shows only with the data or torch at hand; no trial has started then.
        WorkerError: no worker could be started.
    """
    if how.workers == 0:
        in_process(todo, how, listener)
    else:
        Pool(how, listener).run(todo)


def in_process(todo: Sequence[Planned], how: How, listener: Listener) -> None:
    """Run trials in this process, one after the other (debugging, notebooks)."""
    from clbench.execution.worker import Worker

    checks, current = Checks(todo, listener), todo[0]

    def hear(event: Message) -> None:
        if isinstance(event, Ready):
            listener.ready(event.device, 0, how.threads)
        elif isinstance(event, Prepared):
            checks.passed(event.notes)
        elif isinstance(event, Refused):
            checks.refused(current, event.error())
        elif isinstance(event, Running):
            listener.progress(event.key, event.task, event.tasks, event.accuracy)
        elif isinstance(event, Finished):
            for record in event.records:
                listener.finished(record)

    worker = Worker(start_request(how), hear)
    while planned := checks.next():
        current = planned
        worker.prepare(planned)
    waiting = Waiting(todo)
    while waiting.left:
        group = waiting.take(how, str(worker.runner.device))
        for planned in group:
            listener.started(planned)
        worker.run(group)


class Pool:
    """Worker processes and the trials that wait for them."""

    def __init__(self, how: How, listener: Listener) -> None:
        """Take the settings; `run` starts the processes."""
        self.how = how
        self.listener = listener
        self.inbox: Inbox = queue.SimpleQueue()
        self.processes: list[Process] = []
        self.device: str | None = None
        self.checker: Process | None = None

    def run(self, todo: Sequence[Planned]) -> None:
        """Prepare, then run all trials; no worker is left when this returns or raises."""
        self.waiting = Waiting(todo)
        self.checks = Checks(todo, self.listener)
        self.checked = False
        try:
            for _ in range(min(self.how.workers, len(todo))):
                self.processes.append(Process(self.how, self.inbox))
            while self.waiting.left or any(p.request for p in self.processes):
                process, event = self.inbox.get()
                if process in self.processes:  # not one that was sent away
                    self.hear(process, event)
                    self.assign()
        finally:
            for process in self.processes:
                process.end()

    def hear(self, process: Process, event: Message | Exception | None) -> None:
        """Take in what a worker says."""
        if event is None:
            self.bury(process)
        elif isinstance(event, Exception):
            raise event
        elif isinstance(event, Ready):
            process.ready = event
            if self.device is None:
                self.device = event.device
                self.checker = process
                if event.device != "cpu" and self.how.shrink:
                    self.keep_only(process)
                self.listener.ready(event.device, len(self.processes), self.how.threads)
        elif isinstance(event, Running):
            self.listener.progress(event.key, event.task, event.tasks, event.accuracy)
        elif isinstance(event, Refused) and process.request is None:
            raise event.error()
        else:
            request, process.request = process.request, None
            if isinstance(event, Prepared):
                self.checks.passed(event.notes)
            elif isinstance(event, Refused) and isinstance(request, Prepare):
                self.checks.refused(request.planned, event.error())
            elif isinstance(event, Finished):
                if isinstance(request, Run):
                    now = datetime.datetime.now(datetime.timezone.utc)
                    self.waiting.took(request.group, (now - process.since).total_seconds())
                for record in event.records:
                    self.listener.finished(record)

    def assign(self) -> None:
        """Give each idle worker something to do: one prepares, and when that is done all run trials."""
        if not self.checked and self.checker and self.checker.request is None:
            if planned := self.checks.next():
                self.checker.ask(Prepare(planned=planned))
            else:
                self.checked = True
        if self.checked:
            for process in self.processes:
                if process.ready and process.request is None and self.waiting.left:
                    group = self.waiting.take(self.how, process.ready.device)
                    process.ask(Run(group=group))
                    for planned in group:
                        self.listener.started(planned)

    def bury(self, process: Process) -> None:
        """Deal with a worker's death: its trials have failed, a new one takes its place."""
        self.processes.remove(process)
        process.end()
        cause, request = process.cause_of_death(), process.request
        if process is self.checker and not self.checked:
            asked = request.planned if isinstance(request, Prepare) else None
            what = f"{asked.label!r} on {asked.trial.benchmark.name}" if asked else "nothing"
            raise WorkerError(f"the worker process {cause} while it prepared {what}{process.last_words()}")
        if process.ready is None:
            if not self.processes:
                raise WorkerError(f"no worker process could start: it {cause}{process.last_words()}; "
                                  "--workers 0 runs in this process and shows more")
            self.listener.note(f"a worker process {cause} before it was ready{process.last_words()}; "
                               f"going on with {len(self.processes)}")
            return
        if isinstance(request, Run):
            plugin = self.how.plugin(request.group[0].trial.method.name)
            origin = process.ready.provenance.model_copy(update={"plugin": plugin})
            failure = Failure(type="WorkerDied", message=f"the worker process {cause}", traceback="".join(process.tail))
            for planned in request.group:
                self.listener.finished(protocol.failed(planned, origin, process.since, failure))
        if self.waiting.left:
            self.processes.append(Process(self.how, self.inbox))

    def keep_only(self, process: Process) -> None:
        """Send all other workers away: on one accelerator they would be in each other's way."""
        others = [p for p in self.processes if p is not process]
        self.processes = [process]
        for other in others:
            other.end()
