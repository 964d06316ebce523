"""A pool of workers on one machine or on a cluster; each worker runs one trial or stack after another.

If a worker dies, its trial is retried up to `retries` times, and then recorded as failed; no other trial is affected.
If the worker of a stack dies, most likely because memory ran out, the stack is retried as two halves.
"""

from __future__ import annotations

import datetime
import queue
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from clbench.core.errors import ClbenchError
from clbench.execution import interrupts
from clbench.execution.workers import protocol
from clbench.execution.workers.plan import Listener, PreflightChecks, TrialQueue, WorkerPlan
from clbench.execution.workers.protocol import (
    Finished,
    Message,
    Note,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Run,
    Running,
)
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Failure

TAIL_LINES = 60  # last lines of a worker's standard error, shown with a failure

Inbox: TypeAlias = "queue.SimpleQueue[tuple[WorkerHandle, Message | Exception | None] | None]"  # None: stop


class WorkerHandle(ABC):
    """A worker that has been started.

    It puts pairs of itself and a message into an inbox. A message is an event, an exception that is a bug and must be
    raised, or None, once, when the worker has died.
    """

    def __init__(self, inbox: Inbox) -> None:
        """Start without pending requests."""
        self.inbox = inbox
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ready: Ready | None = None
        self.request: Prepare | Run | None = None
        self.since = datetime.datetime.now(datetime.timezone.utc)
        self.clock = time.monotonic()

    @abstractmethod
    def send(self, message: Message) -> None:
        """Send a message. If the worker has died, the message is lost, and the inbox receives None later."""

    @abstractmethod
    def end(self) -> None:
        """Kill the worker and its child processes, even if it is busy."""

    @abstractmethod
    def exit_reason(self) -> str:
        """Return how the worker ended, as a clause whose subject is the worker."""

    def ask(self, request: Prepare | Run) -> None:
        """Send a request and store it until it is answered."""
        self.request, self.since = request, datetime.datetime.now(datetime.timezone.utc)
        self.clock = time.monotonic()
        self.send(request)

    @property
    def seconds(self) -> float:
        """Return the seconds since the last request, by the monotonic clock, because the wall clock may jump."""
        return time.monotonic() - self.clock

    def last_stderr_line(self) -> str:
        """Return a colon and the worker's last line on standard error; empty if there is none."""
        lines = [line.strip() for line in self.tail if line.strip()]
        return f": {lines[-1]}" if lines else ""


class WorkerError(ClbenchError):
    """Workers do not start, or die before any trial has started."""


