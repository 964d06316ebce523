"""What models of timm and torchvision have in common: a whole model as one block, and a network around blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from clbench.core.errors import SpecError
from clbench.models.network import Block, Network
from clbench.models.splitting import Stage, cut

CHANNELS = 3  # of the images that these models take


class Backbone(nn.Module):
    """A whole model without its classifier; as a submodule, so that names stay apart."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, D] of images x [N, 3, H, W]."""
        features: Tensor = self.model(x)
        return features


def square(name: str, input_shape: tuple[int, ...]) -> int:
    """Return the side of the images that a model is given; SpecError if they have no 3 channels or no square shape."""
    if len(input_shape) != 3 or input_shape[0] != CHANNELS or input_shape[1] != input_shape[2]:
        raise SpecError(f"model {name!r} takes square images with {CHANNELS} channels, this benchmark has inputs "
                        f"{list(input_shape)}; choose a size ({name}:size=224) or another model or benchmark")
    return input_shape[1]


def whole_patches(name: str, side: int, patch: int) -> None:
    """Refuse images of `side` pixels that cannot be cut into patches; SpecError names the nearest size that can."""
    if side % patch:
        nearest = max(patch, round(side / patch) * patch)
        raise SpecError(f"model {name!r} cuts images into patches of {patch} x {patch} pixels, this benchmark has "
                        f"inputs of {side} x {side}; choose a multiple of {patch}, such as {name}:size={nearest}")


def without(model: nn.Module, classifier: nn.Linear) -> str:
    """Replace a model's classifier by the identity and return its name."""
    name: str = next(n for n, module in model.named_modules() if module is classifier)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return name


def in_stages(model: nn.Module, classifier: nn.Linear, classes: int, stages: Sequence[Stage], maps: bool,
              conform: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None) -> Network:
    """Return a network of a model's stages and a new head, or of the whole model as one block where it is no chain.

    Args:
        model: of the library; the network uses its modules.
        classifier: its last layer, in whose place the head comes.
        classes: outputs of the head.
        stages: see `splitting.cut`.
        maps: likewise.
        conform: see `Network`.
    """
    name = without(model, classifier)
    parts = cut(model, stages, classifier.in_features, maps)
    if parts is None:
        parts = ([Block(Backbone(model), nn.Flatten())],
                 {part: f"blocks.0.body.model.{part}" for part in children(model)})
    blocks, aliases = parts
    return Network(blocks, nn.Linear(classifier.in_features, classes), {**aliases, name: "head"},
                   published=True, conform=conform)


def children(model: nn.Module) -> list[str]:
    """Return the names of a model's modules and of its own parameters and buffers."""
    tensors: list[tuple[str, Any]] = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return [name for name, _ in (*model.named_children(), *tensors)]
