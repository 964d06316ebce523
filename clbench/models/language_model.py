"""Causal language models of transformers as networks: an embedding, a block for each layer, and the model's own head.

Decoders like Llama (Llama, Mistral, Qwen, SmolLM) are divided into blocks. Other models (GPT-2) are one block, as are
decoders that cannot be run as blocks or give other logits then (Gemma 3). A network returns hidden states [N, L, D]
after the final norm. The objective applies the head at scored positions only (`clbench.strategy.objectives`). The head
may share its weights with the embedding.

Inputs are tokens, int32 [N, L] with -1 after the last token of a sample. Attention is causal, so padding at the end
does not change the outputs before it, and blocks need no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from clbench.core.errors import DataError, SpecError
from clbench.models.builtin import TextModelOptions
from clbench.models.hf_files import package
from clbench.models.hf_parts import (
    DecoderLayer,
    Tokens,
    additive,
    build_untrained,
    choose_network,
    convert_weights,
    is_divisible,
    load_config,
    require_length,
    sliding_window,
)
from clbench.models.network import Block, Network

OLD_HEAD = "embed_out."  # prefix of the head in files of GPT-NeoX
SLIDING = "sliding_attention"  # the kind of layers with a sliding window; all layers if a model names no kinds


class LanguageModel(Network):
    """A network that returns the hidden states [N, L, D] of all positions; `head` maps them to logits [..., V]."""

    def from_features(self, features: Tensor) -> Tensor:
        """Return hidden states [N, L, D], which are the features."""
        return features

    @property
    def tied(self) -> bool:
        """Return whether the head shares its weights with the embedding."""
        return any(parameter is self.head.weight for parameter in self.blocks.parameters())


class CausalLayer(DecoderLayer):
    """A layer of a decoder like Llama without a mask, because padding at the end does not change outputs before it.

    Only texts that are longer than its sliding window need a mask. General texts may be longer than all items.
    """

    def __init__(self, unit: nn.Module, rotary: nn.Module, width: int, window: int | None = None) -> None:
        """Store the library's layer, and the number of tokens that it attends to; None for all."""
        super().__init__(unit, rotary, width)
        self.window = window

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the layer's output [N, L, D] for tokens [N, L, D]."""
        length, mask = tokens.shape[1], None
        if self.window is not None and length > self.window:
            there = torch.ones(1, length, dtype=torch.bool, device=tokens.device)
            mask = additive(there, tokens, causal=True, window=self.window)
        return self.apply_unit(tokens, mask)


class WholeDecoder(nn.Module):
    """A whole decoder as the body of one block, from token IDs to a vector for each token."""

    def __init__(self, model: nn.Module) -> None:
        """Store the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return hidden states [N, L, D] for token IDs x [N, L]."""
        return cast(Tensor, self.model(input_ids=x.clamp(min=0).long(), use_cache=False)[0])


def language_model(name: str, options: TextModelOptions, input_shape: tuple[int, ...]) -> Network:
    """Return the untrained network of a causal language model; `name` is `hf:FOLDER` or `hf:OWNER/NAME`.

    Raises:
        SpecError: the model cannot take items of this length, or is not a causal language model that clbench supports.
        DataError: there is no such folder or repository.
    """
    if options.pool is not None:
        raise SpecError(f"model {name!r}: pool makes one vector of a text, and a language model has an output for each "
                        "token; leave pool out")
    _, config = load_config(name)
    if type(config) not in package("transformers").AutoModelForCausalLM._model_mapping:
        raise SpecError(f"model {name!r} ({config.model_type}) is no causal language model; choose one such as "
                        "SmolLM2, Llama or Qwen for benchmarks of prompts and responses")
    model = build_untrained("AutoModelForCausalLM", config, options.dropout)
    require_length(name, model, input_shape[0])
    builders = [lambda: _wrap_model(model)]
    body = getattr(model, model.base_model_prefix)
    # The layers get no mask, without which the eager attention of transformers (Gemma 2) is not causal.
    if body.config._attn_implementation != "eager" and is_divisible(body, input_shape[0]):
        builders.insert(0, lambda: _wrap_layers(model, config))

    def logits(network: LanguageModel, x: Tensor) -> Tensor:
        return cast(Tensor, network.head(network(x))) * (x >= 0).unsqueeze(-1)

    def expected(x: Tensor) -> Tensor:
        token_mask = x >= 0
        ids = x.clamp(min=0).long()
        logits: Tensor = model(input_ids=ids, attention_mask=token_mask.long(), use_cache=False).logits
        return logits * token_mask.unsqueeze(-1)

    network = choose_network(model, builders, logits, expected)
    if network is None:
        raise SpecError(f"model {name!r} ({config.model_type}) is of a kind that is not known here: its head applied "
                        "to its hidden states gives other logits than the model; choose another model")
    return network


