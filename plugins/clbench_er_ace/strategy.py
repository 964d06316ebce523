"""ER-ACE: new samples compete only among the classes of their own batch, replayed samples among all active classes.

The first samples of new classes therefore do not push down the outputs of old classes, which no new sample would raise
again (eq. 4 and 5). The loss is the sum of two means, one over new and one over replayed samples, as in the authors'
code. `er` takes one mean over both.

Reference codes differ: the authors' code and Mammoth keep classes that have not been seen yet in the denominator for
new samples. Here these classes are not active. Mammoth masks and replays from the second task on. Here and in the
authors' code, both begin with the first step (earlier versions of the authors' code masked from the second task on).

`head = cosine` is the authors' network for er-ace and er-aml, but not for their baselines (pclucas14/AML). Its logits
are 10 cos(features, weights of the class), without bias. It is also Mammoth's default. Avalanche and the default here
keep the model's linear head. A table that compares er-ace with the cosine head to other methods without it compares two
things at once. Differences: here the weights start as those of the model's head, in the authors' code as those of a new
linear layer. Their code adds 1e-5 to lengths; here, lengths below 1e-5 count as 1e-5.
"""

from __future__ import annotations

import torch.nn.functional as F
from clbench_er.strategy import ER
from torch import Tensor

from clbench import Batch, Network, Options, StreamInfo
from clbench.models.network import CosineHead
from clbench_er_ace import ERACEOptions

SCALE = 10.0  # factor of the cosines, as in the authors' code


class ERACE(ER):
    """Experience replay with the asymmetric loss."""

    options: ERACEOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory, and with the head of the option `head`."""
        super().__init__(model, stream_info, options or ERACEOptions())
        if self.options.head == "cosine":
            self.model.head = CosineHead(model.head, SCALE)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the new samples among their own classes plus that of the replayed ones."""
        new_count = len(batch.y) - batch.replayed
        logits = self.mask(self(batch.x, batch.task), batch.tasks)
        present = F.one_hot(batch.y[:new_count], logits.shape[1]).any(0)
        loss = F.cross_entropy(logits[:new_count].masked_fill(~present, float("-inf")), batch.y[:new_count])
        return loss + F.cross_entropy(logits[new_count:], batch.y[new_count:]) if batch.replayed else loss
