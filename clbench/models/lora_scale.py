"""Scale the update of a plain LoRA adapter: in a loaded model, or in a copy for PEFT."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.core.files import require_new_folder
from clbench.core.pretrained import weight_files
from clbench.models.causal_lm import explain_errors
from clbench.models.hf_candidates import Candidate, base_folder
from clbench.models.hf_files import ADAPTER_WEIGHTS, INDEX, read_config, weights_in

PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", None)  # other values also change the base
NOT_PLAIN = {"use_dora": "DoRA", "modules_to_save": "modules that are saved as a whole (modules_to_save)",
             "trainable_token_indices": "trained token embeddings", "alora_invocation_tokens": "activated LoRA",
             "arrow_config": "Arrow routing", "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA",
             "kasa_config": "KaSA, which truncates weights of the base", "layer_replication": "replicated layers"}
SCALED, COPY = ".lora_", ".base_layer."  # parts of the names of weights of LoRA, and of a layer of the base itself
PREFIX = "base_model.model."  # PEFT's prefix of the names of the model's modules


def check_plain(candidate: Candidate, base: str) -> None:
    """Check that an adapter is a plain LoRA, whose update can be scaled.

    Args:
        candidate: the adapter.
        base: the folder or repository of its base, which is read only if the adapter has weights of the base.

    Raises:
        SpecError: it is of another kind, uses an extension of LoRA, or has weights that replace those of the base.
        DataError: weights cannot be read.
    """
    reason = "it is a whole model"
    if candidate.kind == "adapter":
        config = read_config(candidate.folder, "adapter")
        reason = next((f"it has {extension}" for field, extension in NOT_PLAIN.items() if config.get(field)), "")
        if config.get("peft_type") != "LORA":
            reason = f"it is of the kind {config.get('peft_type')}"
        elif config.get("bias", "none") != "none":
            reason = "it trains biases of the base"
        elif config.get("init_lora_weights") not in PLAIN_INITS:
            reason = f"its initialization {config['init_lora_weights']} changes the base"
        elif not reason and (replacing := next((name for name, tensor in sorted(_weights(candidate).items())
                                                if SCALED not in name and not _is_copy(name, tensor, base)), "")):
            reason = f"it replaces weights of the base, such as {replacing}"
    if reason:
        raise SpecError(f"{candidate.folder} cannot be scaled, because {reason}; --scale takes plain LoRA adapters")


def _weights_file(candidate: Candidate) -> Path:
    """Return the file of an adapter's weights."""
    return next(candidate.folder / name for name in ADAPTER_WEIGHTS if (candidate.folder / name).is_file())


def _weights(candidate: Candidate) -> dict[str, Tensor]:
    """Return the weights in the file of an adapter."""
    path = _weights_file(candidate)
    if path.suffix == ".safetensors":
        return load_file(path)
    with explain_errors(path, "the adapter"):
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _is_copy(name: str, tensor: Tensor, base: str) -> bool:
    """Return whether a weight of an adapter is a copy of the base's, as PEFT saves them of adapted embeddings.

    The files of a base with tied embeddings have them under one name, so another weight of this shape may be equal.
    """
    if COPY not in name:
        return False
    base_name, folder, is_other = name.removeprefix(PREFIX).replace(COPY, "."), base_folder(base), False
    for path in weight_files(weights_in(folder) or folder / INDEX):
        with explain_errors(path, "the base"), safe_open(path, "pt") as file:
            for other in file.keys():  # noqa: SIM118
                if other == base_name:
                    return torch.equal(file.get_tensor(other).float(), tensor.float())
                if file.get_slice(other).get_shape() == [*tensor.shape]:
                    is_other |= torch.equal(file.get_tensor(other).float(), tensor.float())
    return is_other


class LoraScale:
    """Scales the update of a LoRA adapter in a model.

    Args:
        model: a model of PEFT with one adapter.
    """

    def __init__(self, model: Any) -> None:
        """Store the original scaling of each layer."""
        layer_class = importlib.import_module("peft.tuners.lora").LoraLayer
        self.layers = [(layer, dict(layer.scaling)) for layer in model.modules() if isinstance(layer, layer_class)]

    def set(self, scale: float) -> None:
        """Set the update to `scale` times the update of the adapter as it was loaded."""
        for layer, original in self.layers:
            for name, value in original.items():
                layer.scaling[name] = value * scale


def export_scaled(candidate: Candidate, scale: float, target: Path, base: str) -> None:
    """Write a copy of an adapter, for PEFT, whose update is scaled: its B matrices are multiplied by `scale`.

    `base` is the folder or repository of its base.

    Raises:
        SpecError: the adapter is not a plain LoRA.
        DataError: the adapter's weights are not in safetensors, or cannot be read.
        StoreError: the folder is not empty, or cannot be written.
    """
    check_plain(candidate, base)
    source = _weights_file(candidate)
    if source.suffix != ".safetensors":
        raise DataError(f"{source}: only adapters in safetensors can be exported")
    require_new_folder(target, "choose a new folder for the scaled adapter")
    weights = {name: tensor * scale if ".lora_B." in name or ".lora_embedding_B" in name else tensor
               for name, tensor in load_file(source).items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_tensors(target / source.name, weights, {"format": "pt"})
        shutil.copy(candidate.folder / "adapter_config.json", target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
