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
