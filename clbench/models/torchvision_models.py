"""Models of torchvision as networks: ResNets stage by stage, vision transformers block by block, others as one block.

The head replaces the last linear layer. `nn.MultiheadAttention` is rebuilt from Linear layers, so that each of them can
be adapted, measured and replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.errors import SpecError, unknown
from clbench.models.builtin import VisionOptions
from clbench.models.library import Stage, build_stages, remove_classifier, square, whole_patches
from clbench.models.network import Block, Network, Ports, Prefix, TokenNetwork, TransformerBlock

# Without the auxiliary heads, whose outputs the model returns in training, and with the normalization of the published
# weights, which torchvision adds to that of the data.
INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": True}
NAMES = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}  # torch's names -> names in `SelfAttention`


class SelfAttention(nn.Module):
    """Self-attention that computes the same as `nn.MultiheadAttention` without a mask, from Linear layers.

    In torch's module, the weights of q, k and v are a parameter outside of layers, and `out_proj` is never called. Here
    both are Linear layers that are called. They use torch's parameters with their values.

    Args:
        attention: torch's module, with `batch_first`, one width for q, k and v, and no `bias_k` or `add_zero_attn`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Use the parameters of torch's module."""
        super().__init__()
        self.heads, self.dropout = attention.num_heads, attention.dropout
        width, bias = attention.embed_dim, attention.in_proj_bias
        self.qkv = nn.Linear(width, 3 * width, bias is not None, device="meta")
        self.qkv.weight = attention.in_proj_weight
        if bias is not None:
            self.qkv.bias = bias
        self.out_proj = nn.Linear(width, width, attention.out_proj.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False,
                prefix: Prefix | None = None) -> tuple[Tensor, None]:
        """Return the output [N, L, width] for tokens [N, L, width], and None instead of attention weights."""
        if key is not query or value is not query or need_weights:
            raise NotImplementedError("only self-attention, and without its weights")
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(query).chunk(3, 2))
        if prefix is not None:
            k, v = prefix.before(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).flatten(2))), None


def with_plain_layers(model: nn.Module) -> dict[str, str]:
    """Replace each `nn.MultiheadAttention` that `SelfAttention` supports; return torch's tensor names -> new names."""
    new_names: dict[str, str] = {}
    for name, module in list(model.named_modules()):
        if (type(module) is nn.MultiheadAttention and module.batch_first and module._qkv_same_embed_dim
                and module.bias_k is None and not module.add_zero_attn):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, SelfAttention(module))
            new_names |= {f"{name}.{old}": f"{name}.{new}" for old, new in NAMES.items()}
    return new_names


def torchvision(name: str, _options: VisionOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return an untrained classification model of torchvision; `name` is, for example, `torchvision:resnet18`.

    Raises:
        SpecError: torchvision has no such model, or the model has no linear layer.
    """
    import torchvision.models as home

    inner, side = inner_name(name), square(name, input_shape)
    model_options: dict[str, Any] = dict(INCEPTION) if inner in ("googlenet", "inception_v3") else {}
    if inner.startswith("vit_"):
        model_options["image_size"] = side
        whole_patches(name, side, int(inner.rpartition("_")[2]))  # vit_b_16 has patches of 16 pixels
    model: Any = home.get_model(inner, weights=None, **model_options)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise SpecError(f"model {name!r} ends in no linear layer that could be the head; choose another model")
    if isinstance(model, home.VisionTransformer):
        return transformer(model, layers[-1], classes)
    stages: list[Stage] = []
    if isinstance(model, home.ResNet):
        width = model.bn1.num_features
        expansion = layers[-1].in_features // (8 * 64)
        stages = [Stage("maxpool", width, 4), *(Stage(f"layer{i + 1}", 64 * 2**i * expansion, 4 * 2**i)
                                                for i in range(4))]
    return build_stages(model, layers[-1], classes, stages, maps=True, conform=without_auxiliary_heads)


def inner_name(name: str) -> str:
    """Return NAME of a model `torchvision:NAME`; SpecError if torchvision has no such classification model."""
    import torchvision.models as home

    inner, names = name.partition(":")[2], home.list_models(home)
    if inner not in names:
        raise SpecError(unknown("torchvision model", inner, names, "torchvision's list_models()"))
    return inner


def without_auxiliary_heads(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return published weights without the auxiliary heads of GoogLeNet and Inception v3."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}


class Embedding(nn.Module):
    """The embedding of torchvision's vision transformers: patches, a class token, positions."""

    def __init__(self, model: Any) -> None:
        """Use the modules and parameters of a VisionTransformer."""
        super().__init__()
        self.ports = Ports(model.conv_proj.in_channels, model.hidden_dim, tokens=True)
        self.conv_proj, self.class_token = model.conv_proj, model.class_token
        self.pos_embedding, self.dropout = model.encoder.pos_embedding, model.encoder.dropout

    def reset_parameters(self) -> None:
        """Initialize the class token and position embeddings as torchvision does."""
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.pos_embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] for images x [N, 3, H, W]."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1)
        return cast(Tensor, self.dropout(tokens + self.pos_embedding))


