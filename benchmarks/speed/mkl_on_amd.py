"""Measure the gain from MKL's AVX512 code on an AMD processor: `python benchmarks/speed/mkl_on_amd.py --help`.

torch's packages for x86 multiply float32 matrices with Intel's MKL. MKL uses its AVX512 code only on Intel processors,
and its AVX2 code on other processors. A function in MKL checks the manufacturer, and a preloaded library (LD_PRELOAD)
can replace this function. The script measures with and without the library in turns, each time in a separate process.
It needs Linux, a C compiler and torch with MKL.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from timeit import timeit
from typing import Any

import processes
from compare import REPORTS
from processes import write
from tabulate import tabulate

SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
MODELS = ("mlp", "mlp:width=1000")
PRODUCTS = 1000
PRODUCT = f"layer of 1000 x 1000, batch 128: {PRODUCTS:,} products"


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Return the seconds of the product and of a trial on each model, and the trials' ACC."""
    import torch

    from clbench.core.registry import discover
    from clbench.execution.trial_runner import TrialRunner
    from clbench.experiment.execution_settings import ExecutionSettings
    from clbench.experiment.plan import plan
    from clbench.experiment.spec import build
    from clbench.results.metrics import acc

    torch.set_num_threads(1)
    x, w = torch.randn(128, 1000), torch.randn(1000, 1000)
    timeit(lambda: x @ w, number=PRODUCTS)  # warm-up
    found: dict[str, Any] = {"seconds": {PRODUCT: timeit(lambda: x @ w, number=PRODUCTS)}, "ACC": {}}
    registry = discover()
    runner = TrialRunner(ExecutionSettings(threads=1), "cpu", "mkl_on_amd.py", registry)
    for model in MODELS:
        one, = plan(build({"benchmark": "split-mnist-5k", "model": model, "scenario": "class", "seeds": 1,
                           "methods": ["naive"], "recipe": {"iterations": request["iterations"], "batch_size": 128}}),
                    registry)
        record = runner.run(one)
        assert record.status == "done", record.failure
        found["seconds"][f"`{model}`, naive: training"] = sum(record.timings.train)
        found["ACC"][model] = acc(record.R)
    return found


def library(folder: Path) -> Path:
    """Compile the library that replaces MKL's check of the manufacturer."""
    source, made = folder / "mkl_avx512.c", folder / "mkl_avx512.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return made


def render(found: Sequence[tuple[dict[str, Any], dict[str, Any]]], machine: dict[str, str]) -> str:
    """Return the measurements as Markdown."""
    lines = []
    for name in found[0][0]["seconds"]:
        plain, preloaded = ([one[side]["seconds"][name] for one in found] for side in (0, 1))
        ratios = [old / new for old, new in zip(plain, preloaded, strict=True)]
        lines.append([name, f"{statistics.median(plain):.2f}", f"{statistics.median(preloaded):.2f}",
                      f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
    apart = max(abs(new["ACC"][model] - old["ACC"][model]) for old, new in found for model in MODELS)
    return "\n".join([
        "# MKL's code for AVX512 on an AMD processor\n",
        "One thread, 32 bits; the two sides in turns. Medians over repeats, and the ratio of each turn.\n",
        tabulate(lines, ["what", "as installed (s)", "AVX512 (s)", "times as fast", "smallest to largest"],
                 tablefmt="pipe", disable_numparse=True, colalign=("left", "right", "right", "right", "right")),
        f"\nThe final accuracies of a trial differ by at most {100 * apart:.1f} points: the sums are taken in another "
        "order, so numbers are rounded differently, as between two machines.\n",
        tabulate(list(machine.items()), ["machine and run", ""], tablefmt="pipe", disable_numparse=True), ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write mkl_on_amd.md and mkl_on_amd.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300, help="optimizer steps per task")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of mkl_on_amd.md and mkl_on_amd.json")
    given = parser.parse_args(argv)
    found, others = [], []
    with tempfile.TemporaryDirectory() as folder:
        env = {"LD_PRELOAD": str(library(Path(folder)))}
        for number in range(given.repeats):
            turn = [processes.ask("mkl_on_amd", {"iterations": given.iterations}, 1, one) for one in ({}, env)]
            others += [one.pop("others") for one in turn]
            found.append((turn[0], turn[1]))
            print(f"round {number + 1} of {given.repeats}", file=sys.stderr, flush=True)
    machine = {**processes.machine(1), "command": shlex.join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"),
               "repeats": str(given.repeats), "cores that other processes kept busy": f"{max(others):.2f}"}
    write(given.out, "mkl_on_amd", render(found, machine), {"machine": machine, "turns": found})


if __name__ == "__main__":
    main()
