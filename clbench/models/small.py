"""The small models: `mlp` (van de Ven & Tolias 2019: 2 x 400, ReLU), `linear`, `cnn` and residual networks.

The residual networks are `resnet18` as used in the CL literature and He et al.'s `resnet20` and `resnet32`. Every
residual unit is one `Block`: its body is the sum of both paths, its activation the ReLU that follows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.options import NoOptions
from clbench.models.builtin import CNNOptions, MLPOptions, ResNet18Options, ResNetCIFAR10Options
from clbench.models.network import Block, Network, Ports


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias. With stride 1, it keeps the size of maps; with stride 2, it halves it."""
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """He et al.'s shortcut A: take every second pixel and pad channels with zeros on both sides; no parameters."""

    def __init__(self, channels: int, out: int) -> None:
        """Compute the padding from `channels` to `out` channels."""
        super().__init__()
        self.before = (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [N, out, H / 2, W / 2] for x [N, channels, H, W]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class GlobalAverage(nn.Module):
    """The mean of every map. It equals AdaptiveAvgPool2d(1), which vmap would run in a loop on channels-last maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, C] of maps x [N, C, H, W], bit for bit those of AdaptiveAvgPool2d(1)."""
        return x.mean((-2, -1))


class Residual(nn.Module):
    """Two 3x3 convolutions (batch norm after each, ReLU between) plus a shortcut; the ReLU after it is the block's.

    Args:
        channels: channels of the input.
        out: channels of the output.
        stride: stride of the first convolution; 2 halves the size.
        padded: whether a shortcut that changes the shape is `PadShortcut` instead of a 1x1 convolution with batch norm.
    """

    def __init__(self, channels: int, out: int, stride: int, padded: bool) -> None:
        """Create the layers with torch's default initialization."""
        super().__init__()
        self.ports = Ports(channels, out, stride)
        self.conv1, self.bn1 = conv3x3(channels, out, stride), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = conv3x3(out, out), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = PadShortcut(channels, out) if padded else nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [N, out, H / stride, W / stride] for x [N, channels, H, W]."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut: Tensor = self.shortcut(x)
        return out + shortcut


def resnet18(options: ResNet18Options, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return ResNet-18 with a 3x3 stem and no pooling after it (Lopez-Paz & Ranzato 2017: width 20, DER: 64)."""
    widths = [options.width * 2**stage for stage in range(4)]
    return _resnet(input_shape, classes, widths, units=2, padded=False)


def resnet20(options: ResNetCIFAR10Options, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return He et al.'s ResNet-20 for CIFAR: three stages of three units, shortcut A (arXiv 1512.03385, 4.2)."""
    return _resnet(input_shape, classes, [options.width * 2**stage for stage in range(3)], units=3, padded=True)


def resnet32(options: ResNetCIFAR10Options, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return He et al.'s ResNet-32 for CIFAR: three stages of five units, shortcut A (arXiv 1512.03385, 4.2)."""
    return _resnet(input_shape, classes, [options.width * 2**stage for stage in range(3)], units=5, padded=True)


def _resnet(input_shape: tuple[int, ...], classes: int, widths: Sequence[int], units: int, padded: bool) -> Network:
    """Return a network of a stem, stages of residual units, global average pooling and a head.

    Its `aliases` are the names of the weights in widely used code (kuangliu's, akamaster's).
    """
    stem = Block(nn.Sequential(conv3x3(input_shape[0], widths[0]), nn.BatchNorm2d(widths[0])), nn.ReLU())
    aliases = {"conv1": "blocks.0.body.0", "bn1": "blocks.0.body.1", "linear": "head"}
    blocks, channels = [stem], widths[0]
    for (stage, width), unit in itertools.product(enumerate(widths), range(units)):
        stride = 2 if stage and not unit else 1
        aliases[f"layer{stage + 1}.{unit}"] = f"blocks.{len(blocks)}.body"
        blocks.append(Block(Residual(channels, width, stride, padded), nn.ReLU()))
        channels = width
    blocks[-1].activation = nn.Sequential(nn.ReLU(), GlobalAverage())
    return Network(blocks, nn.Linear(channels, classes), aliases)


class XavierLinear(nn.Linear):
    """A linear layer with Xavier's uniform weights and biases of 0 at first, as in Mammoth."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class TruncatedNormalLinear(nn.Linear):
    """A linear layer with weights from N(0, 0.1^2), cut off at 0.2, and biases of 0.1 (Chaudhry et al. 2019)."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.trunc_normal_(self.weight, std=0.1, a=-0.2, b=0.2)
        nn.init.constant_(self.bias, 0.1)


def mlp(options: MLPOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a multilayer perceptron on flattened inputs: `depth` hidden ReLU layers of `width` units.

    Without hidden layers it is `linear`.
    """
    layer = {"torch": nn.Linear, "xavier": XavierLinear, "truncated-normal": TruncatedNormalLinear}[options.init]
    if options.depth == 0:
        return linear(NoOptions(), input_shape, classes, layer)
    sizes = [math.prod(input_shape), *[options.width] * options.depth]
    blocks = [Block(layer(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    blocks[0].body = nn.Sequential(nn.Flatten(), blocks[0].body)
    return Network(blocks, layer(options.width, classes))


def linear(options: NoOptions, input_shape: tuple[int, ...], classes: int,
           layer: type[nn.Linear] = nn.Linear) -> Network:
    """Return a linear head on flattened inputs. Its only block flattens, so that the features are the inputs."""
    return Network([Block(nn.Flatten(), nn.Identity())], layer(math.prod(input_shape), classes))


def cnn(options: CNNOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return `depth` stages of 3x3 convolution, ReLU and 2x2 max pooling, with doubling channels, and a linear head."""
    channels, height, width = input_shape
    blocks = []
    for stage in range(options.depth):
        out = options.channels * 2**stage
        activation: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(2)]
        if stage == options.depth - 1:
            activation.append(nn.Flatten())
        blocks.append(Block(nn.Conv2d(channels, out, 3, padding=1), nn.Sequential(*activation)))
        channels, height, width = out, height // 2, width // 2
    return Network(blocks, nn.Linear(channels * height * width, classes))
