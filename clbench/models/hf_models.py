"""Text models of Hugging Face's transformers as networks: an embedding, a block for each layer, and a head.

Encoders like BERT (BERT, MiniLM, RoBERTa, XLM-R, ELECTRA) and decoders like Llama (Llama, Mistral, Qwen, SmolLM) are
divided into blocks that consist of transformers' own modules. Other models (DeBERTa, DistilBERT, GPT-2, ModernBERT) are
one block. When a network is built, its features are compared with the features of the library's own model. If those of
several blocks differ, the model is one block.

Inputs are tokens, int32 [N, L] with -1 after the last token of a sample (`clbench.core.tokens`). Between blocks,
padding is a vector of zeros, so blocks need no mask as a second input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.errors import SpecError
from clbench.core.tokens import present
from clbench.models.builtin import Pooling, TextModelOptions
from clbench.models.hf_parts import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    Pool,
    Tokens,
    Whole,
    additive,
    build_untrained,
    choose_network,
    convert_weights,
    is_decoder,
    is_divisible,
    load_config,
    require_length,
)
from clbench.models.language_model import language_model
from clbench.models.network import Block, Network, Prefix, TokenNetwork

ENCODERS = {"BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel"}


def text_model(name: str, options: TextModelOptions, input_shape: tuple[int, ...], classes: int) -> Network:
    """Return the untrained network of a text model; `name` is `hf:FOLDER` or `hf:OWNER/NAME`.

    With 0 classes, return the network of a causal language model.

    Raises:
        SpecError: the model cannot take texts of this length, or clbench does not support it or its pooling.
        DataError: there is no such folder or repository.
    """
    if not classes:
        return language_model(name, options, input_shape)
    folder, config = load_config(name)
    model = build_untrained("AutoModel", config, options.dropout)
    require_length(name, model, input_shape[0])
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()  # `pool` replaces it, and published weights may lack its weights
    pool = options.pool or pooling_of(folder) or ("last" if is_decoder(model) else "mean")
    width: int = config.hidden_size
    head = nn.Linear(width, classes)
    builders = [lambda: wrap_model(model, pool, head)]
    if type(model).__name__ in ENCODERS:
        builders.insert(0, lambda: encoder(model, width, pool, head))
    elif is_divisible(model, input_shape[0]):
        builders.insert(0, lambda: decoder(model, width, pool, head))

    def features(x: Tensor) -> Tensor:
        token_mask = present(x)
        padded = x.masked_fill(~token_mask, int(config.pad_token_id or 0)).long()
        hidden: Tensor = model(input_ids=padded, attention_mask=token_mask.long()).last_hidden_state
        return Pool(pool).pooled(hidden * token_mask.unsqueeze(-1))

    network = choose_network(model, builders, lambda network, x: network.features(x), features)
    if network is None:
        raise SpecError(f"model {name!r} ({config.model_type}) is of a kind that is not known here: as a network it "
                        "gives other features than as a model of transformers; choose another model")
    return network


def pooling_of(folder: Path) -> Pooling | None:
    """Return the pooling in a model's sentence-transformers configuration, or None if the folder does not have one.

    Raises:
        SpecError: the model does not pool by exactly one of the modes that clbench has.
    """
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    settings = json.loads(file.read_text())
    kinds: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last",  # and in files of older releases:
                                 "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
                                 "pooling_mode_lasttoken": "last"}
    named = settings.get("pooling_mode")  # a mode or a list of modes
    modes = [named] if isinstance(named, str) else named or [
        key for key, value in settings.items() if key.startswith("pooling_mode") and value]
    if len(modes) != 1 or modes[0] not in kinds:
        raise SpecError(f"the model in {folder} pools by {' and '.join(modes) or 'no mode'} (1_Pooling/config.json), "
                        "which clbench does not do; choose pool=mean, pool=cls or pool=last")
    return kinds[modes[0]]


class TextEncoder(TokenNetwork):
    """An encoder like BERT."""

    @property
    def end(self) -> Pool:
        """Return the module that turns the tokens of the last layer into features."""
        return cast(Pool, cast(Any, self.blocks[-1]).activation)

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] unchanged, because the last layer ends in a norm."""
        return self.end.normalized(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return features [N, D], given the result of `encode` [N, L, D]."""
        return self.end.pooled(tokens)

    def takes_prefixes(self) -> bool:
        """Return True."""
        return True

    def prefixed(self, body: nn.Module, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Return the output [N, L, D] of an encoder layer for tokens [N, L, D], with a prefix in its attention."""
        unit, token_mask = cast(Any, body).unit, present(tokens)
        attention = unit.attention.self
        q, k, v = (layer(tokens).unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)
                   for layer in (attention.query, attention.key, attention.value))
        k, v = prefix.before(k, v)
        mask = F.pad(additive(token_mask, q), (prefix.keys.shape[1], 0))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = unit.attention.output(mixed.transpose(1, 2).flatten(2), tokens)
        return cast(Tensor, unit.output(unit.intermediate(attended), attended)) * token_mask.unsqueeze(-1)


