"""Verification: compare the cells of a published table with our records and give a verdict on each.

The tolerance of a cell is the half width of Welch's interval (docs/verify.md) for the difference of the two means, plus
the rounding of the published value and the cell's stated allowance. If the standard deviation was not published, the
half width of Student's interval of our mean is used instead.

Verdicts: `reproduced` (the difference is within the tolerance), `not reproduced` (it is not, or a seed diverged),
`inconclusive` (the tolerance is so wide that agreement says nothing, there are too few seeds, or the cell needs a GPU
and was run on a CPU), `not run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from clbench.experiment.references import Cell, Reference
from clbench.experiment.trial import Trial
from clbench.results import metrics
from clbench.results.records import Record
from clbench.results.stats import welch_half_width

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]
METRICS: dict[str, Callable[[metrics.Matrix, Sequence[int]], float]] = {  # of R and the test samples per task
    "ACC": lambda R, _: metrics.acc(R), "AIA": lambda R, _: metrics.aia(R),
    "ACC-pooled": metrics.acc_pooled, "AIA-pooled": metrics.aia_pooled, "AIA-pooled-all": metrics.aia_pooled_all}
MOST_SEEDS = 1000  # upper limit of the search in `seeds_needed`


@dataclass(frozen=True)
class Checked:
    """A cell with the results of our records; accuracies, differences and tolerances in points."""

    cell: Cell
    records: tuple[Record, ...]  # all records that repeat the cell, by seed
    tolerance: float | None  # None for fewer than two seeds
    verdict: Verdict
    remarks: tuple[str, ...] = ()

    @property
    def accuracies(self) -> list[float]:
        """Return our accuracy by the cell's metric in percent, one for each seed that is done."""
        metric = METRICS[self.cell.metric]
        return [100 * metric(r.R, r.stream.test_samples) for r in self.records if r.status == "done" and r.stream]

    @property
    def failed(self) -> bool:
        """Return whether a seed has no result."""
        return any(r.status != "done" for r in self.records)

    @property
    def mean(self) -> float | None:
        """Return our mean."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def error(self) -> float | None:
        """Return the standard error of our mean; None for fewer than two seeds."""
        return stdev(self.accuracies) / math.sqrt(len(self.accuracies)) if len(self.accuracies) > 1 else None

    @property
    def difference(self) -> float | None:
        """Return our mean minus the published one."""
        return None if self.mean is None else self.mean - self.cell.published


def check(reference: Reference, trials: Sequence[Sequence[Trial]], records: Sequence[Record]) -> list[Checked]:
    """Return every cell of a reference with its verdict.

    Args:
        reference: the published table.
        trials: the trials of each cell, in the order of the cells, with any seeds.
        records: records of the run folder. All records that repeat a cell count, with any seed. A remark names those
            that are marked as stale.
    """
    by_setting: dict[str, list[Record]] = {}
    for record in records:
        by_setting.setdefault(record.trial.seedless, []).append(record)
    return [_judge(reference, cell, by_setting.get(cell_trials[0].seedless, []))
            for cell, cell_trials in zip(reference.cells, trials, strict=True)]


def _judge(reference: Reference, cell: Cell, records: Sequence[Record]) -> Checked:
    """Return a cell with its verdict."""
    checked = Checked(cell, tuple(sorted(records, key=lambda r: r.trial.seed)), None, "not run")
    accuracies = checked.accuracies
    remarks = [f"seed {r.trial.seed} {r.status}" for r in checked.records if r.status != "done"]
    remarks += [f"seed {r.trial.seed} is stale, because {' and '.join(r.stale)} changed since" for r in checked.records
                if r.stale]
    tolerance = allowed(reference, cell, accuracies) if len(accuracies) > 1 else None
    verdict: Verdict = "not run"
    if cell.gpu and any(r.provenance.device == "cpu" for r in records):
        verdict = "inconclusive"
        remarks.append("the method does not work on a CPU, so delete these results and use a GPU (--device cuda)")
    elif any(r.status == "diverged" for r in records):
        verdict = "not reproduced"
    elif tolerance is None and accuracies:
        verdict = "inconclusive"
        remarks.append("one seed has no spread")
    elif tolerance is not None and abs(fmean(accuracies) - cell.published) > tolerance:
        verdict = "not reproduced"
    elif tolerance is not None and tolerance > reference.max_tolerance(cell):
        verdict = "inconclusive"
        needed_seeds = seeds_needed(reference, cell, accuracies)
        remarks.append(f"a difference of up to {tolerance:.1f} points would pass; "
                       + (f"about {needed_seeds} seeds would do" if needed_seeds else "more seeds would not do"))
    elif tolerance is not None:
        verdict = "reproduced"
        if tolerance > reference.tolerance.widest:
            remarks.append(f"agreement within {tolerance:.1f} points shows little")
    return replace(checked, tolerance=tolerance, verdict=verdict, remarks=tuple(remarks))


def allowed(reference: Reference, cell: Cell, accuracies: Sequence[float], seeds: int | None = None) -> float:
    """Return the tolerance of a cell in points.

    Args:
        reference: the published table, which states the level and the rounding.
        cell: the published number.
        accuracies: our accuracies, one per seed, at least two.
        seeds: the number of seeds to assume for our standard error; None for the actual number.
    """
    rule, n = reference.tolerance, seeds or len(accuracies)
    error = stdev(accuracies) / math.sqrt(n)
    published_error = cell.sem if cell.sd is None else cell.sd / math.sqrt(reference.seeds)
    # An unpublished standard deviation counts as zero. Welch's interval then equals Student's interval of our mean, for
    # any number of published values.
    half = welch_half_width((error, n), (published_error or 0.0, max(reference.seeds, 2)), rule.level)
    return half + rule.rounding + cell.allowance


def seeds_needed(reference: Reference, cell: Cell, accuracies: Sequence[float]) -> int | None:
    """Return how many seeds with the same standard deviation would lower the tolerance to the limit, if any do."""
    return next((n for n in range(len(accuracies) + 1, MOST_SEEDS + 1)
                 if allowed(reference, cell, accuracies, n) <= reference.max_tolerance(cell)), None)
