"""Measure the overhead of a trial on a Ray cluster: `python benchmarks/speed/cluster.py --help`.

The cluster is one node on this machine. Its trials mostly sleep (half a second, and some milliseconds of work), so that
more workers than cores can run and the measurement shows the overhead instead of training. The script measures the same
with worker processes on this machine, without Ray. It then times separately the parts of a run that grow with the
number of trials, and extrapolates to 10,000 trials on 100 GPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import processes
from compare import REPORTS
from processes import write
from tabulate import tabulate

from clbench.core.compat import usable_cores
from clbench.core.registry import discover
from clbench.execution import run
from clbench.execution.workers.plan import Listener, TrialQueue
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.results.records import Record
from clbench.results.store import Store

SLEEP = 0.5  # seconds that a trial sleeps
TRIALS = 18  # trials of each worker; only the last two thirds are timed, when every worker is warm
RECORDS = 500  # number of records that are written and read
MANY, GPUS, MINUTES = 10_000, 100, 10.0  # for the extrapolation: trials, GPUs, and minutes of a trial on one GPU
PLUGIN = f"""
    import time
    from clbench import Strategy, StrategyInfo, hookimpl

    class Sleeper(Strategy):
        def before_task(self, task):
            time.sleep({SLEEP} if task.index == 0 else 0)

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo("sleeper", Sleeper, "sleeps before its first task")]
"""


@dataclass(frozen=True)
class Rate:
    """The measured rate of trials of one executor with some number of workers."""

    executor: str
    workers: int
    trials: int  # number of trials in the timed part
    seconds: float
    own: float  # mean of the seconds in a trial's record
    leading: float  # CPU seconds of the main process for each trial

    @property
    def throughput(self) -> float:
        """Return the trials per second."""
        return self.trials / self.seconds

    @property
    def overhead(self) -> float:
        """Return the seconds per trial that a worker spends outside the trial."""
        return self.workers / self.throughput - self.own


class Clock(Listener):
    """Clock that times the last two thirds of the trials, without the last trial of each worker."""

    def __init__(self, workers: int) -> None:
        """Set the first and last record that are timed."""
        # Workers end their trials almost at the same time, so only whole rounds of trials are counted.
        self.first, self.last = workers * (TRIALS // 3), workers * (TRIALS - 1)
        self.records: list[Record] = []
        self.times: list[tuple[float, float]] = []  # wall seconds, and CPU seconds of the main process

    def finished(self, record: Record) -> None:
        """Read the clocks at the first and the last timed record."""
        self.records.append(record)
        if len(self.records) in (self.first, self.last):
            self.times.append((time.perf_counter(), time.process_time()))


def measure(executor: str, workers: int, file: Path, address: str) -> tuple[Rate, Record]:
    """Return the rate of one executor, and the first record."""
    spec = build({"methods": "sleeper", "seeds": TRIALS * workers, "device": "cpu", "model": "mlp:width=10",
                  "recipe": {"iterations": 1, "batch_size": 8},
                  "execution": {"workers": workers, "threads": 1, "executor": executor,
                                **({"address": address} if executor == "ray" else {})}})
    clock = Clock(workers)
    with tempfile.TemporaryDirectory() as folder:
        ready = run.prepare(spec, discover(files=[file]), Path(folder))
        run.execute(ready, clock, command="benchmarks/speed")
    (began, cpu_began), (ended, cpu_ended) = clock.times
    trials = clock.last - clock.first
    timed = [r.timings for r in clock.records[clock.first:]]
    own = statistics.fmean(sum(t.train) + sum(t.consolidate) + sum(t.evaluate) for t in timed)
    return Rate(executor, workers, trials, ended - began, own, (cpu_ended - cpu_began) / trials), clock.records[0]


def growing(record: Record) -> dict[str, float]:
    """Return the seconds per trial, in a run of `MANY`, to plan it, assign it, and write and read its record."""
    registry, seconds = discover(), {}

    def timed(name: str, count: int, began: float) -> None:
        seconds[name] = (time.perf_counter() - began) / count

    methods = [{"name": "ewc", "options": {"strength": [float(n) for n in range(1, 51)]}}]
    spec = build({"methods": methods, "seeds": MANY // 100, "scenario": "task,class"})
    began = time.perf_counter()
    planned = plan(spec, registry)
    timed("planned", len(planned), began)
    assert len(planned) == MANY
    waiting, began = TrialQueue(planned), time.perf_counter()
    while waiting.left:
        waiting.took(waiting.take(None, "cpu"), 1.0)
    timed("given out", MANY, began)
    trials = [record.trial.model_copy(update={"seed": seed}) for seed in range(RECORDS)]
    records = [record.model_copy(update={"trial": trial, "key": trial.key}) for trial in trials]
    with tempfile.TemporaryDirectory() as folder:
        store, began = Store(Path(folder)), time.perf_counter()
        for one in records:
            store.write(one)
        timed("record written", RECORDS, began)
        began = time.perf_counter()
        assert len(store.read()[0]) == RECORDS
        timed("record read", RECORDS, began)
    return seconds


def extrapolation(rates: Sequence[Rate], growth: dict[str, float]) -> dict[str, float]:
    """Extrapolate the measurements to `MANY` trials of `MINUTES` minutes on `GPUS` GPUs.

    The main process works sequentially: in addition to its CPU time, it waits until each record is on disk.
    """
    ray = [r for r in rates if r.executor == "ray"]
    overhead = max(r.overhead for r in ray)
    leading = max(r.leading for r in ray) + growth["given out"] + growth["record written"]
    return {"hours": MANY * (60 * MINUTES + overhead) / GPUS / 3600, "overhead (%)": 100 * overhead / (60 * MINUTES),
            "leading process, busy (%)": 100 * leading * GPUS / (60 * MINUTES),
            "trials per second that keep it busy": 1 / leading,
            "shortest trial that keeps the GPUs busy (s)": GPUS * leading,
            "before the first trial (s)": MANY * (growth["planned"] + growth["record read"])}


def render(rates: Sequence[Rate], growth: dict[str, float], far: dict[str, float], machine: dict[str, Any]) -> str:
    """Return the report."""
    rows = [[r.executor, r.workers, r.trials, f"{r.throughput:.2f}", f"{1000 * r.own:.0f}", f"{1000 * r.overhead:.0f}",
             f"{1000 * r.leading:.1f}"] for r in rates]
    head = ["executor", "workers", "trials", "trials/s", "a trial's own time (ms)", "overhead per trial (ms)",
            "leading process, CPU per trial (ms)"]
    parts = [["each of 10,000 trials " + name, f"{1000 * value:.2f} ms"] for name, value in growth.items()]
    more = [[name, f"{value:.3g}"] for name, value in far.items()]
    return "\n".join([
        "# Overhead of a trial on a Ray cluster", "",
        f"Trials that sleep {SLEEP:g} s and train five steps, on one node; `local` is the same without Ray. "
        f"{machine['machine']}; "
        f"Ray {machine['ray']}, Python {machine['python']}, commit {machine['commit']}.", "",
        tabulate(rows, head, "pipe"), "", tabulate(parts, ["grows with the trials", "takes"], "pipe"), "",
        f"Extrapolated to {MANY:,} trials of {MINUTES:g} minutes on {GPUS} GPUs, one worker each:", "",
        tabulate(more, ["what", "comes to"], "pipe"), ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it with the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of cluster.md and cluster.json")
    found = parser.parse_args(argv)
    import ray
    from ray.cluster_utils import Cluster

    counts = [int(part) for part in found.workers.split(",")]
    machine = {**processes.machine(usable_cores()), "ray": ray.__version__}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # the priority of workers without Ray
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": max(counts), "include_dashboard": False})
    rates = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sleeping_plugin.py"
            file.write_text(textwrap.dedent(PLUGIN))
            for workers in counts:
                for executor in ("local", "ray"):
                    rate, record = measure(executor, workers, file, cluster.address)
                    rates.append(rate)
                    print(f"{executor} {workers}: {rate.throughput:.2f} trials/s", file=sys.stderr)
    finally:
        cluster.shutdown()
    growth = growing(record)
    far = extrapolation(rates, growth)
    write(found.out, "cluster", render(rates, growth, far, machine), {
        "machine": machine, "command": " ".join(["python", *sys.argv]), "rates": [asdict(r) for r in rates],
        "growing": growth, "extrapolation": far})
    return 0


if __name__ == "__main__":
    sys.exit(main())
