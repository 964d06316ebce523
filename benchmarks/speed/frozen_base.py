"""Measure the gain of running a frozen backbone only once on test samples: `python benchmarks/speed/frozen_base.py`.

The script trains analytic classifiers on an untrained vision transformer, on ten tasks of 28 x 28 pixels, with
evaluation before the first task and after each. Trials with and without the cache of predictions take turns. Both must
give the same R.
"""

from __future__ import annotations

import argparse
import statistics
from unittest.mock import patch

import torch
from tabulate import tabulate
from turns import in_turns

from clbench import Record
from clbench.experiment.spec import build
from clbench.training import prediction_cache

METHODS = ("ncm", "slda", "ranpac")


def main() -> None:
    """Print seconds of evaluation and of the whole trial, without and with the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-tiny:patch=4:width=96:depth=6:heads=3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = build({"benchmark": "synthetic:tasks_10", "model": given.model, "scenario": "class", "seeds": given.repeats,
                  "methods": [f"{name}:base=random" for name in METHODS]})
    pairs = in_turns(spec, given.threads, "frozen_base.py", lambda: patch.object(prediction_cache, "BYTES", 0))
    rows = []
    for label, found in pairs.items():
        assert all(before.R == after.R for before, after in found), label
        (old, whole), (new, less) = (map(statistics.median, zip(*map(seconds, side), strict=True))
                                     for side in zip(*found, strict=True))
        rows.append([label, old, new, old / new, whole, less, whole / less])
    print(tabulate(rows, ["method", "evaluation (s)", "cached (s)", "ratio", "trial (s)", "cached (s)", "ratio"],
                   floatfmt=".2f"))


def seconds(record: Record) -> tuple[float, float]:
    """Return the seconds of evaluation and of the whole trial."""
    times = record.timings
    return sum(times.evaluate), sum(times.train) + sum(times.consolidate) + sum(times.evaluate)


if __name__ == "__main__":
    main()
