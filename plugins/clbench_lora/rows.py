"""A part of a Linear layer, such as q of a layer that computes q, k and v."""

from __future__ import annotations

from torch import Tensor, nn


class Rows(nn.Module):
    """Some rows of a Linear layer's weight, used as a layer of their own.

    The weight belongs to the layer and is read from it each time. This module has no parameters.

    Args:
        layer: the whole layer.
        part: the index of the part, from 0.
        parts: the number of parts, which all have the same size.
    """

    def __init__(self, layer: nn.Linear, part: int, parts: int) -> None:
        """Compute which rows of the weight belong to the part."""
        super().__init__()
        self.whole = (layer,)  # in a tuple, so that the layer is not registered here a second time
        self.in_features = layer.in_features
        self.out_features = layer.out_features // parts
        self.start = part * self.out_features

    @property
    def layer(self) -> nn.Linear:
        """Return the whole layer."""
        return self.whole[0]

    @property
    def rows(self) -> slice:
        """Return the rows' place in the weight of the whole layer."""
        return slice(self.start, self.start + self.out_features)

    @property
    def weight(self) -> Tensor:
        """Return the rows' weight [out, in]."""
        return self.layer.weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """Return the rows' bias [out]; None if the layer has none."""
        bias: Tensor | None = self.layer.bias
        return None if bias is None else bias[self.rows]
