"""Measure the error of the estimated remaining time, in three runs of different kinds.

    python benchmarks/speed/time_left.py [RUN ...] [--out benchmarks/speed/time_left.md]

`small` is a default comparison. `methods` has all our methods with few steps, so that evaluation is a large part of the
time. `cnn` has a convolutional network with cheap methods and methods that take five times as long. Each runs with two
workers of one thread in a new folder. The script reads the estimate of the progress lines every quarter of a second.
Times are wall times, so other work on the machine affects them.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from clbench.core.registry import discover
from clbench.execution import run
from clbench.execution.progress import PlainDisplay
from clbench.experiment.overrides import read_spec
from clbench.results.provenance import machine

ROOT = Path(__file__).resolve().parents[2]
MIXED = "naive,frozen,ncm,ewc,lwf,er,der++,gpm,pnn,joint"
RUNS: dict[str, tuple[str | None, dict[str, Any]]] = {  # study file, and options on the command line
    "small": ("benchmarks/split_mnist_5k.toml", {"seeds": "2"}),
    "methods": ("benchmarks/all_methods.toml", {"seeds": "1", "iterations": 25}),
    "cnn": (None, {"model": "cnn", "seeds": "2", "epochs": 1, "scenario": "class", "methods": MIXED}),
}
EVERY = 0.25  # seconds
POINTS = (0.0, 0.1, 1 / 3, 0.5, 2 / 3, 0.9)  # shares of the run at which the estimate is shown


def command(name: str) -> str:
    """Return the command line of a run."""
    file, flags = RUNS[name]
    return " ".join(["clbench run", *filter(None, [file]), *(f"--{flag} {value}" for flag, value in flags.items())])


class Look(NamedTuple):
    """An estimate: its time in seconds since the first trial started, and the estimated remaining seconds."""

    now: float
    left: float


def watched(name: str, folder: Path) -> tuple[float, list[Look]]:
    """Execute a run; return the seconds from the start of its first trial to the end of its last, and the estimates."""
    file, flags = RUNS[name]
    found = read_spec(ROOT / file if file else None, {}, {**flags, "workers": 2, "threads": 1, "device": "cpu"}, ())
    ready = run.prepare(found, discover(), folder)
    shown, over = PlainDisplay(Console(file=io.StringIO()), ready.missing), threading.Event()
    looks: list[Look] = []

    def watch() -> None:
        while not over.wait(EVERY):
            now = time.monotonic()
            left = shown.tally.left.seconds(now)
            if shown.tally.left.began is not None and left is not None:
                looks.append(Look(now, left))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with shown:
        run.execute(ready, shown, command=f"benchmarks/speed/time_left.py {name}")
        ended = time.monotonic()
    over.set()
    thread.join()
    began = shown.tally.left.began
    assert began is not None
    return ended - began, [Look(now - began, left) for now, left in looks if now < ended]


def row(name: str, whole: float, looks: Sequence[Look]) -> list[str]:
    """Return a row for a run: errors of the estimated whole time at some points, and the largest errors, in percent."""
    at = [min(looks, key=lambda look, point=point: abs(look.now - point * whole)) for point in POINTS]
    late = [look for look in looks if look.now >= whole / 3]
    errors = [abs(look.now + look.left - whole) / whole for look in late]
    of_left = [abs(look.now + look.left - whole) / (whole - look.now) for look in late if look.now <= 0.9 * whole]
    return [name, f"{whole:.0f}", *(f"{100 * (look.now + look.left - whole) / whole:+.0f}" for look in at),
            f"{100 * max(errors):.0f}", f"{100 * max(of_left):.0f}"]


def main() -> None:
    """Execute the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", default=list(RUNS), metavar="RUN", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, *watched(name, Path(folder))))
        print(" ".join(rows[-1]), flush=True)
    heads = ["run", "seconds", *(f"at {100 * point:.0f}%" for point in POINTS), "worst from 1/3 on, % of the run",
             "worst from 1/3 to 9/10, % of what was left"]
    lines = ["# Time left", "", f"`python benchmarks/speed/time_left.py` on {machine()}; {time.strftime('%Y-%m-%d')}.",
             "How much longer (+) or shorter (-) the estimate made the whole run than it was, in percent, at some "
             "points of the run; 0% is the first estimate, before any trial has ended. Wall clock on a machine that "
             "does other work, too. Each with `--workers 2 --threads 1 --device cpu`.", "",
             *(f"- {name}: `{command(name)}`" for name in given.runs), "",
             "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads),
             *("| " + " | ".join(cells) + " |" for cells in rows)]
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
