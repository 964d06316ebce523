"""The options of the built-in models (no torch here, so that they can be listed without it)."""

from __future__ import annotations

from pydantic import Field

from clbench.options import Options


class MLPOptions(Options):
    """Options of `mlp`."""

    width: int = Field(400, ge=1, description="units in each hidden layer")
    depth: int = Field(2, ge=1, description="number of hidden layers")


class CNNOptions(Options):
    """Options of `cnn`."""

    channels: int = Field(32, ge=1, description="channels of the first stage; each further stage has twice as many")
    depth: int = Field(2, ge=1, le=4, description="number of stages (3x3 convolution, ReLU, 2x2 max pooling)")