def encoder(model: Any, width: int, pool: Pooling, head: nn.Linear) -> Network:
    """Return the network of an encoder: its embedding, a block for each layer, the pooling and the head."""
    layers = list(model.encoder.layer)
    blocks = [Block(Embedding(model, width), nn.Identity()),
              *(Block(EncoderLayer(unit, width), nn.Identity()) for unit in layers)]
    blocks[-1].activation = Pool(pool)
    aliases = {part: f"blocks.0.body.{part}" for part in ("embeddings", "embeddings_project")}
    aliases |= {f"encoder.layer.{i}": f"blocks.{i + 1}.body.unit" for i in range(len(layers))}
    return TextEncoder(blocks, head, aliases, published=True, conform=Conform(model))


def decoder(model: Any, width: int, pool: Pooling, head: nn.Linear) -> Network:
    """Return the network of a decoder: its embedding, a block for each layer, the norm, the pooling and the head."""
    layers = list(model.layers)
    blocks = [Block(Tokens(model.embed_tokens), nn.Identity()),
              *(Block(DecoderLayer(unit, model.rotary_emb, width), nn.Identity()) for unit in layers)]
    blocks[-1].activation = Pool(pool, model.norm)
    aliases = {"embed_tokens": "blocks.0.body.embed_tokens", "norm": f"blocks.{len(layers)}.activation.norm"}
    aliases |= {f"layers.{i}": f"blocks.{i + 1}.body.unit" for i in range(len(layers))}
    return Network(blocks, head, aliases, published=True, conform=Conform(model))


def wrap_model(model: Any, pool: Pooling, head: nn.Linear) -> Network:
    """Return a network with the whole model as one block."""
    aliases = {name: f"blocks.0.body.model.{name}" for name, _ in (
        *model.named_children(), *model.named_parameters(recurse=False))}
    return Network([Block(Whole(model), Pool(pool))], head, aliases, published=True, conform=Conform(model))


class Conform:
    """Convert published weights to the names of the library's model, without the heads of other tasks.

    Args:
        model: a model of the library. Its names are stored, not its weights.
    """

    def __init__(self, model: Any) -> None:
        """Store the model's class, its configuration and the names of its weights."""
        self.model_class, self.config = type(model), model.config
        self.prefix = f"{model.base_model_prefix}."
        self.names = set(model.state_dict())

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the published weights that the model has, by the names in the model."""
        out = {}
        for name, tensor in weights.items():
            key = name.removeprefix(self.prefix)
            key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if key in self.names:
                out[key] = tensor
        if self.names <= set(out):
            return out
        complete = convert_weights(self.model_class, self.config, weights)
        return {name: complete[name] for name in self.names} if self.names <= set(complete) else out
