"""What the losses of a task's steps say: whether they stayed finite, and how far they were still falling."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.core.errors import DivergedError

TENTH = 10


def diverged(losses: Tensor, task: int) -> DivergedError | None:
    """Return the error for the first loss of a task [steps] that is NaN or infinite, None where all are finite."""
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return None
    step = int(torch.nonzero(~finite)[0])
    return DivergedError(f"the loss became NaN or infinite in task {task + 1}, step {step}")


def on_host(losses: Tensor) -> Tensor:
    """Return a task's losses where they can be looked at: the one wait for the device that they cost."""
    return losses.detach().cpu()


def last_tenths(losses: Tensor, steps: int) -> tuple[float, ...]:
    """Return the mean loss over the tenth of a phase's steps before the last tenth, and over the last tenth.

    A tenth is one step at least; a phase of a single step has no two of them. Phases are apart because each may have a
    loss of its own.

    Args:
        losses: of all steps that a task took, in their order [steps].
        steps: how many of them, at its end, are the last phase's.

    Returns:
        The two means; nothing where there are no two tenths, or a loss is not finite.
    """
    part = max(1, steps // TENTH)
    if steps < 2 * part or len(losses) < 2 * part:
        return ()
    means = losses[-2 * part:].detach().float().reshape(2, part).mean(1).tolist()
    return tuple(means) if bool(torch.isfinite(losses).all()) else ()
