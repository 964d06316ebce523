"""CODA-Prompt (Smith et al. 2023, arXiv 2211.13218): prompts as weighted sums of components, in a frozen transformer.

    q = the frozen network's features of x;  in each of the first blocks, for components m of all tasks so far:
    w_m = cos(q * A_m, K_m)                A: attention over the features, K: keys; * by element
    P   = sum_m w_m P_m                    [L_p, D]; its first half are keys, its second values in front of the block's
                                           own (prefix tuning)
    loss = cross-entropy of head(class token) + ortho * sum over blocks of o(P) + o(K) + o(A)
    o(B) = mean over the entries of (B B^T - I)^2

Each task adds M / T components and trains them and the head. Components of earlier tasks do not change. No prompt is
chosen and no task is inferred: every prediction uses all components learned so far. By default, the cross-entropy is
over the classes of the current task alone, as in the paper and all codes.

Reference codes differ from the paper and from each other. This implementation follows the authors' current code
(GT-RIPL/CODA-Prompt):

- When a task begins, its components start orthonormal to each other and to all earlier ones, by Gram-Schmidt. The
  paper's first code drew all components at once, orthogonal, before the first task. The authors project on each earlier
  component separately, which is exact only while these are orthogonal. Here the projection is exact. If there are more
  components than a vector has numbers, the additional ones are random unit vectors. (For these, the authors' code
  would divide by rounding errors.)
- The penalty: the paper has ||B B^T - I|| with lambda = 0.1. The first code has the mean of the squares times 1e-6
  times 0.1. The current code has the mean of the squares, and its scripts (like PILOT's) set the weight to 0.
- In the paper, as here, the prompt enters attention after the projections.
- If M is not a multiple of T, the remaining components are not used in any code. Here they are not created.

The authors train with Adam at a learning rate of 0.001, batches of 128, 20 epochs (CIFAR-100). In epoch e of E, counted
from 0, the rate is multiplied by cos(99 pi e / (200 (E - 1))), a quarter of a cosine (`recipe=published`). Their
scheduler repeats the first value in epoch 1, because its own count starts late, and so ends one value earlier. The
schedule here does not. The network is pretrained (`base = pretrained`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.models.network import Prefix
from clbench.strategy.prompts import PromptedStrategy
from clbench_coda_prompt import CodaPromptOptions


class CodaPrompt(PromptedStrategy):
    """A frozen transformer with, per task, `prompts` [B, m, L_p, D], `keys` and `attention` [B, m, D] for B blocks."""

    method = "coda-prompt"
    place, in_attention = "in the attention", True
    roles = (("prompts.*", "prompts"), ("keys.*", "prompts"), ("attention.*", "prompts"))
    options: CodaPromptOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: CodaPromptOptions | None = None) -> None:
        """Store the model; `prompts`, `keys` and `attention` are empty until the first task.

        Raises:
            SpecError: the model has no place for prompts or too few blocks, or there are fewer components than tasks.
        """
        options = options if options is not None else CodaPromptOptions()
        super().__init__(model, stream_info, options)
        self.count, self.each = self.block_count("blocks", options.blocks, 5), options.components // stream_info.tasks
        if self.count > self.model.depth:
            raise SpecError(f"coda-prompt has prompts in blocks = {self.count} blocks, and this model has "
                            f"{self.model.depth}; choose fewer, or a deeper model")
        if not self.each:
            raise SpecError(f"coda-prompt: components = {options.components} cannot be shared out to "
                            f"{stream_info.tasks} tasks; choose components={stream_info.tasks} or more")
        if (total := self.each * stream_info.tasks) > (width := model.head.in_features):
            self.notes.append(f"coda-prompt: of {total} components only {width} can have orthogonal keys in a network "
                              f"of width {width}")
        self.prompts, self.keys, self.attention = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def grow(self, task: Task) -> None:
        """Add the task's components."""
        width = self.model.head.in_features
        for parts, shape in ((self.prompts, (self.options.length, width)), (self.keys, (width,)),
                             (self.attention, (width,))):
            like = self.model.head.weight.detach()
            earlier = [like.new_empty(self.count, 0, *shape), *(part.detach() for part in parts)]
            components = orthonormal(torch.cat(earlier, 1).flatten(2), self.each)
            parts.append(nn.Parameter(components.reshape(self.count, self.each, *shape)))

    def learning(self) -> Iterable[nn.Parameter]:
        """Return the components of the current task."""
        return self.prompts[-1], self.keys[-1], self.attention[-1]

    def weights(self, query: Tensor) -> Tensor:
        """Return the weight [N, B, M] of each component for samples with queries [N, D]."""
        keys, attention = torch.cat(list(self.keys), 1), torch.cat(list(self.attention), 1)
        products = torch.einsum("nd,bmd->nbm", query, attention * F.normalize(keys, dim=2))
        return products / torch.einsum("nd,bmd->nbm", query.square(), attention.square()).sqrt()

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C], with prompts once they are in use."""
        return self.answer(x, self.query(x)) if self.prompted else super().forward(x, task)

    def answer(self, x: Tensor, query: Tensor) -> Tensor:
        """Return logits [N, C] with prompts for inputs x with queries [N, D]."""
        prompts = torch.einsum("nbm,bmld->nbld", self.weights(query), torch.cat(list(self.prompts), 1))
        keys, values = prompts.chunk(2, 2)
        logits: Tensor = self.model.head(self.prefixed_features(x, {
            block: Prefix(keys[:, block], values[:, block]) for block in range(self.count)}))
        return logits

    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy plus the penalty on components that are not orthogonal."""
        penalty = sum((overlap(torch.cat(list(part), 1).flatten(2)) for part in (
            self.prompts, self.keys, self.attention)), batch.x.new_zeros(()))
        logits = self.answer(batch.x, self.frozen_outputs_of(batch)["query"])
        return self.cross_entropy(logits, batch) + self.options.ortho * penalty


def overlap(vectors: Tensor) -> Tensor:
    """Return the sum over blocks of the mean squared entry of V V^T - I, for vectors V [B, M, K]."""
    gram = vectors @ vectors.mT
    return (gram - torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)).square().mean((1, 2)).sum()


def orthonormal(earlier: Tensor, count: int) -> Tensor:
    """Return new vectors [B, count, K] that are orthonormal, also to earlier ones [B, M, K].

    They are Gaussian draws, orthogonalized by a QR decomposition. Vectors for which no dimension is left are only
    scaled to length 1.
    """
    blocks, earlier_count, width = earlier.shape
    drawn = earlier.new_empty(blocks, count, width).normal_()
    room = min(count, max(0, width - earlier_count))
    directions, lengths = torch.linalg.qr(torch.cat([earlier[:, :width], drawn[:, :room]], 1).mT)
    signs = torch.where(lengths.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    vectors = (directions * signs[:, None]).mT[:, earlier_count:earlier_count + room]
    return torch.cat([vectors, F.normalize(drawn[:, room:], dim=2)], 1)
