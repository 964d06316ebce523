"""SimpleCIL (Zhou et al. 2023, arXiv 2303.07338): class means of pretrained features as the weights of a cosine head.

The logit of a class whose mean feature is m is cos(f, m) = f.m / (|f| |m|). Nothing is trained. The paper's point is
that this does better on a pretrained vision transformer than methods that were made for it.

`ncm:normalize=true` differs from it only in the means. It scales each feature to length 1 before averaging. SimpleCIL
averages the features as they are, as both of the authors' codes do (zhoudw-zdw/RevisitingCIL, sun-hailong/LAMDA-PILOT).
A sample with long features therefore weighs more. If all features of a class have the same length, both give the same
predictions (their logits differ by the 1/2 of `ncm`'s bias).

Differences to the codes: their head multiplies the cosine by a number that stays 1. The paper starts from pretrained
weights only. Here, `base = task1` trains the network on the first task if there are no pretrained weights.

`aper` is the paper's APER (first named ADAM): the first task adapts the network, and the features of the pretrained and
of the adapted network are concatenated. The paper adapts by full fine-tuning, VPT, SSF, AdaptFormer or batch norm.
`aper` has AdaptFormer's bottlenecks in a pretrained vision transformer. In other networks it is SimpleCIL, and the
record notes this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Network, StreamInfo
from clbench_prototypes import APEROptions, SimpleCILOptions
from clbench_prototypes.closed_form import LinearRule


class SimpleCIL(LinearRule):
    """The cosine with each class mean; only the sums of features by class are stored."""

    method = "simplecil"
    options: SimpleCILOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SimpleCILOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else SimpleCILOptions())

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return the means, scaled to length 1, and a bias of 0."""
        return F.normalize(self.means, dim=1), torch.zeros_like(self.bias)

    def score(self, mapped: Tensor) -> Tensor:
        """Return the cosines [N, C] of features [N, D] and means."""
        return super().score(F.normalize(mapped, dim=1))


class APER(SimpleCIL):
    """SimpleCIL on the features of a pretrained network and of the same network, adapted by the first task."""

    method = "aper"
    has_first_session = True
    options: APEROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: APEROptions | None = None) -> None:
        """Start with no class, and with adapters if the options ask for them."""
        super().__init__(model, stream_info, options if options is not None else APEROptions())
        if self.options.adapt == "none":
            self.notes.append("aper: the network has no adapters (adapt = none), so it equals simplecil")
