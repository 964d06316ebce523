"""The embedded executor: worker processes on this machine, each running one trial after the other.

Workers are plain subprocesses in a session of their own, so Ctrl-C reaches only this process; they end when it does,
however it does. The trial of a worker that dies is tried again, and then it has failed; nothing else is lost. A stack
whose worker dies, most likely for want of memory, is tried again as two halves.
"""

from __future__ import annotations

import datetime
import queue
from collections import Counter, deque
from collections.abc import Sequence

from clbench import interrupts
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
        if group := [p for p in waiting.take(how, str(worker.runner.device)) if how.claim(p)]:
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
        self.again: deque[Sequence[Planned]] = deque()  # trials to be tried again, before those that wait
        self.deaths: Counter[str] = Counter()  # of workers: by the key of the trial, "" for those that were not ready

    def run(self, todo: Sequence[Planned]) -> None:
        """Prepare, then run all trials; no worker is left when this returns or raises."""
        self.waiting = Waiting(todo)
        self.checks = Checks(todo, self.listener)
        self.checked = False
        try:
            # A signal waits its turn in the inbox: what came before it is taken in and written.
            with interrupts.held(wake=lambda: self.inbox.put(None)):
                for _ in range(min(self.how.workers, len(todo))):
                    self.processes.append(Process(self.how, self.inbox))
                while self.left or any(p.request for p in self.processes):
                    said = self.inbox.get()
                    if said is None:
                        break
                    process, event = said
                    if process in self.processes:  # not one that was sent away
                        self.hear(process, event)
                        self.assign()
        finally:
            for process in self.processes:
                process.end()

    @property
    def left(self) -> bool:
        """Tell whether trials are still to be given out."""
        return bool(self.again or self.waiting.left)

    def hear(self, process: Process, event: Message | Exception | None) -> None:
        """Take in what a worker says."""
        if event is None:
            self.bury(process)
        elif isinstance(event, Exception):
            raise event
        elif isinstance(event, Ready):
            process.ready = event
            self.checker = self.checker or process
            if self.device is None:
                self.device = event.device
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
                if process.ready and process.request is None and (group := self._next(process.ready.device)):
                    process.ask(Run(group=group))
                    for planned in group:
                        self.listener.started(planned)

    def _next(self, device: str) -> list[Planned]:
        """Return the trials to run next, none where all are given out or taken by other processes."""
        group: list[Planned] = []
        while self.left and not group:
            waiting = self.again.popleft() if self.again else self.waiting.take(self.how, device)
            group = [planned for planned in waiting if self.how.claim(planned)]
        return group

    def bury(self, process: Process) -> None:
        """Deal with a worker's death: what it was doing is tried again or has failed, a new one takes its place."""
        self.processes.remove(process)
        process.end()
        cause, request = f"the worker process {process.cause_of_death()}", process.request
        if isinstance(request, Run):
            self._lost(process, request.group, cause)
        elif process is self.checker and not self.checked:
            self._unprepared(process, request, cause)
        elif process.ready is None and not self._once_more(""):
            if not self.processes:
                raise WorkerError(f"no worker process could start: {cause.removeprefix('the worker process ')}"
                                  f"{process.last_words()}; --workers 0 runs in this process and shows more")
            self.listener.note(f"{cause} before it was ready{process.last_words()}; "
                               f"going on with {len(self.processes)}")
            return
        if self.left:
            self.processes.append(Process(self.how, self.inbox))

    def _once_more(self, key: str) -> bool:
        """Count a death and return whether what it cost may be tried again."""
        self.deaths[key] += 1
        return self.deaths[key] <= self.how.retries

    def _lost(self, process: Process, group: Sequence[Planned], cause: str) -> None:
        """Try the trials of a dead worker again, a stack as two halves, or take them for failed."""
        names = f"{group[0].label} seed {', '.join(str(p.trial.seed) for p in group)}"
        if len(group) > 1:
            half = len(group) // 2
            self.again.extend((group[:half], group[half:]))
            self.listener.note(f"{names}: {cause}; trying again with half the stack")
        elif self._once_more(group[0].trial.key):
            self.again.append(group)
            self.listener.note(f"{names}: {cause}; trying again")
        else:
            assert process.ready
            origin = process.ready.provenance.model_copy(
                update={"plugin": self.how.plugin(group[0].trial.method.name)})
            tries = f", in {self.deaths[group[0].trial.key]} tries" if self.how.retries else ""
            failure = Failure(type="WorkerDied", message=cause + tries, traceback="".join(process.tail))
            self.listener.finished(protocol.failed(group[0], origin, process.since, failure))

    def _unprepared(self, process: Process, request: Message | None, cause: str) -> None:
        """Let another worker prepare what a dead one was preparing.

        Raises:
            WorkerError: that has been tried often enough.
        """
        asked = request.planned if isinstance(request, Prepare) else None
        if not self._once_more(asked.trial.key if asked else ""):
            what = f"{asked.label!r} on {asked.trial.benchmark.name}" if asked else "nothing"
            raise WorkerError(f"{cause} while it prepared {what}{process.last_words()}")
        if asked:
            self.checks.left.insert(0, asked)
        self.checker = next((p for p in self.processes if p.ready), None)

    def keep_only(self, process: Process) -> None:
        """Send all other workers away: on one accelerator they would be in each other's way."""
        others = [p for p in self.processes if p is not process]
        self.processes = [process]
        for other in others:
            other.end()
