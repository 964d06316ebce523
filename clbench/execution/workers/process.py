"""Workers on this machine: subprocesses, or this process only.

Subprocesses have a session of their own, so Ctrl-C reaches only this process. They end when this process ends, even if
it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial

from pydantic import ValidationError

from clbench.execution.workers import protocol
from clbench.execution.workers.plan import Listener, PreflightChecks, TrialQueue, WorkerPlan
from clbench.execution.workers.pool import Inbox, Pool, WorkerHandle
from clbench.execution.workers.protocol import Finished, Message, Prepared, Ready, Refused, Running, Start
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


# glibc gives large activations back to the kernel after every step and takes page faults to get them again; with these
# it keeps them (a small CNN on one thread: training 1.4, evaluation 3.4 times as fast). Other C libraries ignore them.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30),
             "MALLOC_TOP_PAD_": str(2**26)}
DRAIN_SECONDS = 2.0  # given to a dead worker's pipes, which its children may hold open


class Process(WorkerHandle):
    """Handle of a worker process."""

    def __init__(self, start: Start, inbox: Inbox) -> None:
        """Start the process; its messages go to `inbox`, and None when it has died."""
        super().__init__(inbox)
        number = str(start.threads)
        threads = {} if start.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), number)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "clbench.execution.workers.worker"], env={**ALLOCATOR, **os.environ, **threads},
            encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            errors="replace", start_new_session=True)
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_messages, self._collect)]
        for thread in (*self._readers, threading.Thread(target=self._wait, daemon=True)):
            thread.start()
        self.send(start)

    def _read_messages(self) -> None:
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
        """Send a message; if the worker has died, it is lost, and the inbox reports the death sooner or later."""
        assert self.popen.stdin
        with contextlib.suppress(OSError):
            self.popen.stdin.write(message.line())
            self.popen.stdin.flush()

    def end(self) -> None:
        """Kill the worker and its child processes, even if it is busy."""
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

    def exit_reason(self) -> str:
        """Return how the process ended, as text."""
        code = self.popen.returncode
        if code >= 0:
            return f"the worker process exited with code {code}"
        name = signal.Signals(-code).name
        hint = " (probably out of memory; fewer --workers need less)" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"
