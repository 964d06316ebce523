"""Measure how clbench's cost grows: `python benchmarks/speed/scaling.py --help`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import processes
from compare import REPORTS, listed
from processes import ask
from scaling_figure import Curve, draw

from clbench.core.files import default_data_dir

PANELS = ("seeds", "tasks", "capacity", "width")
METHODS = ("naive", "ewc", "er", "lora", "pnn", "shared-private")
RECIPE = {"optimizer": "sgd", "lr": 0.05, "epochs": 1, "batch_size": 128}


@dataclass(frozen=True)
class Point:
    """One planned measurement: the curve, the position on the curve, and the experiment."""

    panel: str
    series: str
    size: int
    spec: dict[str, Any]
    how: str = "sequential"


@dataclass(frozen=True)
class Cost:
    """One finished measurement, as medians over repeats: the seconds of all trials, and those of each task."""

    panel: str
    series: str
    size: int
    whole: float
    train: list[float]  # per task
    consolidate: list[float]
    evaluate: list[float]  # per row of R, with the row before training
    parameters: int

    @property
    def learning(self) -> list[float]:
        """Return the seconds of training and consolidation, per task."""
        return [a + b for a, b in zip(self.train, self.consolidate, strict=True)]


def points(quick: bool, device: str = "cpu") -> Iterator[Point]:
    """Yield all measurements."""
    digits = {"benchmark": "split-mnist-5k", "scenario": "task", "device": device, "recipe": RECIPE}
    for count in (1, 2) if quick else (1, 2, 4, 8, 16, 32):
        for how in ("sequential", "stacked", "workers"):
            yield Point("seeds", how, count, {**digits, "methods": ["naive"], "seeds": count}, how)
    for tasks in (2, 4) if quick else (5, 10, 20, 50):
        stream = {**digits, "benchmark": f"synthetic:tasks_{tasks}", "model": "mlp:width=128", "seeds": 1}
        for method in ("naive", "pnn") if quick else METHODS:
            yield Point("tasks", method, tasks, {**stream, "methods": [{"name": method, "options": moderate(method)}]})
    for capacity in (50, 200) if quick else (50, 200, 800, 3200):
        methods = [{"name": "er", "options": {"capacity": capacity}}]
        yield Point("capacity", "er", capacity, {**digits, "methods": methods, "seeds": 1})
    for width in (100, 200) if quick else (100, 200, 400, 800, 1600):
        yield Point("width", "naive", width, {**digits, "model": f"mlp:width={width}", "methods": ["naive"],
                                              "seeds": 1})


def moderate(method: str) -> dict[str, Any]:
    """Return options with which plain SGD does not diverge: the default strength of EWC is meant for Adam."""
    return {"strength": 1.0} if method == "ewc" else {}


def measure(point: Point, data_dir: Path, threads: int, repeats: int) -> Cost:
    """Return the cost of a point, measured in a separate process."""
    request = {"spec": point.spec, "how": point.how, "threads": threads, "data_dir": str(data_dir), "repeats": repeats}
    found = ask("scaled", request, threads)["runs"]

    def middle(phase: str) -> list[float]:
        return [statistics.median(values) for values in zip(*(f[phase] for f in found), strict=True)]

    return Cost(point.panel, point.series, point.size, statistics.median(f["whole"] for f in found), middle("train"),
                middle("consolidate"), middle("evaluate"), found[0]["parameters"])


def curves(costs: Sequence[Cost]) -> list[Curve]:
    """Return the lines of every panel. The panel of tasks has three kinds: all tasks, each task, and a row of R."""
    found: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        found.setdefault((cost.panel, cost.series), []).append(cost)
    lines = []
    for (panel, series), group in found.items():
        group = sorted(group, key=lambda c: c.size)
        sizes = [float(c.parameters if panel == "width" else c.size) for c in group]
        if panel == "tasks":
            longest = group[-1].learning
            lines += [Curve("tasks", series, sizes, [sum(c.learning) for c in group]),
                      Curve("along", series, [float(t) for t in range(1, len(longest) + 1)], longest),
                      Curve("rows", series, sizes, [c.evaluate[-1] for c in group])]
        else:
            lines.append(Curve(panel, series, sizes, [c.whole if panel == "seeds" else sum(c.learning)
                                                      for c in group]))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the exponents, and write the figure and the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=listed, default=PANELS, help=f"comma-separated, of {', '.join(PANELS)}")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (not yet run on CUDA)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of data sets (default: CLBENCH_DATA, else the cache folder)")
    parser.add_argument("--quick", action="store_true", help="see that it works: few sizes, one repeat, no report")
    parser.add_argument("--out", type=Path, help="folder of scaling.png, scaling.svg, scaling.json")
    parser.add_argument("--json", type=Path, help="file for the raw numbers, besides")
    found = parser.parse_args(argv)
    if strange := set(found.only) - set(PANELS):
        parser.error(f"no panel {', '.join(sorted(strange))}; there are {', '.join(PANELS)}")
    data_dir = (found.data or default_data_dir()).resolve()
    out = found.out or (None if found.quick else REPORTS)
    machine = processes.machine(found.threads)
    costs = []
    for point in points(found.quick, found.device):
        if point.panel in found.only:
            costs.append(measure(point, data_dir, found.threads, 1 if found.quick else found.repeats))
            print(f"{point.panel} {point.size}: {point.series}: {costs[-1].whole:.2f} s", file=sys.stderr)
    lines = curves(costs)
    for line in lines:
        print(f"{line.panel}: {line.series}: cost ~ size^{line.exponent:.2f}")
    raw = json.dumps({"machine": machine, "command": " ".join(["python", *sys.argv]), "recipe": RECIPE,
                      "exponents": [{"panel": line.panel, "series": line.series, "exponent": line.exponent}
                                    for line in lines],
                      "costs": [asdict(cost) for cost in costs]}, indent=1) + "\n"
    if found.json:
        found.json.write_text(raw)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scaling.json").write_text(raw)
        draw(lines, machine["machine"], [out / "scaling.png", out / "scaling.svg"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
