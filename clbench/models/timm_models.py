"""Models of timm as networks: plain vision transformers block by block, convolutional networks stage by stage.

Any other model is one block. The head replaces timm's classifier (`get_classifier`).
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.errors import SpecError, unknown
from clbench.models.builtin import VisionOptions
from clbench.models.library import CHANNELS, Stage, build_stages, remove_classifier, square, whole_patches
from clbench.models.network import Block, Network, Ports, Prefix, TokenNetwork, TransformerBlock


def timm(name: str, _options: VisionOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return an untrained model of timm, such as `timm:vit_tiny_patch16_224`.

    Args:
        name: timm's name with the prefix `timm:`, with or without a tag.
        _options: not used here, because images are resized before.
        input_shape: [3, S, S]; a model with a fixed input size is built for S pixels.
        classes: the number of classes, C.

    Raises:
        SpecError: timm is not installed or has no such model, or the model's classifier is not one linear layer.
    """
    inner = check_name(name)
    side = square(name, input_shape)
    model: Any = create(inner, side, classes)
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise SpecError(f"model {name!r}: its classifier is not one linear layer but {type(classifier).__name__}, so "
                        "it has no place for a head; choose another model")
    if getattr(model, "aux_head", None) is not None:  # VOLO
        raise SpecError(f"model {name!r} adds the outputs of a second classifier (aux_head) to those of the first, so "
                        "one head cannot replace them; choose another model")
    conform = functools.partial(convert_weights, inner, side, classes)
    if type(model) is home().models.VisionTransformer and model.global_pool in ("token", "avg"):
        whole_patches(name, side, max(model.patch_embed.patch_size))
        return transformer(model, classifier, classes, conform)
    info = [dict(stage) for stage in getattr(model, "feature_info", ())]
    stages = [Stage(str(s["module"]), int(s["num_chs"]), int(s["reduction"])) for s in info if s.get("module")]
    maps = getattr(model, "output_fmt", "NCHW") == "NCHW"
    return build_stages(model, classifier, classes, stages, maps, conform)


def home() -> Any:
    """Return the package timm; SpecError if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise SpecError("models and weights of timm need the package timm, which is not installed: pip install "
                        "'clbench[timm]'") from None


def check_name(name: str) -> str:
    """Return NAME of a model `timm:NAME`; SpecError if timm has no such model or no such tag of the model."""
    inner, package = name.partition(":")[2], home()
    architecture, _, tag = inner.partition(".")
    if not package.is_model(architecture):
        raise SpecError(unknown("timm model", architecture, package.list_models(), "timm.list_models()"))
    if tag and inner not in (tags := package.list_pretrained(f"{architecture}.*")):
        raise SpecError(unknown("timm model", inner, tags, f"timm.list_pretrained('{architecture}*')"))
    return inner


def create(inner: str, side: int, classes: int) -> nn.Module:
    """Return an untrained model of timm; a model with a fixed input size is built for `side` pixels."""
    package = home()
    fixed = package.get_pretrained_cfg(inner)
    size_options = {"img_size": side} if fixed is not None and fixed.fixed_input_size else {}
    model: nn.Module = package.create_model(inner, pretrained=False, num_classes=classes, **size_options)
    return model


def convert_weights(inner: str, side: int, classes: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return published weights as timm converts them for loading: renamed, and position embeddings resampled.

    timm's function for this is in the Python module of the model's class. It uses only the shapes of the model.
    """
    with torch.device("meta"):
        model = create(inner, side, classes)
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return weights
    changed: Mapping[str, Tensor] = change(dict(weights), model)
    return changed


