"""Models of torchvision and timm as networks: the last linear layer is the head, everything before it one block."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from clbench.core.errors import DataError, SpecError, unknown
from clbench.core.options import NoOptions
from clbench.models.network import Block, Network, TokenNetwork


class Backbone(nn.Module):
    """A foreign model whose last linear layer is replaced by the identity; as a submodule, so that names stay apart."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return features [N, D] of images x [N, 3, H, W]."""
        features: Tensor = self.model(x)
        return features


class TimmTransformer(TokenNetwork):
    """A plain vision transformer of timm, whose features are its class token."""

    def embed(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] of images x [N, 3, H, W]."""
        model = self._model()
        tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after all blocks and the final norm, of tokens [N, L, D]."""
        model = self._model()
        encoded: Tensor = model.norm(model.blocks(tokens))
        return encoded

    def _model(self) -> Any:
        return self.get_submodule("blocks.0.body.model")


def torchvision(name: str, _options: NoOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a classification model of torchvision, untrained; `name` is `torchvision:resnet18` and the like."""
    import torchvision.models as home
    from torchvision.models import get_model, list_models

    known = list_models(home)
    return _network(name, lambda inner: get_model(inner, weights=None), known, input_shape, classes)


def named_weights(model: str, name: str) -> Mapping[str, Tensor]:
    """Return the weights that torchvision publishes for one of its models under a name such as IMAGENET1K_V1.

    torchvision downloads them, checks their hash and keeps them in torch's hub folder.

    Raises:
        SpecError: the model is not torchvision's, or has no weights of that name.
        DataError: they cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    source, _, inner = model.partition(":")
    if source != "torchvision":
        raise SpecError(f"weights {name} are torchvision's (or a file that is not there), and model {model!r} is not; "
                        "name a file, or a model torchvision:NAME")
    known = get_model_weights(inner).__members__
    if name not in known:
        raise SpecError(unknown("weights", name, known, f"torchvision's get_model_weights({inner!r})"))
    try:
        weights: Mapping[str, Tensor] = known[name].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"weights {name} of {model} cannot be had: {' '.join(str(error).split())}") from error
    return weights


def timm(name: str, _options: NoOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return a model of timm, untrained; `name` is `timm:vit_tiny_patch16_224` and the like."""
    try:
        home = importlib.import_module("timm")
    except ModuleNotFoundError:
        raise SpecError(f"model {name!r} needs timm: pip install 'clbench[timm]'") from None
    transformer = home.models.VisionTransformer
    return _network(name, lambda inner: home.create_model(inner, pretrained=False), home.list_models(), input_shape,
                    classes, lambda model: TimmTransformer if type(model) is transformer and
                    model.global_pool == "token" else Network)


def _network(name: str, create: Callable[[str], nn.Module], known: list[str], input_shape: tuple[int, ...],
             classes: int, kind: Callable[[Any], type[Network]] = lambda _: Network) -> Network:
    """Return a model split into its body and a new head for `classes` classes; `kind` chooses the class of network."""
    source, _, inner = name.partition(":")
    if inner not in known:
        raise SpecError(unknown(f"{source} model", inner, known, f"{source}'s list_models()"))
    if input_shape[0] != 3:
        raise SpecError(f"model {name!r} takes images with 3 channels, this benchmark has {input_shape[0]}; choose "
                        "another model or benchmark")
    model = create(inner)
    layers: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise SpecError(f"model {name!r} ends in no linear layer that could be the head; choose another model")
    last, layer = layers[-1]
    parent, _, attribute = last.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    aliases = {child: f"blocks.0.body.model.{child}" for child, _ in model.named_children()}
    aliases |= {parameter: f"blocks.0.body.model.{parameter}"
                for parameter, _ in model.named_parameters(recurse=False)}
    return kind(model)([Block(Backbone(model), nn.Flatten())], nn.Linear(layer.in_features, classes),
                       {**aliases, last: "head"})
