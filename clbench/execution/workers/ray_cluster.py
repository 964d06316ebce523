"""The executor for a Ray cluster: the same pool of the same workers, on the cluster's nodes.

A worker is a process, as on one machine. An actor on its node manages it and forwards its messages. So streams and
imports stay in memory between trials, dead processes are distinguished from dead nodes, the last output of a dead
process is reported, and plugins cannot affect Ray's own process. An actor requests one CPU for each thread of its
worker, and the GPUs of the worker.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clbench.core.errors import ClbenchError, SpecError, message_of
from clbench.execution import interrupts
from clbench.execution.workers.plan import Listener, WorkerPlan
from clbench.execution.workers.pool import Inbox, Pool, WorkerHandle
from clbench.execution.workers.process import Process
from clbench.execution.workers.protocol import Died, Message, Note, Start
from clbench.experiment.trial import PlannedTrial
from clbench.results.store import MARK

PORT = 6379  # default port of `ray start --head`
REACH_SECONDS = 5.0  # timeout of a connection; Ray itself would try for minutes
END_SECONDS = 2.0  # timeout for an actor to end its worker, before Ray kills both
CALLS = 3  # calls that an actor serves at the same time: receiving takes long, and `send` and `end` must not wait


class ClusterError(ClbenchError):
    """The cluster cannot be reached or lacks the requested resources."""


def execute(todo: Sequence[PlannedTrial], plan: WorkerPlan, listener: Listener) -> None:
    """Run trials on the cluster and report each to the listener; return when all have ended.

    Raises:
        ClusterError: no cluster answers, or no node has enough CPUs and GPUs for a worker.
        ClbenchError: as `process.execute`.
    """
    folder = plan.start.artifacts.parent if plan.start.artifacts else None  # the run folder
    with connect(plan.settings.address) as ray, tempfile.NamedTemporaryFile(dir=folder, prefix=MARK) as mark:
        cluster = Cluster(ray, plan.start, Path(mark.name))
        workers = min(plan.workers, cluster.room()) if plan.shrink else plan.workers
        pool = Pool(replace(plan, workers=workers, shrink=False), listener, cluster.start, len(cluster.nodes()))
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints messages, even into a table
            pool.run(todo)


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Any]:
    """Yield the connected Ray library; a connection made by the user's code is reused and left open.

    The default address is RAY_ADDRESS, or else Ray's default port on this machine.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ClusterError("--executor ray needs Ray: pip install 'clbench[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or f"127.0.0.1:{PORT}"
    reach(address)
    try:
        with interrupts.preserve_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address}: {message_of(error)}") from None
    try:
        yield ray
    finally:
        with interrupts.preserve_handlers():
            ray.shutdown()


