"""How long a user waits for the commands themselves: `python benchmarks/speed/start.py --help`.

Whole commands by the wall clock, in processes of their own: what needs no training, a study of six methods and three
seeds on a machine that has just been set up (no stream cached) and again, from Enter to the first training step, and
a report of a hundred records. Full MNIST is trained on for an epoch where it lies in the data folder.
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
from processes import busy_elsewhere
from tabulate import tabulate
from written import write

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
    """Return the wall seconds of a `clbench` command, which must go through."""
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
    """Make a run folder of `RECORDS` records from those of another, each with a seed of its own."""
    found = Store(run).read()[0]
    store = Store(many)
    for number in range(RECORDS):
        record = found[number % len(found)]
        trial = record.trial.model_copy(update={"seed": number})
        store.write(record.model_copy(update={"trial": trial, "key": trial.key}))


def waits(data: Path, cwd: Path) -> dict[str, float]:
    """Return the seconds of each wait, once."""
    def clbench(*args: str, where: Path) -> float:
        return seconds(*args, data=where, cwd=cwd)

    new = cwd / "data"  # where no stream has been cached
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
    """Return what so many measurements give, each in a folder of its own."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, took in measure(Path(folder)).items():
                found.setdefault(name, []).append(took)
                print(f"round {number + 1}: {name}: {took:.2f} s", file=sys.stderr, flush=True)
    return found


def render(found: dict[str, list[float]], machine: dict[str, str]) -> str:
    """Return the measurements as markdown."""
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
