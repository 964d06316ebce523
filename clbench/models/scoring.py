"""Score items under a causal language model: negative log-likelihood and exact match, in one forward pass.

An item's `nll` is the mean over its scored tokens, in nats and computed in float32. Its `exact` is whether each scored
token is the most likely one, given the true tokens before it. Greedy decoding gives the whole response if and only if
that holds. Nothing depends on the batch size, the order or the padding, up to rounding.

The head is applied only to the hidden states at scored positions, in pieces whose logits take at most 64 MiB. A model
whose logits are not simply the head applied to the body's output (`split`) is run as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # the target of a position that is not scored
MULTIPLE = 16  # numbers of tokens are rounded up to multiples of it, so that few shapes occur
LOGIT_BYTES = 64 * 2**20  # maximum size of the logits of a piece
TOLERANCE = 1e-4  # of logits, relative to the largest
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TokenItem:
    """The tokens of an item and the positions of those that are scored, which are never the first."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    has_response: bool = True  # otherwise it is a plain text, for which an exact match has no meaning


@dataclass(frozen=True)
class TokenBatch:
    """Items as tensors, padded on the right.

    `at` has the positions whose outputs predict the targets `y`. If an item has fewer targets than others, `at` is 0
    and `y` is -100 in the remaining places.
    """

    ids: Tensor  # int64 [N, L]
    mask: Tensor  # int64 [N, L]: 1 for a token, 0 for padding; computed from lengths, because padding may be EOS
    at: Tensor  # int64 [N, K]
    y: Tensor  # int64 [N, K]

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on a device."""
        return TokenBatch(*(t.to(device) for t in (self.ids, self.mask, self.at, self.y)))


@dataclass(frozen=True)
class ItemScores:
    """The scores of items, in their order."""

    nll: tuple[float, ...]
    exact: tuple[bool, ...]


def collate(items: Sequence[TokenItem]) -> TokenBatch:
    """Return items as a batch, padded to the longest item and the most targets."""
    length = max(len(item.ids) for item in items)
    targets = max(len(item.scored) for item in items)
    ids = torch.zeros(len(items), length, dtype=torch.int64)
    mask = torch.zeros(len(items), length, dtype=torch.int64)
    positions = torch.zeros(len(items), targets, dtype=torch.int64)
    y = torch.full((len(items), targets), IGNORED)
    for i, item in enumerate(items):
        ids[i, :len(item.ids)] = torch.tensor(item.ids)
        mask[i, :len(item.ids)] = 1
        scored = torch.tensor(item.scored, dtype=torch.int64)
        positions[i, :len(scored)] = scored - 1
        y[i, :len(scored)] = ids[i, scored]
    return TokenBatch(ids, mask, positions, y)


def round_up(count: int, multiple: int) -> int:
    """Return a number rounded up to a multiple of another."""
    return -(-count // multiple) * multiple


def needed_tokens(y: Tensor) -> int:
    """Return the number of tokens up to the last target in labels y [N, L], rounded up to a multiple of `MULTIPLE`."""
    return min(y.shape[1], round_up(int((y != IGNORED).any(0).nonzero().max()) + 1, MULTIPLE))


class Scorer:
    """Scores items under one model.

    Args:
        model: a causal language model of transformers, with or without adapters of PEFT.
        device: the device of the model.
        precision: the precision of the forward pass; losses are always computed in float32.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: Precision = "fp32") -> None:
        """Set the model to eval mode and check whether its body and head can be run separately."""
        self.model, self.device, self.precision = model, device, precision
        model.eval()
        self.parts = split(model, device)
        self.switch = rope_switch(cast(Any, model).config.get_text_config())

    @torch.no_grad()
    def score(self, items: Sequence[TokenItem], batch_size: int) -> ItemScores:
        """Return the scores of items. Items are run in order of length, so that there is little padding."""
        order = sorted(range(len(items)), key=lambda i: -len(items[i].ids))
        nll, exact = [0.0] * len(items), [False] * len(items)
        start = 0
        while start < len(order):
            chosen = order[start:start + self._fitting(batch_size, len(items[order[start]].ids))]
            if self.switch is not None:
                chosen_long = len(items[chosen[0]].ids) > self.switch
                chosen = [i for i in chosen if (len(items[i].ids) > self.switch) == chosen_long]
            start += len(chosen)
            batch = collate([items[i] for i in chosen]).to(self.device)
            losses, matches = self._batch(batch)
            for i, loss, match in zip(chosen, losses.tolist(), matches.tolist(), strict=True):
                nll[i], exact[i] = loss, match
        return ItemScores(tuple(nll), tuple(exact))

    def _fitting(self, batch_size: int, length: int) -> int:
        """Return the batch size for items of a length; it is smaller if the logits of all tokens must be computed."""
        if self.parts:
            return batch_size
        vocabulary_size = int(cast(Any, self.model).config.get_text_config().vocab_size)
        return max(1, min(batch_size, LOGIT_BYTES // (4 * length * vocabulary_size)))

    def _batch(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return nll [N] and exact [N] of a batch."""
        is_target = batch.y != IGNORED
        rows, columns = is_target.nonzero(as_tuple=True)
        targets = batch.y[rows, columns]
        with _cast(self.device, self.precision):
            if self.parts:
                body, head = self.parts
                hidden = body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)[0]
                picked = hidden[rows, batch.at[rows, columns]]
                losses, correct = token_scores(picked, targets, head)
            else:
                logits = cast(Any, self.model)(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
                offset = logits.shape[1] - batch.ids.shape[1]  # number of virtual tokens before the first token
                losses, correct = token_scores(logits[rows, batch.at[rows, columns] + offset], targets, nn.Identity())
        return item_scores(rows, is_target.sum(1), losses, correct)


def rope_switch(config: Any) -> int | None:
    """Return the length above which a model with LongRoPE uses other position embeddings; None for other models.

    In transformers, the longest item of a batch decides for the whole batch.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    return (rope.get("original_max_position_embeddings")
            or cast("int | None", getattr(config, "original_max_position_embeddings", None)))


def item_scores(rows: Tensor, counts: Tensor, losses: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return nll [N] and exact [N] of items, given the scores of their M targets.

    Args:
        rows: the item of each target [M].
        counts: the number of targets of each item [N].
        losses: the nll of each target [M].
        correct: whether each target is the most likely token [M].
    """
    sums, wrong = torch.zeros(2, len(counts), device=losses.device)
    sums.index_add_(0, rows, losses)
    wrong.index_add_(0, rows, (~correct).float())
    return sums / counts, wrong == 0


def token_scores(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the nll [M] of targets [M] in float32, and whether each target is the most likely token [M].

    Args:
        hidden: inputs of the head, [M, D].
        targets: token IDs.
        head: maps [m, D] to logits [m, V].
    """
    losses, correct = [], []
    rows = 1  # the logits of the first piece have the size of the vocabulary, which determines the next pieces
    start = 0
    while start < len(hidden):
        logits = head(hidden[start:start + rows]).float()
        expected = targets[start:start + rows]
        losses.append(F.cross_entropy(logits, expected, reduction="none"))
        correct.append(logits.argmax(-1) == expected)
        start += rows
        rows = max(1, LOGIT_BYTES // (4 * logits.shape[-1]))
    return torch.cat(losses), torch.cat(correct)


@torch.no_grad()
def split(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module] | None:
    """Return a model's body and head, or None if the head applied to the body's output does not give the logits.

    Some models scale or clip logits after the head, and some adapters need the whole model. Therefore, both logits are
    compared on a few tokens.
    """
    untyped_model = cast(Any, model)
    configs = getattr(model, "peft_config", {}).values()
    if any(getattr(config, "alora_invocation_tokens", None) for config in configs):
        return None  # activated LoRA acts only after its invocation tokens, which PEFT finds in its own forward pass
    inner: Any = untyped_model.get_base_model() if hasattr(untyped_model, "get_base_model") else model
    body = getattr(inner, str(getattr(inner, "base_model_prefix", "")) or "model", None)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if body is None or body is inner or head is None:
        return None
    ids = torch.arange(8, device=device)[None] % inner.config.get_text_config().vocab_size
    expected = untyped_model(input_ids=ids, use_cache=False).logits
    hidden = body(input_ids=ids, use_cache=False)[0]
    logits = head(hidden)
    is_equal = (logits.shape == expected.shape
                and (logits - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1))
    return (body, head) if is_equal else None


@contextlib.contextmanager
def _cast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Run matrix products in bfloat16 inside the block if `precision` is bf16."""
    if precision == "fp32":
        yield
    else:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
