"""Layers whose weight is divided into large singular directions, which are fixed, and small ones, which are trained.

W = U_high diag(s_high) V_high + U_low diag(s_low) V_low

The weight of a convolution [out, in, height, width] is taken as a matrix [out, in·height·width].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from clbench_lora.layers import copy_geometry
from torch import Tensor, nn
from torch.func import functional_call

LOW, HIGH = ("u_low", "s_low", "v_low"), ("u_high", "v_high")


class DividedLayer(nn.Module):
    """A layer around `base_layer`, whole or divided; subclasses compute its output.

    While it is divided, the base layer's weight is the part of the large directions, and `u_low` [out, r], `s_low` [r]
    and `v_low` [r, in] are parameters. Their gradients are made orthogonal to `u_high` [out, k] and `v_high` [k, in].
    While it is whole, these five are None.

    Args:
        base_layer: the layer; its weight and bias are not trained here.
    """

    u_low: nn.Parameter | None
    s_low: nn.Parameter | None
    v_low: nn.Parameter | None
    u_high: Tensor | None
    v_high: Tensor | None

    def __init__(self, base_layer: nn.Linear | nn.Conv2d) -> None:
        """Wrap a layer, which stays whole."""
        super().__init__()
        self.base_layer = base_layer
        for name in LOW:
            self.register_parameter(name, None)
        for name in HIGH:
            self.register_buffer(name, None, persistent=False)
        copy_geometry(base_layer, self)

    @property
    def weight(self) -> Tensor:
        """Return the whole weight, for modules that read it instead of calling the layer."""
        weight: Tensor = self.base_layer.weight
        return weight if self.u_low is None else weight + self.low().view_as(weight)

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of the base layer."""
        bias: Tensor | None = self.base_layer.bias
        return bias

    @torch.no_grad()
    def divide(self, share: float) -> None:
        """Divide the weight: a share of the singular directions, the largest ones, is fixed."""
        weight = self.base_layer.weight
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        fixed = int(len(s) * share)
        for name, part in zip(LOW, (u[:, fixed:], s[fixed:], v[fixed:]), strict=True):
            setattr(self, name, nn.Parameter(part.clone()))
        self.u_high, self.v_high = u[:, :fixed].clone(), v[:fixed].clone()
        weight.sub_(self.low().view_as(weight))

    @torch.no_grad()
    def join(self) -> None:
        """Add the trained part to the weight, and make the layer whole."""
        self.base_layer.weight.add_(self.low().view_as(self.base_layer.weight))
        self.discard()

    def discard(self) -> None:
        """Remove the parts, which makes the layer whole; the weight does not change."""
        for name in (*LOW, *HIGH):
            setattr(self, name, None)

    def low(self) -> Tensor:
        """Return the part of the small directions [out, in]."""
        assert self.u_low is not None and self.s_low is not None and self.v_low is not None
        return (self.u_low * self.s_low) @ self.v_low

    def orthogonal(self, part: str, gradient: Tensor) -> Tensor:
        """Return the gradient of `u_low`, `s_low` or `v_low` without its part in the large directions."""
        if part == "u_low":
            assert self.u_high is not None
            return gradient - self.u_high @ (self.u_high.T @ gradient)
        if part == "v_low":
            assert self.v_high is not None
            return gradient - (gradient @ self.v_high.T) @ self.v_high
        return gradient


class DividedLinear(DividedLayer):
    """A Linear layer, whole or divided."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = self.base_layer(x)
        if self.u_low is None or self.s_low is None or self.v_low is None:
            return out
        return out + F.linear(F.linear(x, self.v_low) * self.s_low, self.u_low)


class DividedConv2d(DividedLayer):
    """A convolution, whole or divided."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, by one convolution with the sum of both parts of the weight."""
        if self.u_low is None:
            base_output: Tensor = self.base_layer(x)
            return base_output
        out: Tensor = functional_call(self.base_layer, {"weight": self.weight}, (x,))
        return out
