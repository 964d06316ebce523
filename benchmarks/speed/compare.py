"""Compare clbench with stock Avalanche and plain torch loops: `python benchmarks/speed/compare.py --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import processes
from measure import FLOOR, SMALL_BATCH, Outcome, Row, Setting, contenders, settings_of, small_batch_contenders, titled
from processes import MeasurementError, ask
from table import render

from clbench.core.files import default_data_dir
from clbench.execution.workers.process import ALLOCATOR

MODELS = ("mlp", "mlp:width=256", "cnn", "resnet18")
METHODS = ("naive", "ewc", "er")
REPORTS = Path(__file__).resolve().parents[2] / "reports" / "speed"
Group = tuple[str, str, int, list[tuple[str, int]]]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=listed, help=f"comma-separated, of {', '.join(MODELS)} or any of clbench's (default: these; on "
        "a CPU without resnet18, which takes days)")
    add("--methods", type=listed, default=METHODS, help=f"comma-separated, of {', '.join(METHODS)}")
    add("--only", type=listed, default=(), help="contenders whose names contain one of these, comma-separated")
    add("--seeds", type=listed, default=("5", "10"), help="numbers of seeds of the rows with several")
    add("--batch-size", type=int, default=128)
    add("--epochs", type=int, default=1)
    add("--optimizer", choices=("sgd", "adam"), default="sgd")
    add("--lr", type=float, help="learning rate (default: 0.05 for sgd, 0.001 for adam)")
    add("--threads", type=int, default=2, help="cores and threads of every contender")
    add("--device", default="cpu", help="cpu or cuda")
    add("--repeats", type=int, default=3)
    add("--data", type=Path, help="folder of data sets (default: CLBENCH_DATA, else the user's cache folder)")
    add("--quick", action="store_true", help="see that it works: 5,000 images, one repeat, 2 and 3 seeds, no report")
    add("--out", type=Path, help=f"folder of compare.md and compare.json (default: {REPORTS.name} under reports)")
    add("--json", type=Path, help="file for the raw measurements, besides")
    add("--again", type=Path, metavar="FILE", help="measure nothing: write the table of this compare.json anew")
    found = parser.parse_args(argv)
    if found.methods and (strange := set(found.methods) - set(METHODS)):
        parser.error(f"no contenders for method {', '.join(sorted(strange))}; there are {', '.join(METHODS)}")
    found.model = found.model or (MODELS[:-1] if found.device == "cpu" else MODELS)
    found.lr = found.lr or {"sgd": 0.05, "adam": 0.001}[found.optimizer]
    found.data = (found.data or default_data_dir()).resolve()
    if found.quick:
        found.repeats, found.seeds = 1, ("2", "3")
    elif found.out is None:
        found.out = REPORTS
    return found


def listed(text: str) -> tuple[str, ...]:
    """Read a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def groups_of(found: argparse.Namespace) -> list[Group]:
    """Return the groups to measure: model, method, batch size and the selected contenders."""
    counts = [int(count) for count in found.seeds]
    groups = [(model, method, found.batch_size, contenders(method, model, counts))
              for model in found.model for method in found.methods]
    if "naive" in found.methods and found.batch_size != SMALL_BATCH:
        groups += [(model, "naive", SMALL_BATCH, small_batch_contenders(counts[0]))
                   for model in found.model if model.startswith("mlp")]
    chosen = [(*group, [(name, count) for name, count in names
                        if not found.only or any(part in name for part in found.only)])
              for *group, names in groups]
    return [group for group in chosen if group[-1]]


def module_of(contender: str) -> str:
    """Return the module that measures a contender."""
    return FLOOR if contender == FLOOR else f"contenders_{contender.split()[0]}"


def measure(setting: Setting) -> Outcome | str:
    """Measure a contender in a separate process; return the outcome, or the error message."""
    env = ALLOCATOR if setting.contender.startswith("clbench") else {}  # the environment of clbench's workers
    try:
        return Outcome(**ask(module_of(setting.contender), asdict(setting), setting.threads, env))
    except MeasurementError as error:
        return str(error)