class Pool:
    """A pool of workers and the queue of their trials.

    Args:
        plan: the number of workers and their settings.
        listener: receives the events of the run.
        start: starts a worker, which sends its messages to an inbox.
        nodes: number of nodes of the cluster, for the listener; 0 means this machine.
    """

    def __init__(self, plan: WorkerPlan, listener: Listener, start: Callable[[Inbox], WorkerHandle],
                 nodes: int = 0) -> None:
        """Store the plan; `run` starts the workers."""
        self.plan = plan
        self.listener = listener
        self.start = start
        self.nodes = nodes
        self.inbox: Inbox = queue.SimpleQueue()
        self.links: list[WorkerHandle] = []
        self.device: str | None = None
        self.checker: WorkerHandle | None = None
        self.again: deque[Sequence[PlannedTrial]] = deque()  # trials to retry, which run before waiting ones
        self.deaths: Counter[str] = Counter()  # of workers, by the key of the trial; "" if not ready

    def run(self, todo: Sequence[PlannedTrial]) -> None:
        """Prepare, then run all trials; no worker is left when this returns or raises."""
        self.waiting = TrialQueue(todo)
        self.checks = PreflightChecks(todo, self.listener)
        self.checked = False
        try:
            # A signal puts None into the inbox, so that earlier messages are still handled and their records written.
            with interrupts.defer_signals(wake=lambda: self.inbox.put(None)):
                for _ in range(min(self.plan.workers, len(todo))):
                    self.links.append(self.start(self.inbox))
                while self.left or any(p.request for p in self.links):
                    received = self.inbox.get()
                    if received is None:
                        break
                    link, event = received
                    if link in self.links:  # false for a worker that was stopped
                        self.handle_message(link, event)
                        self.assign()
        finally:
            for link in self.links:
                link.end()

    @property
    def left(self) -> bool:
        """Return whether trials remain to be assigned."""
        return bool(self.again or self.waiting.left)

    def handle_message(self, link: WorkerHandle, event: Message | Exception | None) -> None:
        """Handle a message of a worker."""
        if event is None:
            self.handle_death(link)
        elif isinstance(event, Exception):
            raise event
        elif isinstance(event, Ready):
            link.ready = event
            self.checker = self.checker or link
            if self.device is None:
                self.device = event.device
                if event.device != "cpu" and self.plan.shrink:
                    self.keep_only(link)
                self.listener.ready(event.device, len(self.links), event.provenance.threads, self.nodes)
        elif isinstance(event, Note):
            self.checks.passed([event.text])
        elif isinstance(event, Running):
            self.listener.progress(event.progress)
        elif isinstance(event, Refused) and link.request is None:
            raise event.error()
        else:
            request, link.request = link.request, None
            if isinstance(event, Prepared):
                self.checks.passed(event.notes)
                if isinstance(request, Prepare):
                    self.listener.take_estimate(request.planned, event.estimate)
            elif isinstance(event, Refused) and isinstance(request, Prepare):
                self.checks.refused(request.planned, event.error())
            elif isinstance(event, Finished):
                if isinstance(request, Run):
                    self.waiting.took(request.group, link.seconds)
                for record in event.records:
                    self.listener.finished(record)

    def assign(self) -> None:
        """Assign work to idle workers: one runs the preflight checks; after them all run trials."""
        if not self.checked and self.checker and self.checker.request is None:
            if planned := self.checks.next():
                self.checker.ask(Prepare(planned=planned))
            else:
                self.checked = True
        if self.checked:
            for link in self.links:
                if link.ready and link.request is None and (group := self._next(link.ready.device)):
                    link.ask(Run(group=group))
                    for planned in group:
                        self.listener.started(planned)

    def _next(self, device: str) -> list[PlannedTrial]:
        """Return the trials to run next; none if all are assigned or locked by other processes."""
        group: list[PlannedTrial] = []
        while self.left and not group:
            waiting = self.again.popleft() if self.again else self.waiting.take(self.plan.settings.stack, device)
            group = [planned for planned in waiting if self.plan.claim(planned)]
        return group

    def handle_death(self, link: WorkerHandle) -> None:
        """Handle a worker's death: retry its request or record it as failed, and start a new worker."""
        self.links.remove(link)
        link.end()
        cause, request = link.exit_reason(), link.request
        if isinstance(request, Run):
            self._handle_death(link, request.group, cause)
        elif link is self.checker and not self.checked:
            self._prepare_again(link, request, cause)
        elif link.ready is None and not self._allows_retry(""):
            if not self.links:
                hint = "" if self.nodes else ". Run with --workers 0 to see the whole error"
                raise WorkerError(f"no worker process could start, because {cause}{link.last_stderr_line()}{hint}")
            self.listener.note(f"{cause} before it was ready{link.last_stderr_line()}; "
                               f"going on with {len(self.links)}")
            return
        if self.left:
            self.links.append(self.start(self.inbox))

    def _allows_retry(self, key: str) -> bool:
        """Count a death and return whether the lost work may be retried."""
        self.deaths[key] += 1
        return self.deaths[key] <= self.plan.settings.retries

    def _handle_death(self, link: WorkerHandle, group: Sequence[PlannedTrial], cause: str) -> None:
        """Retry the trials of a dead worker, a stack as two halves, or record them as failed."""
        names = f"{group[0].label} seed {', '.join(str(p.trial.seed) for p in group)}"
        if len(group) > 1:
            half = len(group) // 2
            self.again.extend((group[:half], group[half:]))
            self.listener.note(f"{names}: {cause}. clbench tries again with half as many trials at once")
        elif self._allows_retry(group[0].trial.key):
            self.again.append(group)
            self.listener.note(f"{names}: {cause}. clbench tries again")
        else:
            assert link.ready
            plugin = str(self.plan.registry.origin("method", group[0].trial.method.name))
            origin = link.ready.provenance.model_copy(update={"plugin": plugin})
            tries = f", in {self.deaths[group[0].trial.key]} tries" if self.plan.settings.retries else ""
            failure = Failure(type="WorkerDied", message=cause + tries, traceback="".join(link.tail))
            self.listener.finished(protocol.record_failure(group[0], origin, link.since, failure))

    def _prepare_again(self, link: WorkerHandle, request: Message | None, cause: str) -> None:
        """Let another worker prepare the trial that a dead worker was preparing.

        Raises:
            WorkerError: the number of retries is exhausted.
        """
        planned = request.planned if isinstance(request, Prepare) else None
        if not self._allows_retry(planned.trial.key if planned else ""):
            trial_name = f"{planned.label!r} on {planned.trial.benchmark.name}" if planned else "nothing"
            raise WorkerError(f"{cause} while it prepared {trial_name}{link.last_stderr_line()}")
        if planned:
            self.checks.left.insert(0, planned)
        self.checker = next((p for p in self.links if p.ready), None)

    def keep_only(self, link: WorkerHandle) -> None:
        """Stop all other workers, which would compete for the one accelerator."""
        others = [p for p in self.links if p is not link]
        self.links = [link]
        for other in others:
            other.end()
