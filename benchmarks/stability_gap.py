"""Test whether old tasks temporarily lose accuracy after a task boundary, in the records of `reports/stability_gap`.

`python benchmarks/stability_gap.py` reads the records and prints a table. `--write` also writes it to gap.md there.

For each seed, and as a mean over its boundaries: the mean accuracy on old tasks before the boundary, its least value
within the first 100 steps of the new task, and its value when that is learned. Differences are paired by seed. The
least of many values lies below their mean even where nothing but chance moves them, so it is taken a second time
without that: at the step at which the *other* seeds are lowest on average.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from clbench.report.formatting import number
from clbench.results.curve import Curve, gaps, old_tasks, row_after
from clbench.results.records import Record
from clbench.results.stats import mean_interval
from clbench.results.store import Store

FOLDER = Path(__file__).resolve().parents[1] / "reports" / "stability_gap"
FIRST = 100  # steps of a task
HEADERS = ("method", "seeds", "before", "lowest", "end", "before - lowest", "end - lowest",
           "before - lowest, step of the others", "end - lowest, step of the others", "recover")


def early(curve: Curve, task: int) -> dict[int, float]:
    """Return the mean accuracy on old tasks by step, for the evaluated steps among the first `FIRST` of a task."""
    return {step: mean for step, mean in old_tasks(curve, task)[:-1] if 0 < step <= FIRST}


def of_others(curves: Sequence[Curve], own: int, task: int) -> float:
    """Return a seed's accuracy on old tasks at the step at which the other seeds have the lowest mean."""
    others = [early(curve, task) for k, curve in enumerate(curves) if k != own]
    shared = sorted(set.intersection(*map(set, others), set(early(curves[own], task))))
    return early(curves[own], task)[min(shared, key=lambda step: fmean(other[step] for other in others))]


def row(label: str, curves: Sequence[Curve]) -> list[str]:
    """Return a method's row of the table: accuracies in percent, and differences with 95% intervals over seeds."""
    tasks = range(1, len(curves[0].after))
    before, lowest, end, chosen = [], [], [], []
    for k, curve in enumerate(curves):
        before.append(fmean(fmean(row_after(curve, t - 1)) for t in tasks))
        lowest.append(fmean(min(early(curve, t).values()) for t in tasks))
        end.append(fmean(old_tasks(curve, t)[-1][1] for t in tasks))
        chosen.append(fmean(of_others(curves, k, t) for t in tasks))
    lengths = [gap.length for curve in curves for gap in gaps(curve)]
    back = [length for length in lengths if length is not None]
    recover = f"{len(back)} of {len(lengths)}" + (f", after {fmean(back):.0f} steps" if back else ": no recovery")
    apart = [_apart(a, b) for a, b in ((before, lowest), (end, lowest), (before, chosen), (end, chosen))]
    means = [f"{100 * fmean(values):.1f}" for values in (before, lowest, end)]
    return [label, str(len(curves)), *means, *apart, recover]


def _apart(high: Sequence[float], low: Sequence[float]) -> str:
    over = mean_interval([round(a - b, 12) for a, b in zip(high, low, strict=True)])
    ends = [number(end, "points") for end in (over.low, over.high) if end is not None]
    return f"{number(over.mean, 'points')} [{', '.join(ends)}]" if ends else number(over.mean, "points")


def table(records: Sequence[Record]) -> str:
    """Return the table of all methods whose records have curves."""
    by_method: dict[str, list[Curve]] = {}
    for record in sorted(records, key=lambda r: r.trial.seed):
        if record.status == "done" and record.curve:
            by_method.setdefault(record.label, []).append(record.curve)
    return tabulate([row(*one) for one in by_method.items()], HEADERS, "pipe", disable_numparse=True)


def main() -> None:
    """Print the table, and write it if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep it as gap.md beside the records")
    records, problems = Store(FOLDER).read()
    if problems:
        raise SystemExit(f"{FOLDER}: {problems}")
    found = table(records)
    print(found)
    if parser.parse_args().write:
        told = (__doc__ or "").split("\n\n", 2)[2].rstrip()
        (FOLDER / "gap.md").write_text(
            f"# After a boundary\n\nMade by `python benchmarks/stability_gap.py --write`.\n\n{told}\n\nAccuracies in "
            f"per cent, differences in points with 95 % intervals over seeds.\n\n{found}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
