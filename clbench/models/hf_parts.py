"""The parts of text networks, which wrap modules of Hugging Face's transformers.

They pass tokens [N, L, D] to each other. Padding is a vector of zeros (`clbench.core.tokens.present`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from clbench.core.errors import SpecError
from clbench.core.tokens import DTYPE, NO_TOKEN, present
from clbench.models.builtin import Pooling
from clbench.models.hf_files import folder_of, inner, package
from clbench.models.network import Network, Ports, TransformerBlock

TOLERANCE = 1e-4  # relative to the largest value, or absolute if this is smaller than 1
RATES = ("dropout", "dropout_prob", "dropout_rate", "pdrop")  # ends of the names of dropout rates in configurations
N = TypeVar("N", bound=Network)


def load_config(name: str) -> tuple[Path, Any]:
    """Return the folder of a model and its configuration; `name` is `hf:FOLDER` or `hf:OWNER/NAME`.

    Raises:
        DataError: there is no such folder or repository.
    """
    folder = folder_of(inner(name))
    return folder, package("transformers").AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


def require_length(name: str, model: Any, length: int) -> None:
    """Check that a model of the library can take texts of `length` tokens.

    Raises:
        SpecError: it cannot.
    """
    max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)  # RoBERTa and its variants count positions from padding + 1
    unused = 0 if padding is None else padding + 1
    if isinstance(max_positions, int) and length > (max_tokens := max_positions - unused):
        raise SpecError(f"model {name!r} takes at most {max_tokens} tokens, the benchmark has {length}; choose "
                        f"length={max_tokens} or less")


def build_untrained(kind: Literal["AutoModel", "AutoModelForCausalLM"], config: Any, dropout: float | None) -> Any:
    """Return an untrained model of the library, with torch's fused attention if the model supports it.

    Args:
        kind: the class of the library that chooses the model's class.
        config: the model's configuration, whose dropout rates are set.
        dropout: the rate of all dropout; None for the rates of the configuration.
    """
    library = package("transformers")
    if dropout is not None:
        for field, value in vars(config).items():  # some models read a number instead of having a module
            is_rate = isinstance(value, (int, float)) and not isinstance(value, bool)  # ESM: token_dropout = true
            if field.endswith(RATES) and is_rate:
                setattr(config, field, dropout)
    model_class = library.AutoModel._model_mapping.get(type(config), None)
    attention = "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
    model = getattr(library, kind).from_config(config, attn_implementation=attention)
    rounded = [name for name, buffer in model.named_buffers() if buffer.dtype in (torch.bfloat16, torch.float16)]
    model = model.float()  # the dtype of a published configuration is often bfloat16
    if rounded:  # constants, such as the scale of Gemma's embeddings
        config = copy.deepcopy(config)
        config.dtype = torch.float32
        with torch.random.fork_rng():
            buffers = dict(getattr(library, kind).from_config(config).named_buffers())
        for name in rounded:
            model.get_buffer(name).copy_(buffers[name])
    if dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    return model


def convert_weights(model_class: Any, config: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights as the library converts them to load a model: renamed, and those of experts joined.

    Weights that are missing or of another shape are left out.
    """
    config = copy.deepcopy(config)
    config.dtype = torch.float32  # otherwise it would round weights to the dtype in the configuration
    model, loading = model_class.from_pretrained(None, config=config, state_dict=dict(weights),
                                                 ignore_mismatched_sizes=True, output_loading_info=True)
    left_out = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


@torch.no_grad()
def choose_network(model: Any, builders: Sequence[Callable[[], N]], outputs: Callable[[N, Tensor], Tensor],
                   expected: Callable[[Tensor], Tensor]) -> N | None:
    """Return the first network with the outputs of the library's model on two short texts; None if there is none.

    Without values, on the meta device, return the first network whose parts fit together. `is_divisible` must
    therefore know the models that can be run in several blocks with other outputs.

    Args:
        model: the library's model, whose modules the networks consist of.
        builders: build the network of several blocks, if the model can be divided, and last the one of a single block.
        outputs: computes the outputs of a network for tokens [2, L].
        expected: computes the same outputs by the library's model.
    """
    config = model.config.get_text_config()
    ids = [token % config.vocab_size for token in range(3, 35)]
    texts = [token for token in ids if token != getattr(config, "pad_token_id", None)][:16]  # padding embeds as zeros
    x = torch.tensor(texts, dtype=DTYPE, device=next(model.parameters()).device).view(2, 8)
    x[1, 5:] = NO_TOKEN
    training = model.training
    try:
        for build in builders:
            network, is_last = build(), build is builders[-1]
            network.eval()
            model.eval()
            try:
                if x.is_meta:
                    is_equal = is_last or outputs(network, x).is_meta
                else:
                    values, own_values = expected(x), outputs(network, x)
                    is_equal = values.shape == own_values.shape and bool(
                        (own_values - values).abs().max() <= TOLERANCE * values.abs().max().clamp(min=1))
            except Exception as error:  # layers of some decoders, such as Gemma 3, take other arguments: any error
                if is_last:
                    raise
                is_equal = x.is_meta and isinstance(error, RuntimeError)  # of experts, which cannot run without values
            if is_equal:
                return network.train(training)
    finally:
        model.train(training)
    return None


def is_decoder(model: Any) -> bool:
    """Return whether a model is a causal decoder like Llama."""
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    return (all(hasattr(model, part) for part in parts)
            and all(getattr(module, "is_causal", True) for module in model.layers.modules()))


