"""Torch's nn.MultiheadAttention as plain layers, which can be adapted, measured and replaced one by one."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from clbench.models.network import Prefix

NAMES = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}  # torch's names -> those here


class SelfAttention(nn.Module):
    """The same function as a `nn.MultiheadAttention` whose query, key and value are one tensor, without a mask.

    Torch's keeps q, k and v as a parameter outside of layers and reads the weight of `out_proj` without calling it.
    Here both are Linear layers that are called; they take over torch's parameters, which keep their values.

    Args:
        attention: torch's, with batches first, one width for q, k and v, and no bias or zeros added to k and v.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over the parameters."""
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
        """Return tokens [N, L, width] of tokens [N, L, width], and None in place of the weights of the attention."""
        if key is not query or value is not query or need_weights:
            raise NotImplementedError("only self-attention, and without its weights")
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(query).chunk(3, 2))
        if prefix is not None:
            k, v = prefix.before(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).flatten(2))), None


def with_plain_layers(model: nn.Module) -> dict[str, str]:
    """Replace each `nn.MultiheadAttention` of a model that can be; return torch's names of its tensors -> the new."""
    new_names: dict[str, str] = {}
    for name, module in list(model.named_modules()):
        if (type(module) is nn.MultiheadAttention and module.batch_first and module._qkv_same_embed_dim
                and module.bias_k is None and not module.add_zero_attn):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, SelfAttention(module))
            new_names |= {f"{name}.{old}": f"{name}.{new}" for old, new in NAMES.items()}
    return new_names
