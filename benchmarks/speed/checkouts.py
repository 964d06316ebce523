"""Compare the speed of two checkouts of clbench: `python benchmarks/speed/checkouts.py ../base`.

Each checkout has a process. The two take turns with the same trial, so that other work on the machine affects both. The
table shows processor seconds in the other checkout divided by those in this one, for training, evaluation and the whole
trial. If a ratio is above 1, this checkout is faster. The interval is a 95% interval of the geometric mean.

With `--commands`, the script compares whole commands instead, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tabulate import tabulate

Measured = TypeVar("Measured")
HERE = Path(__file__).resolve().parents[2]
PARTS = ("train", "evaluate", "all")
SETTINGS = {  # method -> benchmark, model, epochs
    **{method: ("split-mnist-5k", "mlp", 10) for method in ("naive", "lora", "lwf", "pnn", "ewc", "er")},
    **{method: ("split-cifar100:tasks=2:train_per_class=4:test_per_class=2", "timm:vit_small_patch14_dinov2:size=56",
                1) for method in ("lora:rank=8:targets=q+v", "l2p")},
    **{method: ("synthetic:tasks_10", "vit-tiny:patch=4:width=96:depth=6:heads=3", 3) for method in (
        "lora:layers=blocks\\.[56]\\..*:base=random", "ncm:base=random", "slda:base=random", "ranpac:base=random",
        "frozen:base=random")},
}
COMMANDS = ("--help", "methods", "run --methods ewc,lora --dry-run --workers 0", "report reports/split_mnist")


def work() -> None:
    """Read trials from standard input, one line of JSON each, run them and print their seconds."""
    import clbench

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            record, = clbench.run(json.loads(line), workers=0, threads=1, device="cpu", out=Path(folder) / "run",
                                  progress=False)
        assert record.status == "done", record.failure
        times = record.timings
        train, evaluate = sum(times.train_cpu), sum(times.evaluate_cpu)
        print(json.dumps([train, evaluate, train + evaluate + sum(times.consolidate_cpu)]), flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    """Return a process that runs trials with the code of a checkout."""
    return subprocess.Popen([sys.executable, __file__, "--work"], cwd=checkout, env=environment(checkout),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment of a process that uses the code of a checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (checkout, checkout / "plugins")))}


def time_command(checkout: Path, command: str) -> float:
    """Run a command of clbench with the code of a checkout; return its processor seconds."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "clbench", *command.split()], cwd=checkout, env=environment(checkout),
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def in_turns(other: Callable[[], Measured], this: Callable[[], Measured], pairs: int
             ) -> list[tuple[Measured, Measured]]:
    """Measure both in turns, each first in half of the pairs. The first measurement of each does not count."""
    other(), this()  # the first calls also import, compile and cache
    measured = []
    for number in range(pairs):
        if number % 2:
            before, after = other(), this()
        else:
            after, before = this(), other()
        measured.append((before, after))
    return measured


def compare_commands(other: Path, pairs: int) -> None:
    """Print a row for each command."""
    rows = []
    for command in COMMANDS:
        measured = in_turns(partial(time_command, other, command), partial(time_command, HERE, command), pairs)
        rows.append([f"clbench {command}", interval([before / after for before, after in measured]),
                     f"{sum(after for _, after in measured) / pairs:.2f}"])
    print(tabulate(rows, ["command", "all", "seconds"]))


def ask(process: subprocess.Popen[str], spec: str) -> list[float]:
    """Run a trial in a process and return its seconds."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(spec + "\n")
    process.stdin.flush()
    seconds: list[float] = json.loads(process.stdout.readline())
    return seconds


def interval(ratios: list[float]) -> str:
    """Return the geometric mean of ratios and its interval."""
    from clbench.results.stats import t_interval

    logs = t_interval([math.log(ratio) for ratio in ratios])
    if logs.low is None or logs.high is None:
        return f"{math.exp(logs.mean):.2f}"
    return f"{math.exp(logs.mean):.2f} [{math.exp(logs.low):.2f}, {math.exp(logs.high):.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="the other checkout, such as a git worktree")
    parser.add_argument("--methods", default=",".join(SETTINGS), help="comma-separated (default: all)")
    parser.add_argument("--commands", action="store_true", help="compare commands, not trials")
    parser.add_argument("--weights", type=Path, help="folder that benchmarks/weights/fetch.py has filled; without it, "
                        "the rows of pretrained networks are left out")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of trials (default: 9)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return
    if given.commands:
        compare_commands(given.checkout.resolve(), given.pairs)
        return
    other, this = start(given.checkout.resolve()), start(HERE)
    rows = []
    for method in given.methods.split(","):
        benchmark, model, epochs = SETTINGS[method]
        setting = {"benchmark": benchmark, "model": model, "methods": [method], "seeds": [1000],
                   "recipe": {"epochs": epochs}}
        if model.startswith("timm:"):
            if given.weights is None:
                continue
            setting["weights"] = str(given.weights.resolve() / "vit_s14.safetensors")
        spec = json.dumps(setting)
        pairs = in_turns(partial(ask, other, spec), partial(ask, this, spec), given.pairs)
        rows.append([method, *(interval([max(a[i], 1e-3) / max(b[i], 1e-3) for a, b in pairs]) for i in range(3)),
                     f"{sum(b[2] for _, b in pairs) / len(pairs):.2f}"])
        print(tabulate(rows[-1:], tablefmt="plain"), flush=True)
    print(tabulate(rows, ["method", *PARTS, "seconds"]))


if __name__ == "__main__":
    main()
