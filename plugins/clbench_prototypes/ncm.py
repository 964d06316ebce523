"""Nearest class mean: a sample belongs to the class whose mean feature is nearest.

Mensink et al. 2013 (Distance-Based Image Classification, TPAMI 35(11)) showed that classes can be added to it at almost
no cost. They also learn a metric. Here the distance is Euclidean. Janson et al. 2022 (A Simple Baseline that Questions
the Use of Pretrained-Models in Continual Learning, arXiv 2210.04428) run it on pretrained networks, where many methods
designed for these are no better. iCaRL (Rebuffi et al. 2017, arXiv 1611.07725) scales features and means to length 1
(`normalize`), and its means are those of a few exemplars. Here they are those of all samples.

The logit of a class with mean m is f.m - |m|^2/2: half the negative squared distance, without its term -|f|^2/2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clbench import Network, StreamInfo
from clbench_prototypes import NCMOptions
from clbench_prototypes.closed_form import LinearRule


class NCM(LinearRule):
    """The nearest class mean; only the sums of features by class are stored."""

    method = "ncm"
    options: NCMOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: NCMOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else NCMOptions())

    def map(self, features: Tensor) -> Tensor:
        """Return the features, scaled to length 1 if `normalize` is set."""
        return F.normalize(features, dim=1) if self.options.normalize else features

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return the means m and -|m|^2/2."""
        means = self.map(self.means)
        return means, -means.square().sum(1) / 2