def rows_of(measured: Sequence[tuple[Setting, Outcome | str]]) -> dict[tuple[str, str, int], list[Row]]:
    """Return the rows of each group; a row has all repeats of a contender."""
    groups: dict[tuple[str, str, int], dict[str, list[Outcome | str]]] = {}
    for setting, found in measured:
        row = groups.setdefault(setting.group, {}).setdefault(titled(setting.contender, len(setting.seeds)), [])
        row.append(found)
    return {group: [Row(name, tuple(f for f in found if isinstance(f, Outcome)),
                        next((f for f in found if isinstance(f, str)), "")) for name, found in rows.items()]
            for group, rows in groups.items()}


def benchmark_of(model: str, found: argparse.Namespace) -> str:
    """Return the benchmark for a model: CIFAR-100 for ResNets, else MNIST; its small version if quick or missing."""
    if found.quick:
        return "split-mnist-5k"
    if model.startswith("resnet"):
        return "split-cifar100"
    return "split-mnist" if (found.data / "MNIST" / "raw").is_dir() else "split-mnist-5k"


def describe(found: argparse.Namespace, benchmarks: Mapping[str, str]) -> dict[str, Any]:
    """Return the machine and the run, for the report."""
    streams = ", ".join(f"{benchmark} ({model})" for model, benchmark in benchmarks.items())
    return {**processes.machine(found.threads), "command": shlex.join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(), "benchmark": f"{streams}, scenario class",
            "device": found.device, "cores and threads": found.threads,
            "recipe": f"{found.optimizer}, lr {found.lr:g}, {found.epochs} epoch(s) per task, seeds new in each repeat",
            "repeats": f"{found.repeats}, round robin over all contenders"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all contenders round by round and write after each one; with `--again`, only rewrite an old table."""
    found = arguments(argv)
    if found.again:
        machine, measured = load(found.again)
        found.again.with_suffix(".md").write_text(render(rows_of(measured), machine))
        return 0
    benchmarks = {model: benchmark_of(model, found) for model in found.model}
    common = {"data_dir": str(found.data), "epochs": found.epochs, "lr": found.lr, "optimizer": found.optimizer,
              "threads": found.threads, "device": found.device}
    machine = describe(found, benchmarks)
    measured: list[tuple[Setting, Outcome | str]] = []
    for repeat in range(found.repeats):
        for setting in settings_of(groups_of(found), common, benchmarks, repeat):
            outcome = measure(setting)
            measured.append((setting, outcome))
            said = outcome if isinstance(outcome, str) else f"{outcome.whole:.2f} s"
            print(f"round {repeat + 1}: {', '.join(map(str, setting.group))}: "
                  f"{titled(setting.contender, len(setting.seeds))}: {said}", file=sys.stderr)
            write(found, machine, measured)
    print(render(rows_of(measured), machine))
    return 1 if any(isinstance(outcome, str) for _, outcome in measured) else 0


def load(path: Path) -> tuple[dict[str, Any], list[tuple[Setting, Outcome | str]]]:
    """Return the machine and the measurements of a compare.json."""
    raw = json.loads(path.read_text())
    return raw["machine"], [
        (Setting(**{**one["setting"], "seeds": tuple(one["setting"]["seeds"])}),
         one["error"] if "error" in one else Outcome(**one["outcome"])) for one in raw["measurements"]]


def write(found: argparse.Namespace, machine: dict[str, Any],
          measured: Sequence[tuple[Setting, Outcome | str]]) -> None:
    """Write the report and the raw measurements, if an output folder is given."""
    raw = json.dumps({"machine": machine, "measurements": [
        {"setting": {**asdict(s), "data_dir": ""}, **({"error": o} if isinstance(o, str) else {"outcome": asdict(o)})}
        for s, o in measured]}, indent=1)
    if found.out:
        found.out.mkdir(parents=True, exist_ok=True)
        (found.out / "compare.md").write_text(render(rows_of(measured), machine))
        (found.out / "compare.json").write_text(raw + "\n")
    if found.json:
        found.json.write_text(raw + "\n")


if __name__ == "__main__":
    sys.exit(main())
