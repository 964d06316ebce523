"""MIR: replay the candidates from the memory whose loss would increase most in the coming step.

Let L be the mean loss of the new samples. A step of plain SGD on them alone would lead to theta', and the score of a
candidate is

    l(theta') - l(theta),    theta' = theta - lr grad L(theta),

for its own loss l (MI-1 in the paper; MI-2 would compare with the lowest loss that the sample ever had). The candidates
with the highest scores are appended to the batch and trained on as in `er`.

The learning rate is the initial one of the training configuration, without schedule and warm-up. With Adam, the actual
step differs from this virtual step, which has the length of the gradient times the rate; Avalanche does the same with
any optimizer. New samples are used as the stream stores them, not augmented. Networks are in eval mode for the scores.
Normalization and dropout are therefore the same for both losses, and running statistics do not change.

In the authors' code (optimass/Maximally_Interfered_Retrieval), 50 candidates are drawn, and 10 of them are replayed
together with 10 new samples. Here, 5 candidates are therefore drawn for each replayed sample. If the memory is hardly
larger than the number of replayed samples, there is nothing to choose. With batches of 128 and 200 slots, MIR is little
more than `er`, and `replayed = 10` is closer to the paper.

Reference codes differ:

- The authors' code and Avalanche never replay samples of the current task (`update = task`). Algorithm 1 does not
  exclude them (`update = step`).
- The authors' reservoir is updated in every step. During a task, samples of earlier tasks therefore have fewer and
  fewer of its slots; with `update = task` they have all.
- Avalanche balances classes. Its plugin draws as many candidates as it replays, so its choice is random.
- Both codes add the means over new and over replayed samples, which gives twice the gradient if both are equally many.
  Here, as in `er` and in algorithm 1, the loss is one mean.
- The authors' networks are in training mode. They train with SGD (0.05 to 0.1), in a single pass.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from clbench_er.strategy import ER
from torch import Tensor
from torch.func import functional_call

from clbench import Batch, Network, Options, Samples, StreamInfo, Task
from clbench.strategy.granted import PhaseSpec
from clbench.strategy.per_sample_gradients import evaluating
from clbench.training.optimizers import matches
from clbench_mir import MIROptions


class MIR(ER):
    """Experience replay of the stored samples that new samples interfere with most."""

    options: MIROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        super().__init__(model, stream_info, options or MIROptions())
        self.lr = self.head_lr = 0.0  # learning rates of the virtual step

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Store the learning rates."""
        self.lr = phase.lr
        self.head_lr = phase.lr if phase.head_lr is None else phase.head_lr

    def replay(self, batch: Batch) -> Samples:
        """Return the candidates with the highest scores, highest first."""
        count = self.options.replayed or len(batch.y)
        candidates = self.sample(count * self.options.candidates)
        if len(candidates) <= count:
            return candidates
        return candidates.take(self.scores(batch, candidates).topk(count).indices)

    def scores(self, batch: Batch, candidates: Samples) -> Tensor:
        """Return by how much a step on a raw batch would raise the loss of each raw candidate [M]."""
        parameters = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with evaluating(self):
            with torch.enable_grad():
                loss = self.loss(replace(batch, x=self.stream_info.prepare(batch.x)))
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            with torch.no_grad():
                x = self.stream_info.prepare(candidates.x)
                ahead = {name: p - self._rate(name) * g
                         for (name, p), g in zip(parameters.items(), gradients, strict=True) if g is not None}
                return self._losses(functional_call(self, ahead, (x,)), candidates) - self._losses(self(x), candidates)

    def _rate(self, name: str) -> float:
        """Return the learning rate of a parameter."""
        return self.head_lr if matches(name, self.head_parameters) else self.lr

    def _losses(self, logits: Tensor, samples: Samples) -> Tensor:
        """Return the cross-entropy of each sample [M]."""
        return F.cross_entropy(self.mask(logits, samples.tasks, len(samples)), samples.y, reduction="none")
