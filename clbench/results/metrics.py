"""Metrics of continual learning, as pure functions of the matrix R of accuracies, or of another metric of tasks.

R is a list of T + 1 rows of T accuracies. Row 0 is measured before any training, row i after training on the i-th task.
Column j belongs to task j (0-based), so task j was just learned in row j + 1. In the formulas, a(i, j) is the accuracy
on the j-th task after training on the i-th, both counted from 1 as in the papers: a(i, j) = R[i][j - 1].

Functions whose formula has a difference take the metric of R. If lower values are better, max becomes min and
differences change their sign, so forgetting is positive if a task got worse, and BWT and FWT if tasks got better.

Results have the unit of R (fractions in a record). Metrics that are not defined for a single task return None.
docs/metrics.md compares these definitions with those of other toolkits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from clbench.core.errors import ClbenchError
from clbench.core.objective import ACCURACY, Metric

Matrix = Sequence[Sequence[float]]


def acc(R: Matrix) -> float:
    """Return the final average accuracy, ACC = 1/T sum_j a(T, j).

    Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), section 2.
    """
    return fmean(_check_matrix(R)[-1])


def mean_seen(R: Matrix) -> list[float]:
    """Return the mean accuracy over the tasks seen so far after each task i, 1/i sum_{j <= i} a(i, j)."""
    return [fmean(row[:i]) for i, row in enumerate(_check_matrix(R)) if i]


def aia(R: Matrix) -> float:
    """Return the average incremental accuracy, AIA = 1/T sum_i (1/i sum_{j <= i} a(i, j)), the mean of `mean_seen`.

    Source: the average incremental accuracy of Rebuffi et al. 2017 (iCaRL, arXiv 1611.07725), with each task's
    accuracy weighing the same.
    """
    return fmean(mean_seen(R))


def pooled_seen(R: Matrix, samples: Sequence[int]) -> list[float]:
    """Return the accuracy over all test samples of the tasks seen so far, after each task i.

    It is sum_{j <= i} n(j) a(i, j) / sum_{j <= i} n(j), where n(j) is the number of test samples of task j.

    Args:
        R: the matrix.
        samples: the number of test samples of each task.
    """
    return [_weighted_mean(row[:i], samples[:i]) for i, row in enumerate(_check_matrix(R)) if i]


def acc_pooled(R: Matrix, samples: Sequence[int]) -> float:
    """Return the final accuracy over all test samples, the last value of `pooled_seen`.

    Source: the accuracy over all seen classes of Rebuffi et al. 2017 (iCaRL, arXiv 1611.07725).
    """
    return _weighted_mean(_check_matrix(R)[-1], samples)


def aia_pooled(R: Matrix, samples: Sequence[int]) -> float:
    """Return the mean of `pooled_seen`.

    Source: the average incremental accuracy of Rebuffi et al. 2017 (iCaRL, arXiv 1611.07725).
    """
    return fmean(pooled_seen(R, samples))


def aia_pooled_all(R: Matrix, samples: Sequence[int]) -> float:
    """Return the accuracy over the test samples of all tasks, including later ones, averaged over the rows after tasks.

    Source: the domain-incremental results of McDonnell et al. 2023 (RanPAC, arXiv 2307.02251).
    """
    return fmean(_weighted_mean(row, samples) for row in _check_matrix(R)[1:])


def forgetting_per_task(R: Matrix, metric: Metric = ACCURACY) -> list[float]:
    """Return f(j) = max_{j <= l < T} a(l, j) - a(T, j) for the first T - 1 tasks; negative if a task got better.

    Source: Chaudhry et al. 2018 (RWalk, arXiv 1801.10112), equation 3, from the row after the task was trained on.
    """
    rows = _check_matrix(R)
    last = len(rows) - 1
    return [metric.gain(rows[last][j], metric.best(row[j] for row in rows[j + 1:last])) for j in range(last - 1)]


def forgetting(R: Matrix, metric: Metric = ACCURACY) -> float | None:
    """Return the mean forgetting F = 1/(T - 1) sum_{j < T} f(j), see `forgetting_per_task`; None for one task.

    Source: Chaudhry et al. 2018 (RWalk, arXiv 1801.10112).
    """
    return mean_or_none(forgetting_per_task(R, metric))


def bwt(R: Matrix, metric: Metric = ACCURACY) -> float | None:
    """Return the backward transfer, BWT = 1/(T - 1) sum_{j < T} (a(T, j) - a(j, j)); None for one task.

    Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), section 2.
    """
    rows = _check_matrix(R)
    return mean_or_none([metric.gain(rows[j + 1][j], rows[-1][j]) for j in range(len(rows) - 2)])


def fwt(R: Matrix, metric: Metric = ACCURACY) -> float | None:
    """Return the forward transfer, FWT = 1/(T - 1) sum_{j > 1} (a(j - 1, j) - b(j)); None for one task.

    b(j) is the accuracy on task j of the untrained model, row 0 of R.

    Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), section 2.
    """
    rows = _check_matrix(R)
    return mean_or_none([metric.gain(rows[0][j], rows[j][j]) for j in range(1, len(rows) - 1)])


def learning_accuracy(R: Matrix) -> float:
    """Return the mean accuracy on each task just after training on it, LA = 1/T sum_j a(j, j).

    Source: Riemer et al. 2019 (MER, arXiv 1810.11910).
    """
    return fmean(_diagonal(R))


def intransigence_per_task(R: Matrix, joint: Matrix, metric: Metric = ACCURACY) -> list[float]:
    """Return I(k) = a*(k, k) - a(k, k): joint training's accuracy on task k just after learning it, minus R's.

    Args:
        R: the method's matrix.
        joint: the matrix a* of joint training with the same seed in the same setting.
        metric: the metric of both matrices.

    Source: Chaudhry et al. 2018 (RWalk, arXiv 1801.10112).
    """
    learned, reference = _diagonal(R), _diagonal(joint)
    if len(learned) != len(reference):
        raise ClbenchError(f"intransigence compares R of {len(learned)} tasks with joint's of {len(reference)}; "
                           "give both for the same stream")
    return [metric.gain(a, b) for a, b in zip(learned, reference, strict=True)]


def intransigence(R: Matrix, joint: Matrix, metric: Metric = ACCURACY) -> float:
    """Return the mean of `intransigence_per_task` over all tasks; lower is better, negative beats joint training.

    Source: Chaudhry et al. 2018 (RWalk, arXiv 1801.10112), who give it for one task.
    """
    return fmean(intransigence_per_task(R, joint, metric))


def _diagonal(R: Matrix) -> list[float]:
    return [row[i - 1] for i, row in enumerate(_check_matrix(R)) if i]


def _weighted_mean(accuracies: Sequence[float], samples: Sequence[int]) -> float:
    """Return the mean of the accuracies of tasks, weighted by their numbers of test samples."""
    if len(accuracies) != len(samples):
        raise ClbenchError(f"R has {len(accuracies)} task(s), but {len(samples)} numbers of test samples were given; "
                           "give one for each task")
    return math.fsum(a * n for a, n in zip(accuracies, samples, strict=True)) / sum(samples)


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean of values, or None if there are none."""
    return fmean(values) if values else None


def _check_matrix(R: Matrix) -> list[list[float]]:
    """Return R as lists of floats, or raise an error about its shape or values."""
    rows = [list(map(float, row)) for row in R]
    tasks = len(rows) - 1
    if tasks < 1:
        raise ClbenchError(f"R needs a row before training and one per task, got {len(rows)} row(s)")
    for i, row in enumerate(rows):
        if len(row) != tasks:
            raise ClbenchError(f"R has {tasks + 1} rows and so {tasks} task(s), but row {i} holds {len(row)} "
                               "accuracies; each row needs one per task")
        if not all(map(math.isfinite, row)):
            raise ClbenchError(f"row {i} of R holds NaN or infinity; a diverged trial has no metrics")
    return rows
