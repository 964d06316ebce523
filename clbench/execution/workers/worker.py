"""A worker: runs the trials it is given, one at a time.

`python -m clbench.execution.workers.worker` speaks JSON lines.
"""

from __future__ import annotations

import datetime
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from clbench.core.compat import uncollected
from clbench.core.errors import ClbenchError
from clbench.core.registry import Registry, discover
from clbench.execution.workers import protocol
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

Send = Callable[[Message], None]


class Worker:
    """Answers requests, in a process of its own or in the user's process."""

    def __init__(self, start: Start, send: Send, registry: Registry | None = None) -> None:
        """Import torch and set up the device; without a registry, discover the installed plugins.

        Raises:
            SpecError: the device does not exist, or losses are to be compiled and there is no compiler.
            PluginError: a plugin's file can no longer be loaded.
        """
        import torch

        from clbench.execution.trial_runner import TrialRunner
        from clbench.results import provenance

        # The first optimiser makes torch import seconds' worth of modules, which the first trial's clock must not see.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        self.send = send
        self.runner = TrialRunner(start.settings, start.device, start.command,
                                  registry or discover(files=start.plugins), start.artifacts, start.checkpoints)
        accelerated = self.runner.device.type != "cpu"  # known here first: with --device auto torch has to be asked
        threads = start.alone if accelerated and start.alone is not None else start.threads
        if threads is not None:
            torch.set_num_threads(threads)
        self.provenance = provenance.collect("", self.runner.device, start.command)
        send(Ready(device=str(self.runner.device), provenance=self.provenance))

    def prepare(self, planned: PlannedTrial) -> None:
        """Answer `Prepare`. Errors other than `ClbenchError` are left to the trial, whose record stores them."""
        try:
            notes = self.runner.prepare(planned.trial, planned.label)
            foreseen = self.runner.estimator.estimate_time(planned.trial, self.runner.stream(planned.trial))
            self.send(Prepared(notes=notes, foreseen=foreseen))
        except ClbenchError as error:
            self.send(Refused(kind=type(error).__name__, message=str(error)))
        except Exception:
            traceback.print_exc()
            self.send(Prepared(notes=[]))

    def run(self, group: Sequence[PlannedTrial]) -> None:
        """Answer `Run`; an exception that escapes the trials becomes a failed record of each."""
        started = datetime.datetime.now(datetime.timezone.utc)
        from clbench.training.facts import failure_of

        try:
            records = self.runner.run_stack(group, lambda progress: self.send(Running(progress=progress)))
        except Exception as error:
            plugin = str(self.runner.registry.origins["method", group[0].trial.method.name])
            origin = self.provenance.model_copy(update={"plugin": plugin})
            facts = failure_of(error, group[0].trial, self.runner.registry)
            records = [protocol.failed(planned, origin, started, facts) for planned in group]
        self.send(Finished(records=records))


def main() -> None:
    """Serve the parent process until it closes standard input or exits."""
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Plugins must not print to or read from the streams of the protocol.
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
