"""mean-er: replay with two averaged copies of the network; one of them predicts (Arani et al. 2022, arXiv 2201.12604).

A plugin in one file, written from docs/writing-a-strategy.md. Its `predict` uses different weights from its `forward`.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field

from clbench import Batch, Network, Options, Prediction, Samples, StrategyInfo, StreamInfo, Task, hookimpl
from clbench.strategy.replay import ReplayMemory


class MeanEROptions(Options):
    """Options of `mean-er`."""

    capacity: int = Field(200, ge=1, description="stored samples")
    weight: float = Field(0.1, ge=0, description="weight of the consistency with the averaged networks")
    stable_decay: float = Field(0.9, ge=0, lt=1, description="decay of the stable average")
    plastic_decay: float = Field(0.5, ge=0, lt=1, description="decay of the plastic average")
    stable_rate: float = Field(0.5, ge=0, le=1, description="probability that a step updates the stable average")
    plastic_rate: float = Field(0.9, ge=0, le=1, description="probability that a step updates the plastic average")


class MeanER(ReplayMemory):
    """Experience replay that pulls replayed logits towards those of the better of two averages of the weights.

    The stable average predicts.
    """

    roles = (("stable.*", "averages"), ("plastic.*", "averages"))
    options: MeanEROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with two copies of the network and an empty memory."""
        options = options or MeanEROptions()
        super().__init__(model, stream_info, options, capacity=options.capacity)
        self.stable = copy.deepcopy(model).requires_grad_(False)
        self.plastic = copy.deepcopy(model).requires_grad_(False)

    def frozen_modules(self):
        """Return the averages, which stay in eval mode."""
        return self.stable, self.plastic

    def prepare_batch(self, batch: Batch) -> Batch:
        """Update the averages, append replayed samples, and offer the new samples to the memory."""
        draws = torch.rand(2, generator=self.stream_info.generator).tolist()
        for average, decay, rate, draw in zip(
                (self.stable, self.plastic), (self.options.stable_decay, self.options.plastic_decay),
                (self.options.stable_rate, self.options.plastic_rate), draws, strict=True):
            if draw < rate:
                self.update(average, decay)
        replayed = self.sample(len(batch.y))
        extended = batch.extended(replayed) if len(replayed) else batch
        if batch.first_pass:
            self.offer(Samples(batch.x, batch.y, batch.tasks))
        return extended

    @torch.no_grad()
    def update(self, average: Network, decay: float) -> None:
        """Move an average towards the trained weights."""
        for mean, tensor in zip(average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if tensor.is_floating_point():
                mean.lerp_(tensor, 1 - decay)
            else:
                mean.copy_(tensor)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of all samples plus the distance of replayed logits to the better average's."""
        logits = self(batch.x, batch.task)
        loss = F.cross_entropy(self.mask(logits, batch.tasks, batch.replayed), batch.y)
        if batch.replayed:
            x, y = batch.x[-batch.replayed:], batch.y[-batch.replayed:]
            stable, plastic = self.stable(x), self.plastic(x)
            right = [F.softmax(out, 1).gather(1, y[:, None]) for out in (stable, plastic)]
            target = torch.where(right[0] > right[1], stable, plastic).detach()
            loss = loss + self.options.weight * F.mse_loss(logits[-batch.replayed:], target)
        return loss

    def after_task(self, task: Task) -> None:
        """Update the averages with the weights after the last step."""
        self.update(self.stable, self.options.stable_decay)
        self.update(self.plastic, self.options.plastic_decay)

    def predict(self, x: torch.Tensor, task: int | None = None) -> Prediction:
        """Return the logits of the stable average."""
        return Prediction(self.stable(x))


@hookimpl
def clbench_strategies() -> list[StrategyInfo]:
    """Return the method."""
    return [StrategyInfo("mean-er", MeanER, "replay towards averages of the weights", MeanEROptions)]
