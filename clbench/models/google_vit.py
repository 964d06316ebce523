"""Vision transformers in the .npz files of google-research/vision_transformer, by timm's names of tensors.

The original ViT-B/16 is such a file (`imagenet21k/ViT-B_16.npz`); L2P and DualPrompt start from it. Kernels are those
of flax: of linear layers [in, out], of convolutions [height, width, in, out], and of attention with an axis for heads.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = "Transformer/encoderblock_"
ATTENTION = "MultiHeadDotProductAttention_1"
LEFT_OUT = ("pre_logits/",)  # a layer before the head of the files from ImageNet-21k, which timm leaves out as well


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by timm's names.

    Raises:
        ValueError: it is not a vision transformer of google-research/vision_transformer.
    """
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is not a .npz file")
        file = np.load(stream, allow_pickle=False)
        return timm_tensors({name: file[name] for name in file.files})


def timm_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return arrays with Google's names and layouts as tensors with timm's.

    Raises:
        ValueError: an array is missing or unknown.
    """
    left = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items() if not name.startswith(LEFT_OUT)}
    blocks = sorted({int(match[1]) for name in left if (match := re.match(rf"{BLOCK}(\d+)/", name))})
    if not blocks or blocks != list(range(len(blocks))):
        raise ValueError("it is not a vision transformer of google-research/vision_transformer: no Transformer/"
                         "encoderblock_0, or a later one is missing")

    def take(name: str) -> Tensor:
        try:
            return left.pop(name)
        except KeyError:
            raise ValueError(f"it has no array {name}") from None

    def norm(source: str, target: str) -> dict[str, Tensor]:
        return {f"{target}.weight": take(f"{source}/scale"), f"{target}.bias": take(f"{source}/bias")}

    def linear(source: str, target: str) -> dict[str, Tensor]:
        return {f"{target}.weight": take(f"{source}/kernel").T, f"{target}.bias": take(f"{source}/bias")}

    out = {"cls_token": take("cls"), "pos_embed": take("Transformer/posembed_input/pos_embedding"),
           "patch_embed.proj.weight": take("embedding/kernel").permute(3, 2, 0, 1),
           "patch_embed.proj.bias": take("embedding/bias"), **norm("Transformer/encoder_norm", "norm")}
    for i in blocks:
        source, target = f"{BLOCK}{i}", f"blocks.{i}"
        parts = [f"{source}/{ATTENTION}/{part}" for part in ("query", "key", "value")]
        out |= norm(f"{source}/LayerNorm_0", f"{target}.norm1") | norm(f"{source}/LayerNorm_2", f"{target}.norm2")
        out |= {f"{target}.attn.qkv.weight": torch.cat([take(f"{part}/kernel").flatten(1).T for part in parts]),
                f"{target}.attn.qkv.bias": torch.cat([take(f"{part}/bias").flatten() for part in parts]),
                f"{target}.attn.proj.weight": take(f"{source}/{ATTENTION}/out/kernel").flatten(0, 1).T,
                f"{target}.attn.proj.bias": take(f"{source}/{ATTENTION}/out/bias")}
        for number in (0, 1):
            out |= linear(f"{source}/MlpBlock_3/Dense_{number}", f"{target}.mlp.fc{number + 1}")
    if "head/kernel" in left:
        out |= linear("head", "head")
    if left:
        raise ValueError(f"it has arrays that no part of a vision transformer reads: {', '.join(sorted(left)[:3])}")
    return {name: tensor.contiguous() for name, tensor in out.items()}
