"""ER-ACE: new samples compete among the classes of their own batch only, replayed ones among all that are active.

So that the first samples of new classes do not push the outputs of old ones down, which no new sample would pull up
again (eq. 4 and 5). The two losses are added, each a mean over its samples, as in the authors' code; `er` takes one
mean over both.

Where reference codes differ: the authors' and Mammoth's leave classes not met yet in the denominator of new samples;
here they are not active. Mammoth masks and replays from the second task on; here, and in the authors' code (earlier
versions of which masked from the second task on), it is from the first step on.

`head = cosine` is the authors' network for er-ace and er-aml, but not for their baselines (pclucas14/AML): logits are
10 cos(features, weights of the class), without bias. Mammoth has it by default too. Avalanche and the default here
leave the model its linear head; tables that compare er-ace with the cosine to others without it compare two things.
Differences: here the weights begin as those of the model's head, there as those of a new linear layer; there 1e-5 is
added to lengths, here shorter ones count as 1e-5.
"""

from __future__ import annotations

import torch.nn.functional as F
from clbench_er.strategy import ER
from torch import Tensor

from clbench import Batch, Network, Options, StreamInfo
from clbench.models.network import CosineHead
from clbench_er_ace import ERACEOptions

SCALE = 10.0  # of cosines, the authors'


class ERACE(ER):
    """Experience replay with the asymmetric loss."""

    options: ERACEOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory, and with the head that the options name."""
        super().__init__(model, stream_info, options or ERACEOptions())
        if self.options.head == "cosine":
            self.model.head = CosineHead(model.head, SCALE)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the new samples among their own classes plus that of the replayed ones."""
        new = len(batch.y) - batch.replayed
        logits = self.mask(self(batch.x, batch.task), batch.tasks)
        present = F.one_hot(batch.y[:new], logits.shape[1]).any(0)
        loss = F.cross_entropy(logits[:new].masked_fill(~present, float("-inf")), batch.y[:new])
        return loss + F.cross_entropy(logits[new:], batch.y[new:]) if batch.replayed else loss
