"""Measure the cost of evaluation during training: its processor time as a share of the time of training.

`python benchmarks/speed/curve.py --data DIR` takes some minutes. It runs split-mnist in scenario class on one thread:
first the defaults of `clbench run` with `--evaluate-every 100`, then one online epoch in batches of 10.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

import clbench
from clbench.data import default_data_dir

SETTINGS: dict[str, dict[str, Any]] = {
    "batch 128, 10 epochs": {},
    "batch 10, 1 epoch": {"batch_size": 10, "epochs": 1},
}


def main() -> None:
    """Print a row for each setting and method: seconds of training and of the curve, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data_dir(), help="folder of data sets")
    parser.add_argument("--methods", default="naive,er,ewc", help="as of clbench run")
    parser.add_argument("--every", type=int, default=100, help="--evaluate-every")
    given = parser.parse_args()
    rows = []
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            for record in clbench.run(methods=given.methods, benchmark="split-mnist", scenario="class", seeds=1,
                                      data=given.data, evaluate_every=given.every, out=folder, workers=0, threads=1,
                                      **settings):
                train, curve = sum(record.timings.train_cpu), sum(record.timings.curve_cpu)
                assert record.curve is not None
                looks = sum(map(len, record.curve.steps)) + len(record.curve.after)
                rows.append([name, record.label, str(sum(record.costs.steps)), str(looks), f"{train:.1f}",
                             f"{curve:.1f}", f"{100 * curve / train:.0f}%"])
    print(tabulate(rows, ["setting", "method", "steps", "evaluations", "training (s)", "curve (s)", "share"], "pipe",
                   disable_numparse=True))


if __name__ == "__main__":
    main()
