"""Load weights from a file into a model.

Vision transformers of google-research/vision_transformer are .npz files, such as the original ViT-B/16
(`imagenet21k/ViT-B_16.npz`), from which L2P and DualPrompt start. Their kernels have the layouts of flax: [in, out] for
linear layers, [height, width, in, out] for convolutions, and an additional axis of heads for attention.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.errors import ClbenchError, DataError, message_of, typed_message
from clbench.core.pretrained import STARTS_UNTRAINED, weight_files
from clbench.models.network import Network

WRAPPERS = ("module.", "model.")  # prefixes that DataParallel and training scripts add to every name
SHOWN = 3  # number of tensors that an error message names for each problem
INSIDE = ("state_dict", "model")  # keys of the weights in checkpoints of training scripts
BLOCK = "Transformer/encoderblock_"  # names in Google's files
ATTENTION = "MultiHeadDotProductAttention_1"
LEFT_OUT = ("pre_logits/",)  # a layer before the head in files for ImageNet-21k, which timm omits too


def load_weights(model: Network, path: Path, trainable_head: bool = False) -> list[str]:
    """Copy the weights of a file into the model, except a head of another size.

    The file is safetensors, the index of a model in several such files, a state dict that `torch.load` reads with
    `weights_only` (no code in it is ever run), or one of Google's vision transformers (.npz), which is converted to
    timm's names.
    The names in the file are the model's own (`model.state_dict()`) or published names (`model.aliases`), with or
    without DataParallel's prefix `module.`.

    With `trainable_head`, a head with values that are not finite is left out, too. The model of one task has such a
    head: its bias is -inf for the classes of other tasks, on which the loss would be NaN.

    Returns notes on weights that were not loaded.

    Raises:
        DataError: the file cannot be read, or a tensor other than the head's is missing, unknown or of another shape.
    """
    notes = fill(model, read_weights(path), str(path), trainable_head)
    model.weights_file = str(path)
    return notes


def fill(model: Network, weights: Mapping[str, Tensor], source: str, trainable_head: bool = False) -> list[str]:
    """Copy weights with the model's own or published names into the model, as `load_weights` does.

    Errors name `source`.
    """
    state = model.state_dict()
    if model.conform is not None and not set(weights) <= set(state):
        try:
            weights = model.conform(weights)
        except ClbenchError:
            raise
        except Exception as error:  # the libraries' conversions can raise any error for weights of other models
            raise MisfitError(f"weights {source} do not fit the model: they cannot be converted for it "
                              f"({typed_message(error, 200)})", weights) from error
    tensors = rename_tensors(weights, state, model.aliases)
    if wrong := misfit(tensors, state):
        raise MisfitError(f"weights {source} do not fit the model: {wrong}", tensors)
    note = f"weights: no head of this size, {STARTS_UNTRAINED}"
    if trainable_head and not all(t.isfinite().all() for name, t in tensors.items() if name.startswith("head.")):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        note = f"weights: the head has values that are not finite, {STARTS_UNTRAINED}"
    fitting = {name: tensor for name, tensor in tensors.items() if name in state and state[name].shape == tensor.shape}
    model.load_state_dict({**state, **fitting})
    is_head_untrained = any(name.startswith("head.") and name not in fitting for name in {*state, *tensors})
    return [note] if is_head_untrained else []


class MisfitError(DataError):
    """Error for weights that do not fit the model; `given` has the weights under the model's names."""

    def __init__(self, message: str, given: Mapping[str, Tensor]) -> None:
        """Store the weights, so that a model that they fit can be suggested."""
        super().__init__(message)
        self.given = given


def misfit(given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return why tensors do not fit a model: missing, unknown, or of another shape; empty if they fit.

    The head and `num_batches_tracked` are ignored. Files of old releases of torch do not have the latter.
    """
    def body(names: Iterable[str]) -> list[str]:
        return sorted(n for n in names if not n.startswith("head.") and not n.endswith(".num_batches_tracked"))

    shapes = [f"{name} ({list(given[name].shape)}, the model has {list(state[name].shape)})"
              for name in body(set(given) & set(state)) if given[name].shape != state[name].shape]
    parts = (("missing", body(set(state) - set(given))), ("unknown to the model", body(set(given) - set(state))),
             ("of another shape", shapes))
    return "; ".join(f"{len(names)} of {len(body(given if problem[0] == 'u' else state))} tensors {problem}: "
                     f"{', '.join(names[:SHOWN])}{' and others' if len(names) > SHOWN else ''}"
                     for problem, names in parts if names)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or of the shards that an index lists, by name.

    Prefixes and keys that training scripts add are removed. Floating-point tensors of any precision become float32.

    Raises:
        DataError: the file cannot be read, does not have tensors by name, or has quantized weights.
    """
    paths = weight_files(path)
    is_safe = paths[0].suffix == ".safetensors"
    try:
        content: Any = {name: tensor for part in paths for name, tensor in load_file(part).items()} if is_safe else (
            read_npz(path) if path.suffix == ".npz" else torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError,
            zipfile.BadZipFile) as error:
        raise DataError(f"weights {path} cannot be read: {message_of(error, 200)}") from None
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise DataError(f"weights {path}: expected tensors by name, found {type(content).__name__}")
    for prefix in WRAPPERS:
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    for name, tensor in content.items():
        # The scales of quantized weights are in other tensors, whose names depend on the library that made them.
        is_plain = tensor.is_floating_point() and tensor.element_size() > 1
        if "weight" in name.rpartition(".")[2] and not is_plain:
            raise DataError(f"weights {path} are quantized ({name} is {str(tensor.dtype).removeprefix('torch.')}); "
                            "choose a model whose weights are not quantized")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def rename_tensors(given: Mapping[str, Tensor], state: Mapping[str, Tensor],
                   aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors under the model's own names: the longest alias that is a prefix of a name is replaced."""
    if set(given) <= set(state):
        return dict(given)
    out = {}
    for name, tensor in given.items():
        fitting = [a for a in aliases if name == a or name.startswith(a + ".")]
        longest = max(fitting, key=len, default=None)
        out[name if longest is None else aliases[longest] + name.removeprefix(longest)] = tensor
    return out


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of the names, dtypes, shapes and bytes of tensors, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .npz file by timm's names.

    Raises:
        ValueError: the file is not a vision transformer of google-research/vision_transformer.
    """
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is not a .npz file")
        file = np.load(stream, allow_pickle=False)
        return timm_tensors({name: file[name] for name in file.files})


def timm_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert arrays with Google's names and layouts to tensors with timm's names and layouts.

    Raises:
        ValueError: an array is missing or unknown.
    """
    remaining = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()
                 if not name.startswith(LEFT_OUT)}
    blocks = sorted({int(match[1]) for name in remaining if (match := re.match(rf"{BLOCK}(\d+)/", name))})
    if not blocks or blocks != list(range(len(blocks))):
        raise ValueError("it is not a vision transformer of google-research/vision_transformer: no Transformer/"
                         "encoderblock_0, or a later one is missing")

    def take(name: str) -> Tensor:
        try:
            return remaining.pop(name)
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
    if "head/kernel" in remaining:
        out |= linear("head", "head")
    if remaining:
        raise ValueError(f"it has arrays that no part of a vision transformer reads: "
                         f"{', '.join(sorted(remaining)[:3])}")
    return {name: tensor.contiguous() for name, tensor in out.items()}
