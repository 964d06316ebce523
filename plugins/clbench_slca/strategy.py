"""SLCA: slow learner with classifier alignment (Zhang et al. 2023, arXiv 2303.05118).

All weights are fine-tuned from task to task, the body with a hundredth of the learning rate of the head (`slow`), on
the cross-entropy over the task's own classes (`outputs`). After each task the head is realigned on features drawn from
Gaussians of all classes so far (`clbench.strategy.alignment`, which says what the codes do and where they differ).

The paper's training configuration (`recipe=published`, without the budget) is SGD with momentum 0.9, weight decay 5e-4
and batches of 128 for 20 epochs. The head's learning rate is 0.01, so that of the body is 1e-4; after epoch 18, both
are a tenth of this (CIFAR-100). LAMDA-PILOT has batches of 64. The learning rate of a configuration is the head's.

The codes add a head of small random weights for each task and freeze the older heads. Here the model's head has all
outputs, and with `outputs = own` no gradient reaches those of other tasks. Weight decay still changes them, unless the
configuration has `head_decay = learning`, as `recipe=published` does. SLCA++, in the same repository, trains adapters
instead of all weights and has another loss. It is available as `slca++`.

The paper starts from pretrained weights. A body of random weights is hardly trained at a hundredth of the rate. In this
case nearly everything depends on the head, unless `slow` is larger.
"""

from __future__ import annotations

from collections.abc import Mapping

from clbench import Network, StreamInfo
from clbench.strategy.alignment import Aligned
from clbench_slca import SLCAOptions


class SLCA(Aligned):
    """Fine-tuning with two learning rates, and a head that is realigned."""

    options: SLCAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SLCAOptions | None = None) -> None:
        """Store the model and the options."""
        super().__init__(model, stream_info, options or SLCAOptions())

    def learning_rates(self) -> Mapping[str, float]:
        """Return the factors of the learning rate: 1 for the head and `slow` for all other parameters."""
        return {"model.head.*": 1.0, "model.*": self.options.slow}