class Embedding(nn.Module):
    """The embedding of timm's vision transformers: patches, class and register tokens, positions."""

    def __init__(self, model: Any) -> None:
        """Use the modules and parameters of a VisionTransformer."""
        super().__init__()
        self.ports = Ports(CHANNELS, model.embed_dim, tokens=True)
        for name in PARTS:
            setattr(self, name, getattr(model, name))
        for name in ("dynamic_img_size", "no_embed_class", "num_prefix_tokens"):
            setattr(self, name, getattr(model, name))
        self.with_positions = type(model)._pos_embed

    patch_embed: nn.Module
    patch_drop: nn.Module
    norm_pre: nn.Module
    cls_token: Tensor | None
    reg_token: Tensor | None
    pos_embed: Tensor | None

    def reset_parameters(self) -> None:
        """Initialize tokens and position embeddings as timm does."""
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] for images x [N, 3, H, W]."""
        # `with_positions` is timm's method; it reads the attributes that `__init__` copied from the model.
        tokens: Tensor = self.norm_pre(self.patch_drop(self.with_positions(self, self.patch_embed(x))))
        return tokens


PARTS = ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")


class Pool(nn.Module):
    """The end of timm's vision transformers: norm, pooling (the class token or the mean of tokens), norm, dropout."""

    def __init__(self, model: Any) -> None:
        """Use the modules of a VisionTransformer."""
        super().__init__()
        self.norm, self.fc_norm, self.head_drop = model.norm, model.fc_norm, model.head_drop
        averages = model.global_pool == "avg"
        self.prefix = 0 if getattr(model, "pool_include_prefix", False) else model.num_prefix_tokens
        self.averages = averages

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features [N, D] of tokens [N, L, D]."""
        normed: Tensor = self.norm(tokens)
        pooled = normed[:, self.prefix:].mean(1) if self.averages else normed[:, 0]
        return cast(Tensor, self.head_drop(self.fc_norm(pooled)))


class TimmTransformer(TokenNetwork):
    """A plain vision transformer of timm, whose features are its class token."""

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after the final norm."""
        return cast(Tensor, self.blocks[-1].get_submodule("activation.norm")(tokens))

    def takes_prefixes(self) -> bool:
        """Return whether all blocks are timm's `Block` with timm's `Attention`."""
        plain = home().models.vision_transformer
        units = [cast(Any, block).body.unit for block in self.blocks[1:]]
        return all(type(unit) is plain.Block and type(unit.attn) is plain.Attention for unit in units)

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return the output [N, L, D] of timm's `Block` for tokens [N, L, D], with a prefix in its attention."""
        unit = cast(Any, body).unit
        tokens = tokens + unit.drop_path1(unit.ls1(attention(unit.attn, unit.norm1(tokens), prefix)))
        return cast(Tensor, tokens + unit.drop_path2(unit.ls2(unit.mlp(unit.norm2(tokens)))))


def attention(layer: Any, x: Tensor, prefix: Prefix) -> Tensor:
    """Return the output [N, L, D] of timm's `Attention` for tokens x [N, L, D], with a prefix.

    If the layer normalizes queries and keys, the keys of the prefix are not normalized.
    """
    q, k, v = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    k, v = prefix.before(layer.k_norm(k), v)
    mixed = F.scaled_dot_product_attention(layer.q_norm(q), k, v,
                                           dropout_p=layer.attn_drop.p if layer.training else 0.0)
    norm, gate = getattr(layer, "norm", nn.Identity()), getattr(layer, "gate", None)  # not in older releases
    mixed = norm(mixed.transpose(1, 2).flatten(2))
    return cast(Tensor, layer.proj_drop(layer.proj(mixed if gate is None else mixed * gate(x).sigmoid())))


def transformer(model: Any, classifier: nn.Linear, classes: int, conform: Any) -> Network:
    """Return the network of a VisionTransformer: its embedding, a block for each transformer block, norm and head."""
    name = remove_classifier(model, classifier)
    units = [TransformerBlock(unit, model.embed_dim) for unit in model.blocks]
    blocks = [Block(Embedding(model), nn.Identity()), *(Block(unit, nn.Identity()) for unit in units)]
    blocks[-1].activation = Pool(model)
    aliases = {part: f"blocks.0.body.{part}" for part in PARTS}
    aliases |= {f"blocks.{i}": f"blocks.{i + 1}.body.unit" for i in range(len(units))}
    aliases |= {part: f"blocks.{len(units)}.activation.{part}" for part in ("norm", "fc_norm", "head_drop")}
    pools_class_token = model.global_pool == "token" and isinstance(model.fc_norm, nn.Identity)
    return (TimmTransformer if pools_class_token else Network)(blocks, nn.Linear(classifier.in_features, classes),
                                                             {**aliases, name: "head"}, published=True, conform=conform)
