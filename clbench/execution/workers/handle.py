"""Handle of one worker in the managing process, wherever the worker runs."""

from __future__ import annotations

import datetime
import queue
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TypeAlias

from clbench.execution.workers.protocol import Message, Prepare, Ready, Run

TAIL_LINES = 60  # of a worker's standard error, kept to be shown with a failure

Inbox: TypeAlias = "queue.SimpleQueue[tuple[WorkerHandle, Message | Exception | None] | None]"  # None: stop


class WorkerHandle(ABC):
    """A worker that has been started.

    Its messages are put into an inbox, together with the handle itself: events, an exception that is a bug and must be
    raised, and None once, when the worker has died.
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
        """Send a message; if the worker has died, it is lost, and the inbox reports the death sooner or later."""

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
        """Return the last line it wrote to standard error, if any."""
        lines = [line.strip() for line in self.tail if line.strip()]
        return f": {lines[-1]}" if lines else ""
