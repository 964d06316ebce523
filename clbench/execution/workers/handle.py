"""One worker as the process that leads it sees it, wherever it runs."""

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

    What it says is put into an inbox with the link itself: events, an exception where that is a bug to be raised, and
    None, once, when the worker has died.
    """

    def __init__(self, inbox: Inbox) -> None:
        """Expect nothing of it yet."""
        self.inbox = inbox
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ready: Ready | None = None
        self.request: Prepare | Run | None = None
        self.since = datetime.datetime.now(datetime.timezone.utc)
        self.clock = time.monotonic()

    @abstractmethod
    def send(self, message: Message) -> None:
        """Send a message; to a dead worker it is lost, and its death is in the inbox or about to be."""

    @abstractmethod
    def end(self) -> None:
        """Make an end of the worker, and of what it may have started, whatever it is doing."""

    @abstractmethod
    def exit_reason(self) -> str:
        """Return how the worker ended, in words that begin with it."""

    def ask(self, request: Prepare | Run) -> None:
        """Send a request and remember it until it is answered."""
        self.request, self.since = request, datetime.datetime.now(datetime.timezone.utc)
        self.clock = time.monotonic()
        self.send(request)

    @property
    def seconds(self) -> float:
        """Return for how long it has had its last request; the clock on the wall may jump meanwhile."""
        return time.monotonic() - self.clock

    def last_stderr_line(self) -> str:
        """Return the last line it wrote to standard error, if any."""
        lines = [line.strip() for line in self.tail if line.strip()]
        return f": {lines[-1]}" if lines else ""
