"""What runs on a node of a Ray cluster to lead a worker there; made by `clbench.execution.cluster`."""

from __future__ import annotations

import os
import queue
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clbench.execution.link import Inbox
from clbench.execution.process import Process
from clbench.execution.protocol import Died, Message, Note, Start


@dataclass(frozen=True)
class Begin:
    """What an actor needs to start its worker."""

    start: Start
    plugins: Mapping[str, bytes]  # those that are files, by their names
    folder: str  # where the command was started
    mark: str  # a file in the run folder


class Host:
    """The actor: leads a worker process on a node of the cluster."""

    def begin(self, begin: Begin) -> str:
        """Start the worker where the command was started, if the node has that folder, and return the node's name.

        A node without the run folder keeps no artifacts and checkpoints; a note says so.
        """
        name = socket.gethostname()
        self.inbox: Inbox = queue.SimpleQueue()
        self.files = tempfile.TemporaryDirectory(prefix="clbench-plugins-")
        for file, code in begin.plugins.items():
            Path(self.files.name, file).write_bytes(code)
        start = begin.start.model_copy(update={"plugins": [str(Path(self.files.name, file)) for file in begin.plugins]})
        if Path(begin.folder).is_dir():
            os.chdir(begin.folder)
        self.said: list[Message] = []
        if not Path(begin.mark).exists():
            start = start.model_copy(update={"artifacts": None, "checkpoints": None})
            self.said.append(Note(text=f"node {name} has not the run folder: what is trained there leaves records, but "
                                       "no adapters and no checkpoints (docs/scaling.md)"))
        self.process = Process(start, self.inbox)
        return name

    def send(self, message: Message) -> None:
        """Pass a message on to the worker."""
        self.process.send(message)

    def hear(self) -> list[Message]:
        """Wait until the worker says something, and return all it has said; the last of all is `Died`."""
        said, self.said = self.said, []
        while not said or not self.inbox.empty():
            heard = self.inbox.get()
            event = heard[1] if heard else None
            if isinstance(event, Exception):
                raise event
            said.append(event or Died(cause=self.process.cause_of_death(), tail=list(self.process.tail)))
        return said

    def end(self) -> None:
        """Make an end of the worker."""
        self.process.end()
        self.files.cleanup()
