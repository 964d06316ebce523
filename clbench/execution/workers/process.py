"""Workers on this machine: subprocesses, or this process only.

Each subprocess has its own session, so Ctrl-C reaches only this process. Subprocesses end when this process ends, even
if it is killed. `WORKER` is the code of a worker, which reads requests and writes answers as lines of JSON. It handles
one request at a time.
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
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from pydantic import ValidationError

from clbench.core.compat import uncollected
from clbench.core.errors import ClbenchError
from clbench.core.registry import Registry, discover
from clbench.execution import interrupts
from clbench.execution.workers import protocol
from clbench.execution.workers.plan import Listener, PreflightChecks, TrialQueue, WorkerPlan, refuse_default_domain
from clbench.execution.workers.pool import Inbox, Pool, WorkerError, WorkerHandle
from clbench.execution.workers.protocol import (
    Finished,
    Message,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Run,
    Running,
    Start,
)
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Record

Send = Callable[[Message], None]


def execute(todo: Sequence[PlannedTrial], plan: WorkerPlan, listener: Listener) -> None:
    """Run trials and report each to the listener; return when all have ended.

    Raises:
        ClbenchError: bad input that shows only when data or torch are loaded; no trial has started then.
        WorkerError: no worker could be started.
    """
    if plan.workers == 0:
        run_in_process(todo, plan, listener)
    else:
        Pool(plan, listener, partial(Process, plan.start)).run(todo)


def run_in_process(todo: Sequence[PlannedTrial], plan: WorkerPlan, listener: Listener) -> None:
    """Run trials in this process, one after the other, for debugging and notebooks."""
    checks, current = PreflightChecks(todo, listener), todo[0]

    def handle(event: Message) -> None:
        if isinstance(event, Ready):
            listener.ready(event.device, 0, plan.start.threads)
        elif isinstance(event, Prepared):
            checks.passed(event.notes)
            listener.take_estimate(current, event.estimate)
        elif isinstance(event, Refused):
            checks.refused(current, event.error())
        elif isinstance(event, Running):
            listener.progress(event.progress)
        elif isinstance(event, Finished):
            with interrupts.defer_signals():  # a signal must not lose the other trials of a stack
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


# By default, glibc returns the memory of large activations to the kernel after every step, and page faults get it back.
# With these settings glibc keeps it: a small CNN on one thread trains 1.4 times as fast and is evaluated 3.4 times as
# fast. Other C libraries ignore them.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30),
             "MALLOC_TOP_PAD_": str(2**26)}
DRAIN_SECONDS = 2.0  # to read the remaining output of a dead worker, whose children may keep its pipes open


# With `-c`, the working directory is first on the import path, where a file of the user would hide a module of Python.
# It goes to the end, because modules of the user must still be found.
WORKER = ("import sys; sys.path[0] == '' and sys.path.append(sys.path.pop(0)); "
          "from clbench.execution.workers.process import main; main()")


class Process(WorkerHandle):
    """Handle of a worker process."""

    def __init__(self, start: Start, inbox: Inbox) -> None:
        """Start the process; its messages are put into `inbox`, and None when it has died.

        Raises:
            WorkerError: the system has no more processes, open files or memory for it.
        """
        super().__init__(inbox)
        number = str(start.threads)
        threads = {} if start.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), number)
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", WORKER], env={**ALLOCATOR, **os.environ, **threads},
                encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                errors="replace", start_new_session=True)
        except OSError as error:
            raise WorkerError(f"a worker process cannot be started ({error.strerror or error}): use fewer --workers, "
                              "or --workers 0 for none") from error
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_messages, self._collect)]
        for thread in (*self._readers, threading.Thread(target=self._wait, daemon=True)):
            thread.start()
        self.send(start)

    def _read_messages(self) -> None:
        assert self.popen.stdout
        with self.popen.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):  # incomplete, because the worker died
                    break
                try:
                    self.inbox.put((self, protocol.EVENTS.validate_json(line)))
                except ValidationError as error:  # a bug; the pool raises it, not this thread
                    self.inbox.put((self, error))

    def _collect(self) -> None:
        assert self.popen.stderr
        with self.popen.stderr as lines:
            for line in lines:
                self.tail.append(line[:500])

    def _wait(self) -> None:
        # The end of the output is no sign of death, because a child of the worker may keep it open.
        self.popen.wait()
        for thread in self._readers:
            thread.join(DRAIN_SECONDS)
        self.inbox.put((self, None))

    def send(self, message: Message) -> None:
        """Send a message. If the worker has died, the message is lost, and the inbox receives None later."""
        assert self.popen.stdin
        with contextlib.suppress(OSError):
            self.popen.stdin.write(message.line())
            self.popen.stdin.flush()

    def end(self) -> None:
        """Kill the worker and its child processes, even if it is busy."""
        if self.popen.poll() is None:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                    os.killpg(self.popen.pid, signal.SIGKILL)
            else:
                self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin
        with contextlib.suppress(OSError):  # unsent data is lost
            self.popen.stdin.close()

    def exit_reason(self) -> str:
        """Return how the worker ended; see `WorkerHandle.exit_reason`."""
        code = self.popen.returncode
        if code >= 0:
            return f"the worker process exited with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (probably out of memory; fewer --workers need less)" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"


class Worker:
    """Handles requests, in a separate process or in the user's process."""

    def __init__(self, start: Start, send: Send, registry: Registry | None = None) -> None:
        """Import torch and set up the device; without a registry, discover the installed plugins.

        Raises:
            SpecError: the device does not exist, or losses are to be compiled and there is no compiler.
            PluginError: a plugin's file can no longer be loaded.
        """
        import torch

        from clbench.execution.trial_runner import TrialRunner
        from clbench.results import provenance

        # The first optimizer makes torch import modules for seconds; the first trial's timings must not include this.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        self.send = send
        self.runner = TrialRunner(start.settings, start.device, start.command,
                                  registry or discover(files=start.plugins), start.artifacts, start.checkpoints)
        threads = start.threads_on(self.runner.device.type)  # with --device auto, the device is known only now
        if threads is not None:
            torch.set_num_threads(threads)
        self.provenance = provenance.collect("", self.runner.device, start.command)
        send(Ready(device=str(self.runner.device), provenance=self.provenance))

    def prepare(self, planned: PlannedTrial) -> None:
        """Handle `Prepare`. An error other than a `ClbenchError` occurs again in the trial, whose record stores it."""
        try:
            notes = self.runner.prepare(planned.trial, planned.label)
            stream = self.runner.stream(planned.trial)
            refuse_default_domain(planned, stream, self.runner.registry)
            estimate = self.runner.estimator.estimate_time(planned.trial, stream)
            self.send(Prepared(notes=notes, estimate=estimate))
        except ClbenchError as error:
            self.send(Refused(kind=type(error).__name__, message=str(error)))
        except (Exception, SystemExit):
            traceback.print_exc()
            self.send(Prepared(notes=[]))

    def run(self, group: Sequence[PlannedTrial]) -> None:
        """Handle `Run`. A trial that raises an exception gets a failed record."""
        self.send(Finished(records=self._records(group)))

    def _records(self, group: Sequence[PlannedTrial]) -> list[Record]:
        """Run a group and return its records. If one of several trials cannot be built, each runs alone."""
        started = datetime.datetime.now(datetime.timezone.utc)
        from clbench.execution.trial_record import failure_of, note_of_stack

        try:
            return self.runner.run_stack(group, lambda progress: self.send(Running(progress=progress)))
        except (Exception, SystemExit) as error:
            if len(group) == 1:
                plugin = str(self.runner.registry.origins.get(("method", group[0].trial.method.name), ""))
                origin = self.provenance.model_copy(update={"plugin": plugin})
                failure = failure_of(error, group[0].trial, self.runner.registry)
                return [protocol.record_failure(group[0], origin, started, failure)]
            note = note_of_stack(len(group), error)
        # As in `run_stack`, the retry follows the block, because the traceback references the tensors of the stack.
        records = [record for planned in group for record in self._records([planned])]
        return [record.model_copy(update={"notes": [*record.notes, note]}) for record in records]


def main() -> None:
    """Handle requests of the parent process until it closes standard input or exits."""
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Plugins must not read from or print to the streams that carry the messages.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in lines:
            inbox.put(line)
        os._exit(0)  # the parent is gone, so a running trial could not report its result

    def send(message: Message) -> None:
        answers.write(message.line())
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    start = protocol.REQUESTS.validate_json(inbox.get())
    try:
        with uncollected():
            worker = Worker(start, send)
    except ClbenchError as error:
        send(Refused(kind=type(error).__name__, message=str(error)))
        sys.exit(2)
    while True:
        request = protocol.REQUESTS.validate_json(inbox.get())
        if isinstance(request, Prepare):
            worker.prepare(request.planned)
        elif isinstance(request, Run):
            worker.run(request.group)


if __name__ == "__main__":
    main()