def reach(address: str) -> None:
    """Raise `ClusterError` if nothing listens at an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"{address!r} is no address of a Ray cluster: HOST:PORT, as in 10.0.0.1:{PORT}")
    try:
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({error}): start one with ray start --head "
                           "(docs/scaling.md), or name another --address") from None


class Cluster:
    """The cluster on which workers are started, and the resources that each worker needs."""

    def __init__(self, ray: Any, start: Start, mark: Path) -> None:
        """Choose the number of GPUs per worker.

        Args:
            ray: the connected Ray library.
            start: the first message to each worker; its device decides whether a worker gets GPUs.
            mark: a file in the run folder, by which a node checks whether it can access that folder.

        Raises:
            SpecError: device and GPUs contradict each other.
            ClusterError: no node has enough CPUs and GPUs for a worker.
        """
        self.ray = ray
        self.cpus = start.threads or 1
        has_gpus = any(node.get("GPU") for node in self._resources())
        self.gpus, device = gpus_of(start.device, start.settings.gpus, has_gpus)
        settings = start.settings.model_copy(update={"data": start.settings.data_dir.absolute()})
        worker_start = start.model_copy(update={"settings": settings, "device": device})
        plugins = {path.name: path.read_bytes() for path in start.plugins}
        self.begin = Begin(worker_start, plugins, os.getcwd(), str(mark))
        self.room()

    def _resources(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def nodes(self) -> list[int]:
        """Return the number of workers that fit on each usable node, ignoring its current load."""
        worker_counts = []
        for node in self._resources():
            worker_count = int(node.get("CPU", 0) // self.cpus)
            if self.gpus:
                gpu_count = int(node.get("GPU", 0))
                # A worker with a fraction of a GPU cannot use two GPUs. 1 // 0.2 is 4, because 0.2 is rounded up.
                worker_count = min(worker_count, gpu_count // int(self.gpus) if self.gpus >= 1
                                   else gpu_count * int(1 / self.gpus + 1e-9))
            worker_counts.append(worker_count)
        return [worker_count for worker_count in worker_counts if worker_count]

    def room(self) -> int:
        """Return the number of workers that fit on the cluster.

        Raises:
            ClusterError: none fits.
        """
        if worker_counts := self.nodes():
            return sum(worker_counts)
        resources = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in self._resources())
        requirement = f"{self.cpus} CPUs (--threads)" + (f" and {self.gpus:g} GPUs (--gpus)" if self.gpus else "")
        raise ClusterError(f"no node of the Ray cluster has the {requirement} that a worker takes, only "
                           f"{resources or 'none'}")

    def start(self, inbox: Inbox) -> WorkerHandle:
        """Request a worker from Ray, which starts it when the cluster has free resources.

        Raises:
            ClusterError: no node of the cluster is large enough for a worker.
        """
        self.room()
        actor = self.ray.remote(Host).options(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=CALLS).remote()
        return Remote(self, actor, inbox)


def gpus_of(device: str, requested: float | None, there: bool) -> tuple[float, str]:
    """Return the number of GPUs per worker and the worker's device; `there` says whether the cluster has GPUs.

    `requested` is a fraction of one GPU or a whole number; None means one if the cluster has GPUs and `device` allows
    it.

    Raises:
        SpecError: the device has an index or contradicts the number of GPUs, or the number is above 1 and not whole.
    """
    kind = device.partition(":")[0]
    if ":" in device:
        raise SpecError(f"--device {device}: Ray chooses among a node's GPUs; --device {kind}")
    gpus = requested if requested is not None else float(kind == "cuda" or (kind == "auto" and there))
    if gpus > 1 and gpus != int(gpus):
        raise SpecError(f"--gpus {gpus:g}: a fraction of one, or whole ones")
    if gpus and kind not in ("auto", "cuda"):
        raise SpecError(f"--gpus {gpus:g} with --device {kind}: leave one of them out")
    if not gpus and kind == "cuda":
        raise SpecError("--gpus 0 with --device cuda: leave one of them out")
    return gpus, "cuda" if gpus else "cpu" if kind == "auto" else kind


class Remote(WorkerHandle):
    """Handle of a worker on a node of the cluster."""

    def __init__(self, cluster: Cluster, actor: Any, inbox: Inbox) -> None:
        """Start a thread that receives the messages of an actor, which Ray may not have started yet."""
        super().__init__(inbox)
        self.cluster, self.actor = cluster, actor
        self.name, self.death = "", "the worker ended"
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        ray = self.cluster.ray
        try:
            self.name = ray.get(self.actor.begin.remote(self.cluster.begin))
            while True:
                for message in ray.get(self.actor.receive.remote()):
                    if isinstance(message, Died):
                        process = "the worker process"
                        self.death = message.cause.replace(process, f"{process} on node {self.name}")
                        self.tail.extend(message.tail)
                        self.inbox.put((self, None))
                        return
                    self.inbox.put((self, message))
        except ray.exceptions.RayTaskError as error:  # a bug; the pool raises it, not this thread
            self.inbox.put((self, error))
        except ray.exceptions.RayError as error:  # the node or Ray's process on it has died
            place = f" on node {self.name}" if self.name else ""
            self.death = f"Ray lost the worker{place} ({type(error).__name__})"
            self.tail.extend(f"{line}\n" for line in str(error).splitlines())
            self.inbox.put((self, None))

    def send(self, message: Message) -> None:
        """Send a message; see `WorkerHandle.send`."""
        self.actor.send.remote(message)

    def end(self) -> None:
        """Stop the worker and its actor; see `WorkerHandle.end`."""
        ray = self.cluster.ray
        if self.name:
            ray.wait([self.actor.end.remote()], timeout=END_SECONDS)
        ray.kill(self.actor)
        self.listener.join(END_SECONDS)

    def exit_reason(self) -> str:
        """Return how the worker ended; see `WorkerHandle.exit_reason`."""
        return self.death


@dataclass(frozen=True)
class Begin:
    """The data with which an actor starts its worker."""

    start: Start
    plugins: Mapping[str, bytes]  # source of each plugin that is a file, by file name
    folder: str  # working directory of the command
    mark: str  # a file in the run folder


class Host:
    """The Ray actor, which manages a worker process on a node of the cluster."""

    def begin(self, begin: Begin) -> str:
        """Start the worker and return the node's name.

        The worker starts in the working directory of the command, if the node has it. If the node does not have the
        run folder, the worker writes no artifacts and no checkpoints, and a note reports this.
        """
        name = socket.gethostname()
        self.inbox: Inbox = queue.SimpleQueue()
        self.files = tempfile.TemporaryDirectory(prefix="clbench-plugins-")
        for file, code in begin.plugins.items():
            Path(self.files.name, file).write_bytes(code)
        files = tuple(Path(self.files.name, file) for file in begin.plugins)
        start = begin.start.model_copy(update={"plugins": files})
        if Path(begin.folder).is_dir():
            os.chdir(begin.folder)
        self.messages: list[Message] = []
        if not Path(begin.mark).exists():
            start = start.model_copy(update={"artifacts": None, "checkpoints": None})
            self.messages.append(Note(text=f"node {name} has not the run folder: what is trained there leaves records, "
                                      "but no adapters and no checkpoints (docs/scaling.md)"))
        self.process = Process(start, self.inbox)
        return name

    def send(self, message: Message) -> None:
        """Send a message to the worker."""
        self.process.send(message)

    def receive(self) -> list[Message]:
        """Wait for messages of the worker and return all that have arrived; the last message of a worker is `Died`."""
        messages, self.messages = self.messages, []
        while not messages or not self.inbox.empty():
            entry = self.inbox.get()
            event = entry[1] if entry else None
            if isinstance(event, Exception):
                raise event
            messages.append(event or Died(cause=self.process.exit_reason(), tail=list(self.process.tail)))
        return messages

    def end(self) -> None:
        """Stop the worker."""
        self.process.end()
        self.files.cleanup()
