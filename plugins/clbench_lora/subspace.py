"""Compute InfLoRA's A, whose rows are orthogonal to the stored subspaces (`clbench.strategy.subspace`)."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.strategy.subspace import directions, residual, rounding
from clbench_lora import Criterion


def design(moment: Tensor, projector: Tensor, rank: int, of: Criterion = "inputs") -> Tensor:
    """Return the A [rank, d] of a new task: the strongest directions of its inputs outside the stored subspace.

    With the inputs X [d, N] and C = X X^T these are the left singular vectors of X - PX, or of C - PC.

    The rows are orthonormal. If fewer than `rank` directions are left, the remaining rows are 0, because nothing more
    can be learned without interference.

    Args:
        moment: second moment C of the new task's inputs [d, d].
        projector: P of the stored subspace [d, d].
        rank: at most d.
        of: take the directions of the inputs X (`inputs`) or of their second moment C (`moment`).
    """
    matrix, floor = moment.double(), rounding(moment)
    if of == "moment":
        matrix = matrix @ matrix
        floor = torch.maximum(floor**2, rounding(matrix))
    values, vectors = directions(residual(matrix, projector))
    return (vectors * (values > floor))[:, :rank].T.to(moment.dtype)