def is_divisible(model: Any, length: int) -> bool:
    """Return whether a model is a decoder like Llama whose layers attend to all earlier ones of `length` tokens."""
    scale = getattr(model.config, "embedding_multiplier", 1)  # of Granite's embeddings
    return is_decoder(model) and scale == 1 and (sliding_window(model.config) or math.inf) >= length


def sliding_window(config: Any) -> int | None:
    """Return the number of tokens that the layers of a model attend to; None for all."""
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


class Pool(nn.Module):
    """Pool the tokens of a text into one vector: their mean, the first or the last, after the model's final norm.

    Args:
        pool: the kind of pooling.
        norm: the model's final norm; None if it has none after its last layer.
    """

    def __init__(self, pool: Pooling, norm: nn.Module | None = None) -> None:
        """Store the pooling and the norm."""
        super().__init__()
        self.pool = pool
        self.norm = norm if norm is not None else nn.Identity()

    def normalized(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, L, D] after the norm; padding stays zero."""
        if isinstance(self.norm, nn.Identity):
            return tokens
        return cast(Tensor, self.norm(tokens)) * present(tokens).unsqueeze(-1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return features [N, D] of normalized tokens [N, L, D]."""
        if self.pool == "cls":
            return tokens[:, 0]
        token_mask = present(tokens)
        if self.pool == "mean":
            return tokens.sum(1) / token_mask.sum(1).clamp(min=1).unsqueeze(1)
        last_index = (token_mask.sum(1) - 1).clamp(min=0)
        return tokens.gather(1, last_index.view(-1, 1, 1).expand(-1, 1, tokens.shape[2])).squeeze(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features [N, D] of tokens [N, L, D]."""
        return self.pooled(self.normalized(tokens))


def additive(there: Tensor, like: Tensor, causal: bool = False, window: int | None = None) -> Tensor:
    """Return the additive attention mask [N, 1, 1 or L, L].

    It is the lowest number of the dtype of `like` for keys that are padding, and if `causal` for later keys and for
    keys before the last `window`; else 0.
    """
    mask = there[:, None, None, :]
    if causal:
        length = there.shape[1]
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=there.device).tril().triu(
            1 - (window or length))
    lowest = torch.finfo(like.dtype).min
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, lowest)


class Embedding(nn.Module):
    """The embedding of an encoder: a vector for each token, with its position.

    Args:
        model: a model of the library.
        width: the width of tokens, D.
    """

    def __init__(self, model: Any, width: int) -> None:
        """Use the model's embedding, and the projection after it that ELECTRA may have."""
        super().__init__()
        self.embeddings = model.embeddings
        self.embeddings_project = getattr(model, "embeddings_project", nn.Identity())
        self.padding = int(model.config.pad_token_id or 0)
        self.ports = Ports(1, width, tokens=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] for token IDs x [N, L]."""
        token_mask = present(x)
        tokens = self.embeddings(input_ids=x.masked_fill(~token_mask, self.padding).long())
        return cast(Tensor, self.embeddings_project(tokens)) * token_mask.unsqueeze(-1)


class EncoderLayer(TransformerBlock):
    """A layer of an encoder, whose attention ignores padding."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the layer's output [N, L, D] for tokens [N, L, D]."""
        token_mask = present(tokens)
        out = self.unit(tokens, additive(token_mask, tokens))
        return cast(Tensor, out[0] if isinstance(out, tuple) else out) * token_mask.unsqueeze(-1)


class Tokens(nn.Module):
    """The embedding of a decoder like Llama: a vector for each token, without its position."""

    def __init__(self, embedding: nn.Embedding) -> None:
        """Store the model's embedding."""
        super().__init__()
        self.embed_tokens = embedding
        self.ports = Ports(1, embedding.embedding_dim, tokens=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] for token IDs x [N, L]."""
        token_mask = present(x)
        return cast(Tensor, self.embed_tokens(x.masked_fill(~token_mask, 0).long())) * token_mask.unsqueeze(-1)


class DecoderLayer(TransformerBlock):
    """A layer of a decoder like Llama, with causal attention and rotary position embeddings."""

    def __init__(self, unit: nn.Module, rotary: nn.Module, width: int) -> None:
        """Store the library's layer, and a copy of the rotary position embedding, which has no weights."""
        super().__init__(unit, width)
        self.rotary = copy.deepcopy(rotary)  # `functional_call` does not restore buffers of a module with two names

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the layer's output [N, L, D] for tokens [N, L, D]."""
        token_mask = present(tokens)
        return self.apply_unit(tokens, additive(token_mask, tokens, causal=True)) * token_mask.unsqueeze(-1)

    def apply_unit(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output of the library's layer for tokens [N, L, D] and an additive mask; None for no mask."""
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        out = self.unit(tokens, attention_mask=mask, position_ids=places,
                        position_embeddings=self.rotary(tokens, places))
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)


class Whole(nn.Module):
    """A whole text model as the body of one block, from token IDs to a vector for each token."""

    def __init__(self, model: Any) -> None:
        """Store the model."""
        super().__init__()
        self.model = model
        self.padding = int(model.config.pad_token_id or 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [N, L, D] for token IDs x [N, L]."""
        token_mask = present(x)
        out = self.model(input_ids=x.masked_fill(~token_mask, self.padding).long(), attention_mask=token_mask.long())
        return cast(Tensor, out.last_hidden_state) * token_mask.unsqueeze(-1)
