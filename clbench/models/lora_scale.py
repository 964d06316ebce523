"""Scale plain LoRA adapters: the update B A of each layer times a number."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from clbench.core.errors import DataError, SpecError, StoreError
from clbench.models.lm_folders import ADAPTER_WEIGHTS, Candidate, read_config

PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", None)  # others also change the base
NOT_PLAIN = {"use_dora": "DoRA", "modules_to_save": "modules that are saved as a whole (modules_to_save)",
             "trainable_token_indices": "trained token embeddings", "alora_invocation_tokens": "activated LoRA",
             "arrow_config": "Arrow routing", "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA",
             "layer_replication": "replicated layers"}


def check_plain(candidate: Candidate) -> None:
    """Check that an adapter is a plain LoRA, whose update can be scaled.

    Raises:
        SpecError: it is something else.
    """
    reason = "it is a whole model"
    if candidate.kind == "adapter":
        config = read_config(candidate.folder, "adapter")
        reason = next((f"it has {what}" for field, what in NOT_PLAIN.items() if config.get(field)), "")
        if config.get("peft_type") != "LORA":
            reason = f"it is of the kind {config.get('peft_type')}"
        elif config.get("bias", "none") != "none":
            reason = "it trains biases of the base"
        elif config.get("init_lora_weights") not in PLAIN_INITS:
            reason = f"its initialization {config['init_lora_weights']} changes the base"
    if reason:
        raise SpecError(f"{candidate.folder} cannot be scaled, because {reason}; --scale takes plain LoRA adapters")


class LoraScale:
    """Multiplies the update of a LoRA that is on a model.

    Args:
        model: of PEFT, with one adapter.
    """

    def __init__(self, model: Any) -> None:
        """Note the scaling of each layer."""
        layer_class = importlib.import_module("peft.tuners.lora").LoraLayer
        self.layers = [(layer, dict(layer.scaling)) for layer in model.modules() if isinstance(layer, layer_class)]

    def set(self, scale: float) -> None:
        """Set the update to `scale` times that of the adapter as it was loaded."""
        for layer, original in self.layers:
            for name, value in original.items():
                layer.scaling[name] = value * scale


def export_scaled(candidate: Candidate, scale: float, target: Path) -> None:
    """Write an adapter for PEFT whose update is `scale` times that of another: its B times `scale`.

    Raises:
        SpecError: the adapter is no plain LoRA.
        StoreError: the folder has files, or cannot be written.
    """
    check_plain(candidate)
    source = next(candidate.folder / name for name in ADAPTER_WEIGHTS if (candidate.folder / name).is_file())
    if source.suffix != ".safetensors":
        raise DataError(f"{source}: only adapters in safetensors can be exported")
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} is not empty; choose a new folder for the scaled adapter")
    weights = {name: tensor * scale if ".lora_B." in name or ".lora_embedding_B" in name else tensor
               for name, tensor in load_file(source).items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_file(weights, target / source.name, metadata={"format": "pt"})
        shutil.copy(candidate.folder / "adapter_config.json", target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
