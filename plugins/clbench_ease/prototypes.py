"""EASE's prototypes: missing ones are combined from those of similar classes, and all are compared by cosines.

Task t's adapters span a subspace t of features. A class of task i has its mean features P[j] in the subspaces j <= i,
which existed at that time. In a later subspace k, its prototype is missing, and its samples are no longer available.
The classes of task k (or of tasks k, k + 1, ...) have both P[i] and P[k]. Subspace i shows which of them are similar to
the class:

    w = softmax over these classes d of cos(P_c[i], P_d[i]);   P_c[k] = sum_d w_d P_d[k]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.core.device import send
from clbench_ease import Donors


def completed(prototypes: Tensor, sizes: Sequence[int], donors: Donors) -> Tensor:
    """Return prototypes with the missing ones filled in; the existing ones do not change.

    Args:
        prototypes: [K, T, D] of the classes of T tasks, in the order of the tasks, in T subspaces.
        sizes: number of classes of each task.
        donors: the classes from which a prototype missing in subspace k is combined: those of task k (next), or of
            task k and all later tasks (later).
    """
    out = prototypes.clone()
    starts = [sum(sizes[:t]) for t in range(len(sizes) + 1)]
    for i, k in itertools.combinations(range(len(sizes)), 2):
        rows = slice(starts[i], starts[i + 1])
        donor_rows = slice(starts[k], starts[k + 1] if donors == "next" else None)
        similarity = F.normalize(prototypes[rows, i], dim=1) @ F.normalize(prototypes[donor_rows, i], dim=1).T
        out[rows, k] = similarity.softmax(1) @ prototypes[donor_rows, k]
    return out


def cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosines [T, N, K] of features [T, N, D] with prototypes [K, T, D], for each subspace."""
    return F.normalize(features, dim=2) @ F.normalize(prototypes, dim=2).permute(1, 2, 0)


def subspace_weights(sizes: Sequence[int], alpha: float, like: Tensor) -> Tensor:
    """Return the weights [K, T] of subspaces per class: 1 for that of the class's task, alpha / (T - 1) for others."""
    tasks = len(sizes)
    rows = torch.full((tasks, tasks), alpha / max(tasks - 1, 1), dtype=like.dtype, device="cpu").fill_diagonal_(1)
    return send(rows.repeat_interleave(torch.tensor(sizes, device="cpu"), dim=0), like.device)
