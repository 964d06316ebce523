"""A-GEM: project the gradient if it would raise the mean loss on stored samples of earlier tasks.

Let g be the gradient of the batch and r the gradient of a random batch of the memory. A step uses g if g.r >= 0, and
otherwise g - (g.r / r.r) r (eq. 11). There is one inner product over all parameters together, not one per layer.

The memory is offered a task's samples when the task ends. It therefore holds samples of earlier tasks only, as the
paper's reference gradient requires. Classes share the memory equally. With `per_class` and `quota`, the memory instead
holds a fixed number of random samples of each class in each task, as in the authors' code of 2018 (later versions have
ring buffers). Samples of the memory are not augmented. Mammoth instead offers its reservoir one random batch of each
task when the task ends.

If task boundaries are hidden, every step offers its batch to the memory, after it has drawn its reference samples. The
reference samples then come from the whole stream before the batch, including the current task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Batch, Network, Options, Samples, StreamInfo, Task
from clbench.strategy.replay import ReplayMemory
from clbench_agem import AGEMOptions

ITEMS = 8  # items of a language model per backward pass


class AGEM(ReplayMemory):
    """Fine-tuning with projected gradients."""

    options: AGEMOptions
    drawn_x: Tensor
    drawn_y: Tensor
    drawn_tasks: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        options = options or AGEMOptions()
        assert isinstance(options, AGEMOptions)
        super().__init__(model, stream_info, options, capacity=options.capacity, balance=options.balance)
        for name in ("x", "y", "tasks"):  # the current step's reference samples, if boundaries are hidden
            self.register_buffer(f"drawn_{name}", getattr(self.memory, name).clone(), persistent=False)

    def observe(self, batch: Batch) -> None:
        """Draw the step's reference samples, and then offer the batch to the memory."""
        drawn = self.sample(self.options.samples)
        self.drawn_x, self.drawn_y, self.drawn_tasks = drawn.x, drawn.y, drawn.tasks
        self.offer(Samples(batch.x, batch.y, batch.tasks))

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients projected onto the half-space where the memory's loss does not rise."""
        drawn = (self.sample(self.options.samples) if self.stream_info.boundaries
                 else Samples(self.drawn_x, self.drawn_y, self.drawn_tasks))
        if not len(drawn):
            return gradients
        named = dict(self.named_parameters())
        parameters = [named[name] for name in gradients]
        reference: dict[str, Tensor] = {}
        parts = drawn.chunks(ITEMS if self.stream_info.predicts_tokens else len(drawn))
        counts = [(part.y >= 0).sum() for part in drawn.chunks(ITEMS)] if self.stream_info.predicts_tokens else []
        for number, part in enumerate(parts):
            with torch.enable_grad():
                loss = self.stored_loss(part)
                if counts:  # the loss is a mean over targets, so a part is weighted by its targets
                    loss = loss * (counts[number] / torch.stack(counts).sum())
                part_gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for name, gradient in zip(gradients, part_gradients, strict=True):
                if gradient is not None:
                    reference[name] = reference[name] + gradient if name in reference else gradient
        return project(gradients, reference)

    def after_task(self, task: Task) -> None:
        """Offer the task's samples to the memory, unless `observe` has offered them (hidden boundaries)."""
        if self.stream_info.boundaries:
            self.offer(task.train)


def project(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients without their component against `reference`; a name that it lacks counts as 0."""
    along = sum_of_products(gradients, reference)
    length = sum_of_products(reference, reference)
    share = torch.where(along < 0, along / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)
    return {name: g - share * reference[name] if name in reference else g for name, g in gradients.items()}


def sum_of_products(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Return the inner product of a and b over the names in b, a scalar."""
    return torch.stack([(a[name] * b[name]).sum() for name in b]).sum()
