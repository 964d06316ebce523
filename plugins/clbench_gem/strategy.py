"""GEM: project the gradient if it would raise the loss on stored samples of any earlier task.

Let g be the gradient of the batch, and G [t, P] the gradients of the mean losses on the stored samples of each earlier
task. A step uses g if G g >= 0. Otherwise it uses G^T v + g, where v solves the dual problem (eq. 11)

    minimize  1/2 v^T (G G^T) v + (G g)^T v    over  v >= margin

With a margin of 0 this is the step nearest to g that raises none of these losses (to first order). All stored samples
of a task take part in every step, so a step costs one pass over the memory. On a GPU, each step waits for the
inner products, because the dual problem is solved on the CPU. They are computed in float64, because `RIDGE` is smaller
than the rounding error of float32 if gradients are long. If gradients are not finite or too long for float64 as well,
the step is NaN, and the trial counts as diverged.

As in the authors' code (facebookresearch/GradientEpisodicMemory), `RIDGE` is added to the diagonal of G G^T, which
gives the problem one solution, and the margin (`memory_strength`) is the lower bound of v. The paper adds it to the
solution for v >= 0 instead. The authors use quadprog; here the problem is written as nonnegative least squares.

The memory is offered a task's samples when the task ends, as in `a-gem`, and classes share it equally. The authors
divide it into equal parts and keep the last samples of each task in its part. Samples of the memory are not augmented.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, StreamInfo, Task
from clbench.core.device import send
from clbench.strategy.replay import ReplayMemory
from clbench_gem import GEMOptions

RIDGE = 1e-3


class GEM(ReplayMemory):
    """Fine-tuning with projected gradients."""

    options: GEMOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        options = options or GEMOptions()
        assert isinstance(options, GEMOptions)
        super().__init__(model, stream_info, options, capacity=options.capacity, balance=options.balance)
        self.slot_tasks: list[int] = []  # the task of each stored sample

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the nearest step that does not raise the loss of any earlier task."""
        if not self.slot_tasks:
            return gradients
        step = torch.cat([gradient.flatten() for gradient in gradients.values()])
        memory = torch.stack([self.memory_gradient(task, list(gradients)) for task in sorted(set(self.slot_tasks))])
        sizes = [gradient.numel() for gradient in gradients.values()]
        parts = torch.split(project(step, memory, self.options.margin), sizes)
        return {name: part.view_as(gradient) for (name, gradient), part in zip(gradients.items(), parts, strict=True)}

    def memory_gradient(self, task: int, names: list[str]) -> Tensor:
        """Return the gradient [P] of the mean loss on a task's stored samples, for parameters by name."""
        named = dict(self.named_parameters())
        slots = torch.tensor([slot for slot, stored_task in enumerate(self.slot_tasks) if stored_task == task])
        with torch.enable_grad():
            loss = self.stored_loss(self.memory.take(send(slots, self.memory_y.device)), task)
            parts = torch.autograd.grad(loss, [named[name] for name in names], allow_unused=True)
        return torch.cat([torch.zeros_like(named[name]).flatten() if gradient is None else gradient.flatten()
                          for name, gradient in zip(names, parts, strict=True)])

    def after_task(self, task: Task) -> None:
        """Offer the task's samples to the memory."""
        self.offer(task.train)
        self.slot_tasks = self.memory_tasks.tolist()


def project(gradient: Tensor, memory: Tensor, margin: float) -> Tensor:
    """Return the gradient [P], or its projection if it points against a row of `memory` [t, P]."""
    rows = memory.double()
    along = rows @ gradient.double()
    weights = dual_weights(rows @ rows.T, along, margin).to(memory)
    return torch.where((along >= 0).all(), gradient, gradient + weights @ memory)


def dual_weights(products: Tensor, along: Tensor, margin: float) -> Tensor:
    """Return the v >= margin that minimizes 1/2 v^T (products + RIDGE I) v + along^T v; all are float64, v is [t].

    With products + RIDGE I = L L^T and v = margin + u, this is |L^T u - b|^2 / 2 over u >= 0, with
    L b = -(L L^T margin + along). If numbers are not finite or L does not exist, v is NaN.
    """
    from scipy.optimize import nnls

    if products.is_meta:
        return torch.zeros_like(along)
    numbers = torch.cat([products, along[:, None]], 1).cpu()
    *columns, cpu_along = numbers.unbind(1)
    system = torch.stack(columns)
    system = (system + system.T) / 2 + RIDGE * torch.eye(len(system), dtype=torch.float64)
    factor, failure = torch.linalg.cholesky_ex(system)
    if failure or not numbers.isfinite().all():
        return torch.full_like(cpu_along, torch.nan)
    linear = cpu_along + system.sum(1) * margin
    target = torch.linalg.solve_triangular(factor, -linear[:, None], upper=False)[:, 0]
    solution, _ = nnls(factor.T.numpy(), target.numpy())
    return torch.from_numpy(solution) + margin
