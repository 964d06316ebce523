"""The generator of inputs: a symmetric variational autoencoder of dense layers (Kingma & Welling 2014)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dense(widths: Sequence[int]) -> nn.Sequential:
    """Return dense layers from each width to the next, with ReLUs between them."""
    layers: list[nn.Module] = []
    for in_width, out_width in itertools.pairwise(widths):
        layers += [nn.Linear(in_width, out_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Generator(nn.Module):
    """An encoder of flat inputs [N, D] to Gaussians in Z dimensions, and a decoder of latent points [N, Z].

    The decoder returns logits of pixels in [0, 1], or numbers.

    Args:
        inputs: D.
        width: units of each hidden layer.
        depth: hidden layers of encoder and decoder.
        latent: Z.
    """

    def __init__(self, inputs: int, width: int, depth: int, latent: int) -> None:
        """Initialize all layers as torch does; the layer of log-variances has no bias, as in van de Ven's code."""
        super().__init__()
        hidden = [width] * depth
        self.encoder = nn.Sequential(dense([inputs, *hidden]), nn.ReLU())
        self.mean = nn.Linear(width, latent)
        self.log_variance = nn.Linear(width, latent, bias=False)
        self.decoder = dense([latent, *hidden, inputs])

    def loss(self, x: Tensor, noise: Tensor, pixels: bool) -> Tensor:
        """Return the negative evidence lower bound divided by D, a scalar: the mean over inputs x [N, D].

        Args:
            x: pixels in [0, 1], or numbers.
            noise: standard normal [N, Z]; one latent point is drawn for each input.
            pixels: whether pixels are Bernoulli (cross-entropy), or numbers Gaussian with variance 1.
        """
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        decoded = self.decoder(mean + (log_variance / 2).exp() * noise)
        reconstruction = F.binary_cross_entropy_with_logits(decoded, x) if pixels else F.mse_loss(decoded, x) / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        bound: Tensor = reconstruction + divergence.mean() / x.shape[1]
        return bound


@torch.no_grad()
def generated(decoder: nn.Module, latent: Tensor, pixels: bool) -> Tensor:
    """Return a decoder's outputs [N, D] for latent points [N, Z]: the means of pixels in [0, 1], or numbers."""
    decoded: Tensor = decoder(latent)
    return decoded.sigmoid() if pixels else decoded
