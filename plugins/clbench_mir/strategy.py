"""MIR: of candidates from the memory, those are replayed whose loss the coming step would raise most.

With L the mean loss of the new samples, theta' = theta - lr grad L(theta) is where a step of plain SGD on them alone
would lead, and a candidate's score is

    l(theta') - l(theta)

for its own loss l (MI-1 in the paper; MI-2 would compare with the lowest loss that a sample ever had). The candidates
with the highest scores are appended to the batch and trained on as in `er`.

The learning rate is the one that the recipe begins with, without schedule and warm-up. With Adam the step that is taken
is another than the imagined one, which has the gradient's own length; Avalanche does the same with any optimiser. New
samples are as the stream stores them, not augmented. Networks are in eval mode for the scores, so that normalisation
and dropout are the same for both losses and running statistics are left alone.

In the authors' code (optimass/Maximally_Interfered_Retrieval) 50 candidates are drawn for 10 that are replayed beside
10 new ones; so here it is 5 for each. Where the memory is hardly larger than what is replayed, there is nothing to
choose: with batches of 128 and 200 slots this is little more than `er`, and `replayed = 10` is nearer to the paper.

Where reference codes differ: the authors' and Avalanche's never replay samples of the task at hand, which `update =
task` gives; algorithm 1 does not exclude them, which is `update = step`. The authors' reservoir is filled in every
step, so that in a task fewer and fewer of its slots are those of earlier tasks; with `update = task` all are. Avalanche
balances classes. Its plugin draws as many candidates as it replays, and so replays at random. Both codes add the means
of new and replayed samples, which is twice the gradient where there are as many; here as in `er` it is one mean, as in
algorithm 1. The authors' networks are in training mode. They train with SGD (0.05 to 0.1), in a single pass.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from clbench_er.strategy import ER
from torch import Tensor
from torch.func import functional_call

from clbench import Batch, Network, Options, Samples, Task, World
from clbench.strategy.granted import Phase
from clbench.strategy.per_sample_gradients import evaluating
from clbench_mir import MIROptions


class MIR(ER):
    """Experience replay of what the new samples interfere with most."""

    options: MIROptions

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with an empty memory."""
        super().__init__(model, world, options or MIROptions())
        self.lr = 0.0  # of the step that is imagined

    def before_phase(self, task: Task, phase: Phase) -> None:
        """Note the learning rate."""
        self.lr = phase.lr

    def replay(self, batch: Batch) -> Samples:
        """Return the candidates with the highest scores, highest first."""
        count = self.options.replayed or len(batch.y)
        candidates = self.sample(count * self.options.candidates)
        if len(candidates) <= count:
            return candidates
        return candidates.take(self.scores(batch, candidates).topk(count).indices)

    def scores(self, batch: Batch, candidates: Samples) -> Tensor:
        """Return by how much a step on a raw batch would raise the loss of each raw candidate [M]."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with evaluating(self):
            with torch.enable_grad():
                loss = self.loss(replace(batch, x=self.world.prepare(batch.x)))
                found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            with torch.no_grad():
                x = self.world.prepare(candidates.x)
                ahead = {name: p - self.lr * g for (name, p), g in zip(own.items(), found, strict=True)
                         if g is not None}
                return self._losses(functional_call(self, ahead, (x,)), candidates) - self._losses(self(x), candidates)

    def _losses(self, logits: Tensor, samples: Samples) -> Tensor:
        """Return the cross-entropy of each sample [M]."""
        return F.cross_entropy(self.mask(logits, samples.tasks, len(samples)), samples.y, reduction="none")
