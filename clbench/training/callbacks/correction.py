"""The best constant for each task's outputs: how much of the confusion between tasks is a bias of the head.

It is found with the labels of test samples, so it is an oracle that no method has. It is fitted to accuracy itself, on
one half of the samples, and judged on the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 100  # over the tasks, at most; each of them gains a sample at least


def corrected(scores: Tensor, task: Tensor, sure: Tensor, half: Tensor) -> Tensor:
    """Return which samples are right with the constants that are best on the other half of the samples, bool [N].

    Args:
        scores: [N, T], the largest logit among each task's outputs.
        task: the true task of each sample [N].
        sure: which samples are right among their part task's outputs, bool [N]; the others cannot become right.
        half: 0 or 1 for each sample [N].
    """
    scores = scores.double()
    right = torch.zeros_like(sure)
    for part in (0, 1):
        fitted = (half != part) & sure
        constants = best_constants(scores[fitted], task[fitted])
        right |= (half == part) & sure & ((scores + constants).argmax(1) == task)
    return right


def best_constants(scores: Tensor, task: Tensor) -> Tensor:
    """Return constants [T] for the columns of scores [N, T] with which the most samples have their task [N] on top.

    Coordinate ascent with an exact search along each coordinate, from two starts: no constants, and those that make the
    mean scores of all tasks equal. The better end counts, the first of equal ones. It cannot be improved by changing a
    single constant, which need not be the best of all.
    """
    finite = scores.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    starts = (scores.new_zeros(scores.shape[1]), -finite.mean(0) if len(scores) else scores.new_zeros(scores.shape[1]))
    ends = [ascend(scores, task, start) for start in starts]
    return max(ends, key=lambda constants: rights(scores, task, constants))


def rights(scores: Tensor, task: Tensor, constants: Tensor) -> int:
    """Return how many samples have their own task above every other."""
    scores = scores + constants
    others = scores.scatter(1, task[:, None], float("-inf")).amax(1) if scores.shape[1] > 1 else scores[:, 0] - 1
    return int((scores.gather(1, task[:, None])[:, 0] > others).sum())


def ascend(scores: Tensor, task: Tensor, start: Tensor) -> Tensor:
    """Return the constants [T] at which the ascent ends."""
    constants = start.clone()
    if not len(scores) or scores.shape[1] < 2:
        return constants
    for _ in range(SWEEPS):
        before = constants.clone()
        for column in range(len(constants)):
            constants[column] = along(scores, task, constants, column)
        if torch.equal(before, constants):
            break
    return constants


def along(scores: Tensor, task: Tensor, constants: Tensor, column: int) -> float:
    """Return the best constant for one column, the others as they are; the present one if none is better.

    A sample of this task is right above one value of the constant, a sample of another task below one, if ever. So
    between two such values nothing changes: of the best stretches the widest counts, and its middle.
    """
    shifted = scores + constants
    shifted[:, column] = float("-inf")
    in_column = task == column
    top, best = shifted.max(1)
    second = shifted.scatter(1, best[:, None], float("-inf")).amax(1)
    at = top - scores[:, column]  # where this column draws level with the best of the others
    above = at[in_column & at.isfinite()].sort().values
    below = at[~in_column & (best == task) & (top > second) & at.isfinite()].sort().values
    edges = torch.unique(torch.cat([above, below]))
    if not len(edges):
        return float(constants[column])
    margin = max(float(edges[-1] - edges[0]), 1.0)
    places = torch.cat([edges[:1] - margin, (edges[1:] + edges[:-1]) / 2, edges[-1:] + margin, constants[[column]]])
    widths = torch.cat([edges.new_zeros(1), edges.diff(), edges.new_zeros(1), edges.new_full((1,), float("inf"))])
    counts = torch.searchsorted(above, places) + len(below) - torch.searchsorted(below, places, right=True)
    most = counts == counts.max()
    return float(places[int(widths.masked_fill(~most, -1.0).argmax())])
