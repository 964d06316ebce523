"""CLS-ER: replay, with logits kept near those of two averages of the weights, a plastic and a stable one.

After each step, each average follows the weights theta with a probability of its own:

    theta_A <- a theta_A + (1 - a) theta,   a = min(1 - 1 / (step + 1), decay)        with probability rate

The stable average is updated more rarely, or by less, so that it keeps more of old tasks. For each replayed sample,
the target z is the logits of that average which gives the sample's label the larger probability (the plastic one if
both are equal):

    cross-entropy of new and replayed samples + weight mean (f(x') - z)^2

The stable average makes the predictions, as in the paper.

As in the authors' code (NeurAI-Lab/CLS-ER), the step counts from 1 over all tasks, the memory is a reservoir to which
every epoch offers its samples again, and the squared error is a mean over all outputs. `share` is the quotient of
their `minibatch_size` and `batch_size`. Differences from that code:

- Cross-entropies, and the probabilities that choose the target, are over each sample's active outputs. The authors'
  are over all outputs in every scenario.
- The averages compute in eval mode, with the running statistics of the network that learns. The authors' averages are
  copies in training mode, whose normalization uses the batch and keeps statistics of its own.
- The averages are updated for a step when the next step begins, or when the task ends
  (clbench.strategy.after_steps).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, Options, Prediction, Samples, StreamInfo
from clbench.strategy.after_steps import ActsAfterSteps
from clbench.strategy.distillation import frozen_copy
from clbench.strategy.replay import ReplayMemory
from clbench_cls_er import CLSEROptions


class CLSER(ActsAfterSteps, ReplayMemory):
    """Experience replay with two averages of the network, `plastic` and `stable`."""

    roles = (("plastic.*", "averaged networks"), ("stable.*", "averaged networks"), *ReplayMemory.roles)
    options: CLSEROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory, and with both averages equal to the network."""
        options = options or CLSEROptions()
        assert isinstance(options, CLSEROptions)
        super().__init__(model, stream_info, options, capacity=options.capacity)
        self.plastic, self.stable = frozen_copy(model), frozen_copy(model)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the averages."""
        return (self.plastic, self.stable)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with replayed samples appended, and offer the new samples to the memory."""
        batch = super().prepare_batch(batch)
        new_samples = Samples(batch.x, batch.y, batch.tasks)
        if len(self.memory_y):
            batch = batch.extended(self.sample_share(len(batch.y), self.options.share))
        self.offer(new_samples)
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of all samples plus the distance of replayed logits to those of the averages."""
        logits = self.model(batch.x)
        loss = self.cross_entropy(logits, batch)
        if batch.replayed:
            new_count = len(batch.y) - batch.replayed
            target = self.target(batch.x[new_count:], batch.y[new_count:], batch.tasks[new_count:])
            loss = loss + self.options.weight * F.mse_loss(logits[new_count:], target)
        return loss

    @torch.no_grad()
    def target(self, x: Tensor, y: Tensor, tasks: Tensor) -> Tensor:
        """Return, per replayed sample, the logits [N, C] of the average with the larger probability of its label."""
        plastic, stable = self.plastic(x), self.stable(x)
        confidence = [self.mask(logits, tasks, len(y)).softmax(1).gather(1, y[:, None]) for logits in (plastic, stable)]
        return torch.where(confidence[1] > confidence[0], stable, plastic)

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return the logits [N, C] of the stable average."""
        return Prediction(self.stable(x))

    @torch.no_grad()
    def after_step(self) -> None:
        """Update each average with its probability, and copy the network's buffers to both."""
        for average, rate, decay in ((self.plastic, self.options.plastic_rate, self.options.plastic_decay),
                                     (self.stable, self.options.stable_rate, self.options.stable_decay)):
            is_updated = bool(torch.rand((), generator=self.stream_info.generator) < rate)
            step_size = 1 - min(1 - 1 / (self.steps + 1), decay)
            for name, value in self.model.named_buffers():
                average.get_buffer(name).copy_(value)
            for name, weight in self.model.named_parameters() if is_updated else ():
                average.get_parameter(name).lerp_(weight, step_size)
