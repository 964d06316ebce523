"""Compare LoRA on pretrained models of timm with loops with PEFT: `python benchmarks/speed/pretrained.py --help`.

All contenders train the same adapters (rank 8, on qkv and proj, or on all layers of a convolutional network) and a head
on the same tasks of images. They evaluate all test images before the first task and after each. Each measurement has a
separate process, and contenders take turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
from processes import MeasurementError, ask
from table import facts
from tabulate import tabulate

from clbench.core.files import default_data_dir
from clbench.execution.workers.process import ALLOCATOR

MODULE = "contenders_pretrained"
LOOP, USUAL = "PEFT, tensors resized on the device", "PEFT, PIL Resize and DataLoader"
CONTENDERS = ("clbench", "clbench blocks:4", "clbench 4 seeds stacked", "clbench 4 seeds in turn",
              "clbench 4 seeds in workers", LOOP, USUAL, "Avalanche Naive, PEFT")
MODELS = {"vit": ("timm:vit_small_patch14_dinov2", "vit_s14.safetensors"),
          "lite0": ("timm:tf_efficientnet_lite0", "efficientnet_lite0.safetensors")}
REPORTS = Path(__file__).resolve().parents[2] / "reports" / "speed"
HEAD = ["contender", "training /s", "(min to max)", "÷ loop", "÷ usual", "evaluation /s", "÷ loop", "peak MB"]
LEGEND = """\
Images per second; medians over repeats. *÷ loop*: over the best loop written by hand ({loop}); *÷ usual*: over the
usual one ({usual}). Several seeds: images of all together. *peak MB*: of the process, its workers added."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="folder that benchmarks/weights/fetch.py has filled")
    add("--model", choices=MODELS, default="vit")
    add("--size", type=int, default=56, help="pixels along each side")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
        help=f"some contenders of {'; '.join(CONTENDERS)}")
    add("--tasks", type=int, default=2)
    add("--per-class", type=int, default=40, help="training images of a class, ten classes a task; a quarter in tests")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=32)
    add("--augment", choices=("none", "crop-flip"), default="none")
    add("--threads", type=int, default=2, help="cores and threads of every contender")
    add("--device", default="cpu", help="cpu or cuda")
    add("--repeats", type=int, default=3)
    add("--data", type=Path, help="folder of data sets (default: CLBENCH_DATA, else the user's cache folder)")
    add("--out", type=Path, default=REPORTS, help="folder of pretrained.md and pretrained.json, which grow")
    found = parser.parse_args(argv)
    found.data = (found.data or default_data_dir()).resolve()
    found.weights = found.weights.resolve()
    return found


def requests(found: argparse.Namespace, repeat: int) -> list[dict[str, Any]]:
    """Return the measurements of a round."""
    model, weights = MODELS[found.model]
    common = {"model": model, "weights": str(found.weights / weights), "size": found.size, "tasks": found.tasks,
              "precision": found.precision, "per_class": found.per_class, "epochs": found.epochs,
              "batch_size": found.batch_size, "augment": found.augment, "device": found.device,
              "data_dir": str(found.data), "threads": found.threads, "seed": repeat}
    names = [name for name in CONTENDERS if name in found.only and (found.augment == "none" or name != USUAL)]
    return [{**common, "contender": name} for name in names]


def group_of(request: dict[str, Any]) -> str:
    """Return the heading of a measurement's table."""
    return (f"{request['model'].partition(':')[2]}, {request['size']} px, {request['precision']}, batch "
            f"{request['batch_size']}, {request['tasks']} tasks of {10 * request['per_class']} images, "
            f"{request['epochs']} epoch(s), augment {request['augment']}, {request['device']}")


def render(measured: Sequence[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the report."""
    busy = [m["others"] for m in measured if m.get("others") is not None]
    told = f"kept {statistics.median(busy):.2f} cores busy (median), up to {max(busy):.2f}" if busy else "unknown"
    parts = ["# LoRA on pretrained models, side by side", LEGEND.format(loop=LOOP, usual=USUAL),
             facts({**machine, "other processes": told})]
    for group in dict.fromkeys(group_of(m["request"]) for m in measured):
        parts += [f"## {group}", table([m for m in measured if group_of(m["request"]) == group])]
        parts += [f"{m['request']['contender']}: failed, {m['error']}" for m in measured
                  if group_of(m["request"]) == group and "error" in m]
    return "\n\n".join(parts) + "\n"


def table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the table of one group."""
    def rates(name: str, kind: str) -> list[float]:
        return [m[f"{kind}_images"] / m[f"{kind}_seconds"] for m in measured
                if m["request"]["contender"] == name and "error" not in m]

    def over(values: list[float], others: list[float]) -> str:
        return f"{statistics.median(values) / statistics.median(others):.2f}" if others else "-"

    lines = []
    for name in dict.fromkeys(m["request"]["contender"] for m in measured):
        train, evaluate = rates(name, "train"), rates(name, "test")
        if train:
            memory = statistics.median(m["peak_bytes"] for m in measured
                                       if m["request"]["contender"] == name and "error" not in m)
            lines.append([name, f"{statistics.median(train):,.1f}", f"{min(train):,.1f} to {max(train):,.1f}",
                          over(train, rates(LOOP, "train")), over(train, rates(USUAL, "train")),
                          f"{statistics.median(evaluate):,.1f}", over(evaluate, rates(LOOP, "test")),
                          f"{memory / 2**20:,.0f}"])
    return tabulate(lines, HEAD, tablefmt="github", disable_numparse=True,
                    colalign=["left", *["right"] * (len(HEAD) - 1)])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure round by round and write after each measurement; results of other settings stay in the file."""
    found = arguments(argv)
    where = found.out / "pretrained.json"
    kept: dict[str, Any] = json.loads(where.read_text()) if where.exists() else {"measured": [], "commands": []}
    new = {group_of(request) for request in requests(found, 0)}
    measured = [m for m in kept["measured"] if group_of(m["request"]) not in new]
    commands = [*kept["commands"], shlex.join(["python", *sys.argv])]
    machine = {**processes.machine(found.threads), "date": datetime.date.today().isoformat(),
               "cores and threads": found.threads, "commands": "; ".join(dict.fromkeys(commands))}
    for repeat in range(found.repeats):
        for request in requests(found, repeat):
            env = ALLOCATOR if request["contender"].startswith("clbench") else {}  # as in clbench's workers
            try:
                answer = ask(MODULE, request, found.threads, env)
            except MeasurementError as error:
                answer = {"error": str(error)}
            public = {k: v for k, v in request.items() if k not in ("data_dir", "weights")}
            measured.append({"request": public, **answer})
            found.out.mkdir(parents=True, exist_ok=True)
            where.write_text(json.dumps({"machine": machine, "commands": commands, "measured": measured}, indent=1))
            where.with_suffix(".md").write_text(render(measured, machine))
            print(group_of(request), "|", request["contender"], "|", {k: v for k, v in answer.items() if k != "others"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
