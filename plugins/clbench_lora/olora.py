"""O-LoRA (Wang et al. 2023, arXiv 2310.14152): adapters per task, summed, each in a subspace of its own.

Task t trains A_t and B_t on W + sum_{i < t} B_i A_i, with a penalty on the overlap of the row spaces of A_t and of
each earlier A_i, which are frozen:

    cross-entropy + lambda_orth sum_{i < t} sum_{jk} |(A_i A_t^T)_{jk}|      (summed over the adapted layers)

Paper and reference code (cmnfriend/O-LoRA) differ: the paper squares the entries, and the code takes absolute values,
as here. Both are zero at the same place, but the gradient of the absolute value does not vanish near it. The code has a
second term, lambda_2 times the norms of A_t and B_t, which is not in the paper and is left out. The authors' scripts
for orders 1 to 3 have lambda_orth = 0.5 and lambda_2 = 0, as here. Their script for 15 tasks (long.sh) has other values
for later tasks, up to 5 and 0.3.

The default adapters are those of the code (src/run_uie_lora.py): r = 8, lora_alpha = 32, which multiplies their outputs
by 4, and lora_dropout = 0.1. As in the code, one dropout mask per layer applies to the adapters of all tasks, including
the frozen ones. Trials whose loss draws random numbers cannot be vectorized (trained in a stack), so these trials train
one by one. `dropout = 0` allows stacks.

The authors' models are language models that generate answers, so only the labels of a task's own samples are trained
on. Here the model's head has all classes. In scenario class, the cross-entropy is over the task's own classes
(`outputs`); apart from that, nothing protects the head. On Conv2d, A is taken as a matrix [r, in·kh·kw].
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from clbench import Batch, Network, StreamInfo
from clbench.strategy.alignment import Aligned
from clbench_lora import OLoRAOptions
from clbench_lora.shared_adapters import SummedLoRA


class OLoRA(Aligned, SummedLoRA):
    """A frozen backbone W, adapters per task, and a penalty on the overlap of the newest adapters with earlier ones."""

    method = "o-lora"
    inputs_only_through_model = loss_is_mean = True
    roles = (*Aligned.roles, *SummedLoRA.roles)
    options: OLoRAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: OLoRAOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else OLoRAOptions())

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy over the active outputs plus the penalty."""
        return super().loss(batch) + self.options.lambda_orth * self.overlap()

    def overlap(self) -> Tensor:
        """Return the sum of |A_i A_t^T| over entries, earlier tasks i and layers; a scalar, 0 in the first task."""
        total = torch.zeros_like(self.model.head.weight[0, 0])
        for layer in self.adapted.values():
            *earlier, newest = (cast(Tensor, a.weight).flatten(1) for a in layer.lora_A)
            if earlier:
                total = total + (torch.cat(earlier) @ newest.T).abs().sum()
        return total
