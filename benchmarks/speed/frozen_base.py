"""Measure what it saves to run a frozen base once on the test samples: `python benchmarks/speed/frozen_base.py`.

Closed forms on a vision transformer that is not trained, ten tasks of 28 x 28 pixels, evaluated before the first task
and after each. A trial as it is and one in which nothing is kept take turns; R must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from tabulate import tabulate

from clbench.core.registry import discover
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.training import kept_blocks
from clbench.training.trials.runner import TrialRunner

METHODS = ("ncm", "slda", "ranpac")


def main() -> None:
    """Print seconds of evaluation and of the whole trial, kept and not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-tiny:patch=4:width=96:depth=6:heads=3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    spec = build({"benchmark": "synthetic:tasks_10", "model": given.model, "scenario": "class", "seeds": given.repeats,
                  "methods": [f"{name}:base=random" for name in METHODS]})
    registry = discover()
    runner = TrialRunner(ExecutionSettings(threads=given.threads), "cpu", "frozen_base.py", registry)
    seconds: dict[str, list[tuple[float, float, float, float]]] = {}
    for one in plan(spec, registry):
        with patch.object(kept_blocks, "BYTES", 0):
            before = runner.run(one)
        after = runner.run(one)
        assert before.status == after.status == "done" and before.R == after.R, (before.failure, after.failure)
        times = [(sum(t.evaluate), sum(t.train) + sum(t.consolidate) + sum(t.evaluate))
                 for t in (before.timings, after.timings)]
        seconds.setdefault(one.label, []).append((times[0][0], times[1][0], times[0][1], times[1][1]))
    rows = []
    for label, found in seconds.items():
        old, new, whole, less = (statistics.median(column) for column in zip(*found, strict=True))
        rows.append([label, old, new, old / new, whole, less, whole / less])
    print(tabulate(rows, ["method", "evaluation (s)", "kept (s)", "ratio", "trial (s)", "kept (s)", "ratio"],
                   floatfmt=".2f"))


if __name__ == "__main__":
    main()
