"""The embedded executor: worker processes on this machine, each running one trial after the other.

Workers are plain subprocesses in a session of their own, so Ctrl-C reaches only this process; they end when it does,
however it does. A worker that dies costs its trial and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from pydantic import ValidationError

from clbench.errors import ClbenchError
from clbench.execution import Checks, How, Listener, protocol
from clbench.execution.protocol import Finished, Message, Prepare, Prepared, Ready, Refused, Run, Running, Start
from clbench.plan import Planned
from clbench.records import Failure

TAIL_LINES = 60  # of a worker's standard error, kept to be shown with a failure
DRAIN_SECONDS = 2.0  # given to a dead worker's pipes, which its children may hold open


Inbox: TypeAlias = "queue.SimpleQueue[tuple[Process, Message | Exception | None]]"


class WorkerError(ClbenchError):
    """Worker processes that do not start, or die before any trial has."""


def execute(todo: Sequence[Planned], how: How, listener: Listener) -> None:
    """Run trials, in this order, and tell the listener of each; returns when all are over.

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
            listener.finished(event.record)

    worker = Worker(_start(how), hear)
    while planned := checks.next():
        current = planned
        worker.prepare(planned)
    for planned in todo:
        listener.started(planned)
        worker.run(planned)


class Process:
    """One worker process, as seen from here."""

    def __init__(self, how: How, inbox: Inbox) -> None:
        """Start it; what it says goes to `inbox`, and None when it has died."""
        threads = {} if how.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(how.threads))
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "clbench.execution.worker"], env={**os.environ, **threads}, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
            start_new_session=True)
        self.inbox = inbox
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ready: Ready | None = None
        self.request: Prepare | Run | None = None
        self.since = datetime.datetime.now(datetime.timezone.utc)
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._hear, self._collect)]
        for thread in (*self._readers, threading.Thread(target=self._wait, daemon=True)):
            thread.start()
        self.send(_start(how))

    def _hear(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):  # cut off by its writer's death
                    break
                try:
                    self.inbox.put((self, protocol.EVENTS.validate_json(line)))
                except ValidationError as error:  # a bug; raised where it is seen, not in this thread
                    self.inbox.put((self, error))

    def _collect(self) -> None:
        assert self.popen.stderr
        with self.popen.stderr as lines:
            for line in lines:
                self.tail.append(line[:500])

    def _wait(self) -> None:
        # Not the end of its output: a child of the worker may hold that open.
        self.popen.wait()
        for thread in self._readers:
            thread.join(DRAIN_SECONDS)
        self.inbox.put((self, None))

    def send(self, message: Message) -> None:
        """Send a message; to a dead worker it is lost, and its death is in the inbox or about to be."""
        assert self.popen.stdin
        with contextlib.suppress(OSError):
            self.popen.stdin.write(message.line())
            self.popen.stdin.flush()

    def ask(self, request: Prepare | Run) -> None:
        """Send a request and remember it until it is answered."""
        self.request, self.since = request, datetime.datetime.now(datetime.timezone.utc)
        self.send(request)

    def end(self) -> None:
        """Make an end of the worker, and of what it may have started, whatever it is doing."""
        if self.popen.poll() is None:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
                    os.killpg(self.popen.pid, signal.SIGKILL)
            else:
                self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin
        with contextlib.suppress(OSError):  # what was still to be sent is lost
            self.popen.stdin.close()

    def cause_of_death(self) -> str:
        """Return how the process ended, in words."""
        code = self.popen.returncode
        if code >= 0:
            return f"exited with code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def last_words(self) -> str:
        """Return the last line it wrote to standard error, if any."""
        lines = [line.strip() for line in self.tail if line.strip()]
        return f": {lines[-1]}" if lines else ""


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
        self.waiting = deque(todo)
        self.checks = Checks(todo, self.listener)
        self.checked = False
        try:
            for _ in range(min(self.how.workers, len(todo))):
                self.processes.append(Process(self.how, self.inbox))
            while self.waiting or any(p.request for p in self.processes):
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
            elif isinstance(event, Refused) and request:
                self.checks.refused(request.planned, event.error())
            elif isinstance(event, Finished):
                self.listener.finished(event.record)

    def assign(self) -> None:
        """Give each idle worker something to do: one prepares, and when that is done all run trials."""
        if not self.checked and self.checker and self.checker.request is None:
            if planned := self.checks.next():
                self.checker.ask(Prepare(planned=planned))
            else:
                self.checked = True
        if self.checked:
            for process in self.processes:
                if process.ready and process.request is None and self.waiting:
                    planned = self.waiting.popleft()
                    process.ask(Run(planned=planned))
                    self.listener.started(planned)

    def bury(self, process: Process) -> None:
        """Deal with a worker's death: its trial has failed, a new one takes its place."""
        self.processes.remove(process)
        process.end()
        cause, request = process.cause_of_death(), process.request
        if process is self.checker and not self.checked:
            what = f"{request.planned.label!r} on {request.planned.trial.benchmark.name}" if request else "nothing"
            raise WorkerError(f"the worker process {cause} while it prepared {what}{process.last_words()}")
        if process.ready is None:
            if not self.processes:
                raise WorkerError(f"no worker process could start: it {cause}{process.last_words()}; "
                                  "--workers 0 runs in this process and shows more")
            self.listener.note(f"a worker process {cause} before it was ready{process.last_words()}; "
                               f"going on with {len(self.processes)}")
            return
        if request:
            planned = request.planned
            origin = process.ready.provenance.model_copy(update={"plugin": self.how.plugin(planned.trial.method.name)})
            failure = Failure(type="WorkerDied", message=f"the worker process {cause}", traceback="".join(process.tail))
            self.listener.finished(protocol.failed(planned, origin, process.since, failure))
        if self.waiting:
            self.processes.append(Process(self.how, self.inbox))

    def keep_only(self, process: Process) -> None:
        """Send all other workers away: on one accelerator they would be in each other's way."""
        others = [p for p in self.processes if p is not process]
        self.processes = [process]
        for other in others:
            other.end()


def _start(how: How) -> Start:
    return Start(data_dir=str(how.data_dir), device=how.device, command=how.command, threads=how.threads)
