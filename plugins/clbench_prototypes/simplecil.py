"""SimpleCIL (Zhou et al. 2023, arXiv 2303.07338): class means of pretrained features as the weights of a cosine head.

The logit of a class whose mean feature is m is cos(f, m) = f.m / (|f| |m|). Nothing is trained. The paper's point is
that this does better on a pretrained vision transformer than methods that were made for it.

`ncm:normalize=true` is the same but for the means: it scales each feature to length 1 before it is averaged, SimpleCIL
averages the features as they are, as both of the authors' codes do (zhoudw-zdw/RevisitingCIL, sun-hailong/LAMDA-PILOT).
So a sample with long features weighs more. Where all features of a class have one length, the two give the same answers
(their logits differ by the 1/2 of `ncm`'s bias).

Where this differs from the codes: their head multiplies the cosine by a number that stays 1. The paper starts from
pretrained weights only; here `base = task1` trains the network on the first task where there are none.

`aper` is the paper's APER (first named ADAM): the first task adapts the network, and features are those of the
pretrained and of the adapted network side by side. The paper adapts by full fine-tuning, VPT, SSF, AdaptFormer or batch
norm; `aper` has AdaptFormer's bottlenecks in a pretrained vision transformer. Elsewhere it is SimpleCIL, and the record
says so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Network, StreamInfo
from clbench_prototypes import APEROptions, SimpleCILOptions
from clbench_prototypes.closed_form import LinearRule


class SimpleCIL(LinearRule):
    """The cosine with each class mean; it keeps their sums."""

    method = "simplecil"
    options: SimpleCILOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SimpleCILOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else SimpleCILOptions())

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return the directions of the means, and no bias."""
        return F.normalize(self.means, dim=1), torch.zeros_like(self.bias)

    def score(self, mapped: Tensor) -> Tensor:
        """Return the cosines [N, C] of features [N, D] and means."""
        return super().score(F.normalize(mapped, dim=1))


class APER(SimpleCIL):
    """SimpleCIL on the features of a pretrained network and of the one that the first task has adapted."""

    method = "aper"
    has_first_session = True
    options: APEROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: APEROptions | None = None) -> None:
        """Start with no class, and with adapters where the options have them."""
        super().__init__(model, stream_info, options if options is not None else APEROptions())
