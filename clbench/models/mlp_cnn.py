"""The small models: `mlp` (van de Ven & Tolias 2019: 2 x 400, ReLU), `linear` (a head alone) and `cnn`."""

from __future__ import annotations

import itertools
import math

from torch import nn

from clbench.core.options import NoOptions
from clbench.models.builtin import CNNOptions, MLPOptions
from clbench.models.network import Block, Network


def mlp(options: MLPOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a multilayer perceptron on flattened inputs: `depth` hidden ReLU layers of `width` units.

    Without hidden layers it is `linear`.
    """
    if options.depth == 0:
        return linear(NoOptions(), input_shape, classes)
    sizes = [math.prod(input_shape), *[options.width] * options.depth]
    blocks = [Block(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    blocks[0].body = nn.Sequential(nn.Flatten(), blocks[0].body)
    return Network(blocks, nn.Linear(options.width, classes))


def linear(options: NoOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a linear head on flattened inputs; its one block only flattens, so that features are the inputs."""
    return Network([Block(nn.Flatten(), nn.Identity())], nn.Linear(math.prod(input_shape), classes))


def cnn(options: CNNOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return `depth` stages of 3x3 convolution, ReLU and 2x2 max pooling, channels doubling, then a linear head."""
    channels, height, width = input_shape
    blocks = []
    for stage in range(options.depth):
        out = options.channels * 2**stage
        after: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(2)]
        if stage == options.depth - 1:
            after.append(nn.Flatten())
        blocks.append(Block(nn.Conv2d(channels, out, 3, padding=1), nn.Sequential(*after)))
        channels, height, width = out, height // 2, width // 2
    return Network(blocks, nn.Linear(channels * height * width, classes))
