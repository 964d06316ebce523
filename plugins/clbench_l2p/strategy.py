"""Learning to prompt (Wang et al. 2022, arXiv 2112.08654): a pool of prompts for a frozen vision transformer.

    q = the frozen network's features of x;  s_i = cos(q, key_i);  chosen: the `top` prompts with the largest s_i
    logits = head(mean over the outputs at the prompts' places of the network on [chosen prompts; tokens of x])
    loss   = cross-entropy + pull * sum over chosen i of (1 - s_i)

All tasks share the prompts, the keys and the head, and all tasks train them. The choice of prompts for a sample does
not depend on the task ID. By default, the cross-entropy is over the classes of the current task alone, as in all
reference codes (`train_mask`). Rows of the head that belong to old classes then do not change.

Reference codes differ from the paper and from each other. This implementation follows the paper and, if the paper does
not specify a detail, the authors' code (google-research/l2p):

- Prompts come before the class token and have no position embedding, as in the authors' code. In the PyTorch port,
  which PILOT and Mammoth adopted, they come after the class token and have its position embedding.
- All of these codes let the samples of a batch vote and give the most frequent prompts to the whole batch
  (`batchwise_prompt`), at test time too. A prediction then depends on the batch. The paper chooses prompts for each
  sample, as is done here.
- The authors' configuration for Split-CIFAR-100 has prompts of 10 tokens, top 4 and pull 1; PILOT's has 5, 5 and 0.1,
  and Mammoth's 5, 5 and 0.5.
- Prompts and keys start uniform in [0, 0.01), as in the authors' code; in the ports uniform in [-1, 1).
- The paper's penalty on prompts that earlier tasks chose often is left out, as in its results and codes.
- Their head starts at zero; here it is the network's own.
- They clip gradients to norm 1, as `recipe=published` does (`max_grad_norm`), and train with Adam at 0.03 for 256
  samples per step.

The paper's network is pretrained (`base = pretrained`). With `base = task1`, the first half of the first task's steps
trains the network and its head as sequential fine-tuning does. The second half trains the prompts and the keys, and
continues to train the head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo
from clbench.strategy.prompts import PromptedStrategy
from clbench_l2p import L2POptions


class L2P(PromptedStrategy):
    """A frozen transformer with `prompts` [M, L_p, D], their `keys` [M, D], and the network's own head."""

    method = "l2p"
    roles = (("prompts", "prompts"), ("keys", "prompts"))
    options: L2POptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: L2POptions | None = None) -> None:
        """Draw prompts and keys; SpecError if the model has no tokens."""
        options = options if options is not None else L2POptions()
        super().__init__(model, stream_info, options)
        width = model.head.in_features
        self.prompts = self.parameter(options.pool, options.length, width)
        self.keys = self.parameter(options.pool, width)

    def learning(self) -> Iterable[nn.Parameter]:
        """Return all prompts and keys, because every task trains all of them."""
        return self.prompts, self.keys

    def answer(self, x: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C] with prompts for inputs x with queries [N, D].

        The second result is the similarities [N, top] of the prompts that were chosen.
        """
        similarity, chosen = (query @ F.normalize(self.keys, dim=1).T).topk(self.options.top, dim=1)
        prompts = self.prompts[chosen].flatten(1, 2)
        tokens = self.model.encode(torch.cat([prompts, self.model.embed(x)], 1))
        logits: Tensor = self.model.head(tokens[:, :prompts.shape[1]].mean(1))
        return logits, similarity

    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy plus the pull on the keys."""
        logits, similarity = self.answer(batch.x, self.frozen_outputs_of(batch)["query"])
        return self.cross_entropy(logits, batch) + self.options.pull * (1 - similarity).sum(1).mean()

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C], with prompts once they are in use."""
        return self.answer(x, self.query(x))[0] if self.prompted else super().forward(x, task)
