"""Samples that become the test where the data have no test part: alike for every seed, with groups kept whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from clbench.core import seeds

Rows = npt.NDArray[np.int64]


def hold_out(tasks: Rows, y: Rows, groups: Sequence[str] | None, share: float) -> tuple[npt.NDArray[np.bool_], str]:
    """Choose which samples are the test: a share of each class in each task, with groups kept whole.

    The choice depends on the samples and their order only. Of each class in each task at least one sample stays in
    training.

    Args:
        tasks: each sample's task [N].
        y: each sample's label [N].
        groups: of each sample, None where each is its own.
        share: to be held out, in (0, 1).

    Returns:
        A mask [N] of the test samples, and a note that says how many they are.
    """
    cells = np.unique(np.stack([tasks, y]), axis=1, return_inverse=True)[1].reshape(-1)
    mask = np.zeros(len(y), bool)
    if groups is None:
        for cell in range(cells.max() + 1):
            rows = np.flatnonzero(cells == cell)
            count = min(max(round(share * len(rows)), 1), len(rows) - 1)
            mask[rows[_shuffled(len(rows), "held-out", cell)[:count]]] = True
        return mask, f"test: {mask.sum()} of {len(y)} samples, held out of each class alike and for every seed"
    names, of = np.unique(np.array(groups), return_inverse=True)
    counts = np.zeros((len(names), cells.max() + 1))
    np.add.at(counts, (of.reshape(-1), cells), 1)
    chosen = _whole_groups(counts, share)
    mask = chosen[of.reshape(-1)]
    return mask, (f"test: {mask.sum()} of {len(y)} samples ({mask.mean():.0%}), held out as {chosen.sum()} of "
                  f"{len(names)} whole groups, for every seed")


def _whole_groups(counts: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.bool_]:
    """Choose groups whose samples come near to a share of each cell: of each class in each task.

    One group after the other is taken if it brings the shares nearer and leaves training something of each cell; then
    a cell without any gets the smallest group that does the latter, if there is one.

    Args:
        counts: samples of each group in each cell.
        share: to come near to.
    """
    totals = counts.sum(0)
    target, test_counts, chosen = share * totals, np.zeros_like(totals), np.zeros(len(counts), bool)

    def leaves_some(group: int) -> bool:
        return bool(np.all(test_counts + counts[group] < totals))

    def distance(at: npt.NDArray[np.float64]) -> float:
        return float(((at - target) ** 2 / totals).sum())

    for group in _shuffled(len(counts), "held-out", "groups"):
        if leaves_some(group) and distance(test_counts + counts[group]) < distance(test_counts):
            test_counts += counts[group]
            chosen[group] = True
    for cell in range(len(totals)):
        if not test_counts[cell]:
            fitting = [g for g in np.flatnonzero(counts[:, cell] * ~chosen).tolist() if leaves_some(g)]
            if fitting:
                least = min(fitting, key=lambda g: counts[g].sum())
                test_counts += counts[least]
                chosen[least] = True
    return chosen


def _shuffled(count: int, *axes: str | int) -> Rows:
    """Return 0..count-1 in an order that is always the same."""
    order: Rows = torch.randperm(count, generator=seeds.generator(0, *axes)).numpy()
    return order
