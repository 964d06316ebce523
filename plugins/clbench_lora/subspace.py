"""Where an adapter may write: InfLoRA's A, in what the stored subspaces (clbench.strategy.subspace) leave free."""

from __future__ import annotations

from torch import Tensor

from clbench.strategy.subspace import directions, residual, rounding


def design(moment: Tensor, projector: Tensor, rank: int) -> Tensor:
    """Return the A [rank, d] of a new task: the strongest directions of its inputs outside the stored subspace.

    The rows are orthonormal. If fewer than `rank` directions are left, the other rows are 0, since nothing can be
    learned there without interference.

    Args:
        moment: of the new task's inputs [d, d].
        projector: P of the stored subspace [d, d].
        rank: at most d.
    """
    values, vectors = directions(residual(moment, projector))
    return (vectors * (values > rounding(moment)))[:, :rank].T.to(moment.dtype)
