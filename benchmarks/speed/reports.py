"""Measure the time and the size of a report on many records.

    python benchmarks/speed/reports.py [--methods 43] [--seeds 60] [--profile]

The records are synthetic: the first methods of reports/all_methods in both scenarios. The accuracies of each seed are
the committed ones of seed 0 plus noise of 2 points. The script prints the seconds for building the report and for each
format, and the sizes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clbench.report import build
from clbench.report.formats import csv, html, json, markdown
from clbench.results.records import Record
from clbench.results.store import Store

ROOT = Path(__file__).resolve().parents[2]


def synthetic(methods: int, seeds: int) -> list[Record]:
    """Return synthetic records of some methods and seeds in each scenario of the committed run."""
    first = [r for r in Store(ROOT / "reports/all_methods").read()[0] if r.trial.seed == 0]
    chosen = [r for scenario in ("task", "class")
              for r in sorted((r for r in first if r.trial.scenario == scenario), key=lambda r: r.reference,
                              reverse=True)[:methods]]
    draws = random.Random(0)
    found = []
    for record in chosen:
        for seed in range(seeds):
            trial = record.trial.model_copy(update={"seed": seed})
            R = [[min(1.0, max(0.0, round(a + draws.gauss(0, 0.02), 3))) for a in row] for row in record.R]
            found.append(record.model_copy(update={"trial": trial, "key": trial.key, "R": R}))
    return found


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Return the result of a function, and print its wall seconds and processor seconds."""
    start, busy = time.perf_counter(), time.process_time()
    result = work()
    size = f", {len(result.encode()) / 1000:,.0f} kB" if isinstance(result, str) else ""
    print(f"{what}: {time.perf_counter() - start:.1f} s ({time.process_time() - busy:.1f} s of the processor){size}",
          flush=True)
    return result


def main() -> None:
    """Time a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", type=int, default=43)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    records = synthetic(given.methods, given.seeds)
    print(f"{len(records):,} records")
    profile = cProfile.Profile()
    if given.profile:
        profile.enable()
    report = timed("build", lambda: build(records))
    for name, render in (("md", markdown.render), ("html", html.render), ("json", json.render), ("csv", csv.render)):
        timed(name, lambda render=render: render(report))
    if given.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
