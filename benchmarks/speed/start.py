"""Measure how long a user waits for whole commands: `python benchmarks/speed/start.py --help`.

The script measures the wall time of commands in separate processes. These are commands without training, and a study of
six methods and three seeds, first without a cached stream and then again. It also measures the time until the first
training step, and a report of a hundred records. If full MNIST is in the data folder, it is trained for one epoch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import processes
from compare import REPORTS
from processes import busy_elsewhere, write
from tabulate import tabulate

from clbench.core.compat import usable_cores
from clbench.data import default_data_dir
from clbench.results.store import Store

METHODS = "naive,ewc,er,lora,pnn,shared-private"
RECORDS = 100
PLUGIN = """
    import time
    from pathlib import Path
    from clbench import Strategy, StrategyInfo, hookimpl

    class First(Strategy):
        def loss(self, batch):
            mark = Path({mark!r})
            if not mark.exists():
                mark.write_text(repr(time.time()))
            return super().loss(batch)

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo("first-step", First, "notes when its first training step begins")]
"""


def seconds(*args: str, data: Path, cwd: Path) -> float:
    """Run a `clbench` command, which must succeed, and return its wall seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clbench", *args], check=True, cwd=cwd, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, env={**os.environ, "CLBENCH_DATA": str(data)})
    return time.perf_counter() - began


def to_first_step(data: Path, cwd: Path) -> float:
    """Return the seconds from a command's start to the first step of its first trial."""
    mark, file = cwd / "mark", cwd / "first_step.py"
    mark.unlink(missing_ok=True)
    file.write_text(textwrap.dedent(PLUGIN.format(mark=str(mark))))
    began = time.time()
    seconds("run", "--plugin", str(file), "--methods", "first-step", "--out", f"runs/{began}", data=data, cwd=cwd)
    return float(mark.read_text()) - began


def many_records(run: Path, many: Path) -> None:
    """Write a run folder of `RECORDS` records, which are copies of those of another run with different seeds."""
    found = Store(run).read()[0]
    store = Store(many)
    for number in range(RECORDS):
        record = found[number % len(found)]
        trial = record.trial.model_copy(update={"seed": number})
        store.write(record.model_copy(update={"trial": trial, "key": trial.key}))


def waits(data: Path, cwd: Path) -> dict[str, float]:
    """Measure each wait once and return its seconds."""
    def clbench(*args: str, where: Path) -> float:
        return seconds(*args, data=where, cwd=cwd)

    new = cwd / "data"  # a new folder, without cached streams
    study = ("run", "--methods", METHODS, "--seeds", "3")
    found = {"`clbench --help`": clbench("--help", where=new), "`clbench methods`": clbench("methods", where=new),
             f"`clbench {shlex.join(study)}`, the first time": clbench(*study, "--out", "runs/first", where=new),
             "the same, a second time": clbench(*study, "--out", "runs/second", where=new),
             "from Enter to the first training step, stream cached": to_first_step(new, cwd)}
    many_records(cwd / "runs/second", cwd / "runs/many")
    found[f"`clbench report` on {RECORDS} records"] = clbench("report", "runs/many", where=new)
    if (data / "MNIST" / "raw").is_dir():
        full = (*study, "--benchmark", "split-mnist", "--epochs", "1")
        found[f"`clbench {shlex.join(full)}`"] = clbench(*full, "--out", "runs/full", where=data)
    return found


def repeated(measure: Callable[[Path], dict[str, float]], repeats: int) -> dict[str, list[float]]:
    """Repeat the measurements, each time in a new folder, and return the seconds by name."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, took in measure(Path(folder)).items():
                found.setdefault(name, []).append(took)
                print(f"round {number + 1}: {name}: {took:.2f} s", file=sys.stderr, flush=True)
    return found


def render(found: dict[str, list[float]], machine: dict[str, str]) -> str:
    """Return the measurements as Markdown."""
    lines = [[name, f"{statistics.median(took):.2f}", f"{min(took):.2f} to {max(took):.2f}"]
             for name, took in found.items()]
    return "\n".join([
        "# How long the commands take\n", "Wall seconds of whole commands, medians over repeats.\n",
        tabulate(lines, ["wait", "seconds", "smallest to largest"], tablefmt="pipe", disable_numparse=True,
                 colalign=("left", "right", "right")), "",
        tabulate(list(machine.items()), ["machine and run", ""], tablefmt="pipe", disable_numparse=True), ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write start.md and start.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data_dir(),
                        help="folder of data sets (default: CLBENCH_DATA, else the user's cache folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of start.md and start.json")
    given = parser.parse_args(argv)
    described = processes.machine(usable_cores())
    before, began = busy_elsewhere(), time.perf_counter()
    found = repeated(lambda folder: waits(given.data, folder), given.repeats)
    after = busy_elsewhere()
    busy = "unknown" if before is None or after is None else f"{(after - before) / (time.perf_counter() - began):.2f}"
    machine = {**described, "command": shlex.join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"),
               "repeats": str(given.repeats), "cores that other processes kept busy": busy}
    write(given.out, "start", render(found, machine), {"machine": machine, "seconds": found})


if __name__ == "__main__":
    main()
