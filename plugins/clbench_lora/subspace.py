"""Where an adapter may write: InfLoRA's A, in what the stored subspaces (clbench.strategy.subspace) leave free."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.strategy.subspace import directions, residual, rounding
from clbench_lora import Criterion


def design(moment: Tensor, projector: Tensor, rank: int, of: Criterion = "inputs") -> Tensor:
    """Return the A [rank, d] of a new task: the strongest directions of its inputs outside the stored subspace.

    With the inputs X [d, N] and C = X X^T these are the left singular vectors of X - PX, or of C - PC.

    The rows are orthonormal. If fewer than `rank` directions are left, the other rows are 0, since nothing can be
    learned there without interference.

    Args:
        moment: of the new task's inputs [d, d].
        projector: P of the stored subspace [d, d].
        rank: at most d.
        of: whose directions these are: of the inputs X, or of their second moment C.
    """
    matrix, floor = moment.double(), rounding(moment)
    if of == "moment":
        matrix = matrix @ matrix
        floor = torch.maximum(floor**2, rounding(matrix))
    values, vectors = directions(residual(matrix, projector))
    return (vectors * (values > floor))[:, :rank].T.to(moment.dtype)