def _wrap_model(model: Any) -> LanguageModel:
    """Return the network of a library's model in one block."""
    prefix, head = model.base_model_prefix, model.get_output_embeddings()
    conform = Conform(model)
    blocks = [Block(WholeDecoder(getattr(model, prefix)), nn.Identity())]
    return LanguageModel(blocks, head, {prefix: "blocks.0.body.model", conform.head: "head"}, published=True,
                         conform=conform)


def _wrap_layers(model: Any, config: Any) -> LanguageModel:
    """Return the network of a decoder like Llama, with a block for each layer."""
    prefix, conform = model.base_model_prefix, Conform(model)
    body, head = getattr(model, prefix), model.get_output_embeddings()
    layers, width = list(body.layers), config.hidden_size
    kinds = getattr(config, "layer_types", None) or [SLIDING] * len(layers)
    windows = [sliding_window(config) if kind == SLIDING else None for kind in kinds]
    blocks = [Block(Tokens(body.embed_tokens), nn.Identity()),
              *(Block(CausalLayer(unit, body.rotary_emb, width, window), nn.Identity())
                for unit, window in zip(layers, windows, strict=True))]
    blocks[-1].activation = body.norm
    aliases = {f"{prefix}.embed_tokens": "blocks.0.body.embed_tokens",
               f"{prefix}.norm": f"blocks.{len(layers)}.activation", conform.head: "head"}
    aliases |= {f"{prefix}.layers.{i}": f"blocks.{i + 1}.body.unit" for i in range(len(layers))}
    return LanguageModel(blocks, head, aliases, published=True, conform=conform)


class Conform:
    """Convert published weights to the names of the library's model, and add the weights of a tied head.

    Args:
        model: a model of the library. Its names are stored, not its weights.
    """

    def __init__(self, model: Any) -> None:
        """Store the model's class, its configuration and the names of its weights."""
        self.model_class, self.config = type(model), model.config
        self.names = set(model.state_dict())
        self.prefix: str = model.base_model_prefix
        self.head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
        self.tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self.embedding = next(name for name, parameter in model.named_parameters()
                              if parameter is model.get_input_embeddings().weight)

    def __call__(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the published weights that the model has, by the names in the model.

        Raises:
            DataError: there is no head, so that it would be untrained.
        """
        out = {}
        for name, tensor in weights.items():
            current_name = name.replace(OLD_HEAD, f"{self.head}.") if name.startswith(OLD_HEAD) else name
            full_name = current_name if current_name in self.names else f"{self.prefix}.{current_name}"
            if full_name in self.names:
                out[full_name] = tensor
        head = f"{self.head}.weight"
        if self.tied and self.embedding in out:
            out[head] = out[self.embedding]
        if head not in out:
            raise DataError(f"the weights of the language model have no {head}; save the model again by transformers' "
                            "save_pretrained, or if it also takes images, save only its language model")
        if self.names <= set(out):
            return out
        complete = convert_weights(self.model_class, self.config, weights)
        return complete if self.names <= set(complete) else out
