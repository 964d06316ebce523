"""Run each measurement in a separate process, with its own threads, cores, imports and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class MeasurementError(Exception):
    """A process ended without a measurement; the message has the last line of its error output."""


def ask(module: str, request: Mapping[str, Any], threads: int, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Call `module.answer(request)` in a new process on the first `threads` usable cores, and return the result.

    `env` is added to the environment.

    The result gets the key `others`: the mean number of cores that other processes used (None if not on Linux).

    Raises:
        MeasurementError: the process failed.
    """
    count = str(threads)
    whole = {**os.environ, **(env or {}), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    before, began = busy_elsewhere(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, str(HERE / "processes.py"), module, str(result), repr(time.time()), count],
            input=json.dumps(request), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=whole,
            errors="replace", cwd=HERE, check=False)
        if done.returncode or not result.exists():
            words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise MeasurementError(f"exit code {done.returncode}: {words[-1] if words else 'no word'}")
        answer: dict[str, Any] = json.loads(result.read_text())
    after, wall = busy_elsewhere(), time.perf_counter() - began
    return {**answer, "others": None if before is None or after is None else max(0.0, after - before) / wall}


def machine(threads: int) -> dict[str, Any]:
    """Return a description of the machine, the versions and the commit."""
    return {name: fact for name, fact in ask("machine", {}, threads).items() if name != "others"}


def busy_elsewhere() -> float | None:
    """Return the busy seconds of all cores so far, without this process and its children; None if not on Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq = map(int, stat.read_text().split(maxsplit=8)[1:8])
    own = os.times()
    return ((user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
            - own.user - own.system - own.children_user - own.children_system)


def pin(cores: int) -> None:
    """Restrict this process and its children to `cores` cores, if the system can, so that all contenders are equal."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def write(folder: Path, name: str, text: str, found: Mapping[str, Any]) -> None:
    """Write a report as NAME.md and its measurements as NAME.json, and print the report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)


def main() -> None:
    """Answer the request on standard input. `ask` starts this in the new process."""
    import importlib

    name, result, started, cores = sys.argv[1:]
    pin(int(cores))
    request = json.load(sys.stdin)
    answer = importlib.import_module(name).answer(request, float(started))
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
