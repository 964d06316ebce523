"""Synthetic curves for tests, and records that have them."""

from clbench.results.curve import Curve
from helpers.records import make_record


def make_curve(dip=30, back=True, tasks=3, steps=20, every=5, samples=100):
    """Return a curve of tasks that are learned at once, while old tasks lose `dip` points.

    The old tasks recover after ten steps if `back` is true, and never otherwise.
    """
    points = [*range(11), *range(15, steps + 1, every)]
    low = [90 - dip if step and (step <= 10 or not back) else 90 for step in points]
    return Curve(every=every, samples=[samples] * tasks, steps=[points] * tasks,
                 right=[[[samples * a // 100 for a in low]] * t + [[samples * 90 // 100] * len(points)]
                        for t in range(tasks)],
                 after=[[samples * low[-1] // 100] * t + [samples * 90 // 100] for t in range(tasks)])


def with_curve(method="er", seed=0, curve=None, **made):
    """Return a record from `make_record` with a curve."""
    return make_record(method, seed, **made).model_copy(update={"curve": curve or make_curve()})


def make_lm_curve(rise=0.5, tasks=3, steps=20):
    """Return a curve of NLL and exact match: while a task is learned, the NLL on old tasks rises by `rise` nats.

    It falls again after ten steps. Exact match is 1 - nll / 5.
    """
    points = [*range(11), *range(15, steps + 1, 5)]
    old = [0.4 + rise if 0 < step <= 10 else 0.4 for step in points]
    nll = [[old] * task + [[0.4] * len(points)] for task in range(tasks)]
    after = [[0.4] * (task + 1) for task in range(tasks)]
    return Curve(every=5, samples=[20] * tasks, steps=[points] * tasks, metric="nll",
                 values={"nll": nll, "exact": [[[1 - value / 5 for value in row] for row in rows] for rows in nll]},
                 values_after={"nll": after, "exact": [[1 - value / 5 for value in row] for row in after]})