class ClassToken(nn.Module):
    """The end of torchvision's vision transformers: norm, class token, and any layers before the classifier."""

    def __init__(self, model: Any) -> None:
        """Use the modules of a VisionTransformer."""
        super().__init__()
        self.ln, self.heads = model.encoder.ln, model.heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features [N, D] of tokens [N, L, D]."""
        return cast(Tensor, self.heads(self.ln(tokens)[:, 0]))


class TorchvisionTransformer(TokenNetwork):
    """A vision transformer of torchvision."""

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after the final norm."""
        return cast(Tensor, self.blocks[-1].get_submodule("activation.ln")(tokens))

    def takes_prefixes(self) -> bool:
        """Return whether the attention of each block is a `SelfAttention`."""
        return all(isinstance(cast(Any, block).body.unit.self_attention, SelfAttention) for block in self.blocks[1:])

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return the output [N, L, D] of torchvision's block for tokens [N, L, D], with a prefix in its attention."""
        unit = cast(Any, body).unit
        x = unit.ln_1(tokens)
        mixed = tokens + unit.dropout(unit.self_attention(x, x, x, prefix=prefix)[0])
        return cast(Tensor, mixed + unit.mlp(unit.ln_2(mixed)))


def transformer(model: Any, classifier: nn.Linear, classes: int) -> Network:
    """Return the network of a VisionTransformer: its embedding, a block for each transformer block, norm and head."""
    name = remove_classifier(model, classifier)
    new_names = with_plain_layers(model.encoder.layers)  # so that q, k, v and proj can be adapted
    layers = dict(model.encoder.layers.named_children())
    blocks = [Block(Embedding(model), nn.Identity()),
              *(Block(TransformerBlock(layer, model.hidden_dim), nn.Identity()) for layer in layers.values())]
    blocks[-1].activation = ClassToken(model)
    aliases = {part: f"blocks.0.body.{part}" for part in ("conv_proj", "class_token")}
    aliases |= {"encoder.pos_embedding": "blocks.0.body.pos_embedding",
                "encoder.ln": f"blocks.{len(layers)}.activation.ln", name: "head"}
    aliases |= {f"encoder.layers.{layer}": f"blocks.{i + 1}.body.unit" for i, layer in enumerate(layers)}
    places = {layer: i + 1 for i, layer in enumerate(layers)}
    for old, new in new_names.items():
        layer, _, suffix = new.partition(".")
        aliases[f"encoder.layers.{old}"] = f"blocks.{places[layer]}.body.unit.{suffix}"
    return TorchvisionTransformer(blocks, nn.Linear(classifier.in_features, classes), aliases, published=True,
                                  conform=functools.partial(convert_weights, model.image_size, model.patch_size))


def convert_weights(side: int, patch: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return published weights with the position embedding resampled to `side`, as torchvision does it."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    name = "encoder.pos_embedding"
    if name not in weights:
        return weights
    state = interpolate_embeddings(side, patch, cast(Any, {name: weights[name]}))
    return {**weights, name: state[name]}
