"""Causal language models and PEFT adapters: load them, check that an adapter fits its base, and scale LoRA.

The base is loaded once. Adapters are added to it and removed again. If an adapter replaces weights of the base, or if
the base then gives other logits than before, it is loaded again. No code from a model's folder is ever run.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError, SpecError, StoreError, message_of, typed_message
from clbench.models.hf_candidates import Candidate
from clbench.models.hf_files import ADAPTER_WEIGHTS, MODEL, TOKENIZERS, fingerprint, package, read_config

PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", None)  # other values also change the base
NOT_PLAIN = {"use_dora": "DoRA", "modules_to_save": "modules that are saved as a whole (modules_to_save)",
             "trainable_token_indices": "trained token embeddings", "alora_invocation_tokens": "activated LoRA",
             "arrow_config": "Arrow routing", "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA",
             "kasa_config": "KaSA, which truncates weights of the base", "layer_replication": "replicated layers"}
SCALED = (".lora_", ".base_layer.")  # parts of the names of weights in a LoRA adapter that do not replace others


def load_tokenizer(folder: Path, template: Path | None = None) -> Any:
    """Return the tokenizer of a base, with the chat template of the file `template` if it is given.

    Raises:
        DataError: the tokenizer or the file cannot be read.
    """
    with _explain_errors(folder, "its tokenizer"):
        tokenizer = package("transformers").AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if template is not None:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{template}: the chat template cannot be read: {error}") from None
    return tokenizer


def text_config(folder: Path) -> Any:
    """Return the configuration of a model, or the part for texts of a model that also takes images."""
    with _explain_errors(folder, "its configuration"):
        config = package("transformers").AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    return config.get_text_config()


def longest(folder: Path) -> int | None:
    """Return the maximum number of tokens of a model, or None if its configuration does not have it."""
    max_length = getattr(text_config(folder), "max_position_embeddings", None)
    return max_length if isinstance(max_length, int) and max_length > 0 else None


def load_model(folder: Path, device: torch.device) -> Any:
    """Return a causal language model in float32.

    Raises:
        DataError: it cannot be loaded, weights are missing, or it is quantized.
    """
    with _explain_errors(folder, "the model"):
        model, info = package("transformers").AutoModelForCausalLM.from_pretrained(
            str(folder), trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise DataError(f"{folder}: {len(missing)} weights of the model are missing, such as {missing[0]}")
    if getattr(model, "is_quantized", False):
        raise DataError(f"{folder}: the model is quantized, and clbench scores in float32; name the model before its "
                        "quantization, with --any-base if an adapter names another one")
    # With frozen weights, autocast keeps no copies of them in the other precision.
    return model.float().to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def _explain_errors(folder: Path, what: str) -> Iterator[None]:
    """Convert exceptions of libraries inside the block into a `DataError` of one line about `what` in a folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SpecError, DataError):
        raise
    except RuntimeError as error:
        if (mismatch := re.search(r"size mismatch for (\S+):.*?Size\((.*?)\).*?Size\((.*?)\)", str(error), re.DOTALL)):
            raise DataError(f"{folder}: {what} does not fit: {mismatch[1]} has the shape {mismatch[2]} in its file and "
                            f"{mismatch[3]} in the model") from None
        raise DataError(f"{folder}: {what} cannot be loaded: {message_of(error, 300)}") from None
    except Exception as error:  # for broken files, libraries raise many types, including those of Rust extensions
        raise DataError(f"{folder}: {what} cannot be loaded: {typed_message(error, 300)}") from None


class Base:
    """A base model that stays in memory while adapters are added and removed.

    Args:
        folder: the folder of the base.
        name: the name that the user gave.
        tokenizer: the tokenizer of the base.
        device: the device of the model, which is loaded at the first use.
    """

    def __init__(self, folder: Path, name: str, tokenizer: Any, device: torch.device) -> None:
        """Store the arguments without loading the model."""
        self.folder, self.name, self.tokenizer, self.device = folder, name, tokenizer, device
        self._model: Any = None
        self._logits: Tensor | None = None

    @property
    def model(self) -> Any:
        """Return the base without adapters, loaded if necessary."""
        if self._model is None:
            self._model = load_model(self.folder, self.device)
            self._logits = self._probe(self._model)
        return self._model

    @torch.no_grad()
    def _probe(self, model: Any) -> Tensor:
        """Return the logits of the base, with or without an adapter, for a few tokens."""
        ids = torch.arange(8, device=self.device)[None] % model.config.get_text_config().vocab_size
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    def release(self) -> None:
        """Free the memory of the base, which is loaded again at the next use."""
        self._model = None

    @contextlib.contextmanager
    def adapted(self, candidate: Candidate) -> Iterator[Any]:
        """Add an adapter to the base inside the block, and remove it afterwards.

        Raises:
            DataError: the adapter does not fit the base, or cannot be loaded.
        """
        base, peft = self.model, package("peft")
        self._model = None  # after an error, parts of the adapter remain in the model, so it must not be used again
        with _explain_errors(candidate.folder, f"the adapter, for the base {self.name},"):
            model = peft.PeftModel.from_pretrained(base, str(candidate.folder), is_trainable=False)
            replaces_weights = self._check_weights(peft, model, candidate)
            model = model.to(self.device).eval()
            self._probe(model)  # some kinds of adapters need more inputs than tokens, such as the number of a task
        yield model
        if replaces_weights:
            return  # PEFT leaves these weights in the base, and the probe sees only the embeddings of its tokens
        self._model = model.unload() if hasattr(model, "unload") else model.get_base_model()
        if self._logits is None or not torch.equal(self._probe(self._model), self._logits):
            self.release()  # some initializations of adapters change the base

    def _check_weights(self, peft: Any, model: Any, candidate: Candidate) -> bool:
        """Check that the file of a LoRA adapter has exactly the weights that its layers in this base need.

        Return whether an adapter of any kind also has weights that replace those of the base, such as embeddings.
        """
        config = read_config(candidate.folder, "adapter")
        if config.get("peft_type") != "LORA":
            # Other kinds do not save tensors that a seed determines, or rename the tensors that they save.
            return bool(config.get("modules_to_save"))
        saved = set(importlib.import_module("peft.utils").load_peft_weights(str(candidate.folder), device="cpu"))
        needed = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
        unexpected = [key for key in sorted(saved - needed) if "embed_tokens" not in key and "lm_head" not in key]
        missing = sorted(needed - saved)
        if unexpected or missing:
            reason = f"the base has no place for {unexpected[0]}" if unexpected else f"its file lacks {missing[0]}"
            other_count = len(unexpected or missing) - 1
            raise DataError(f"{candidate.folder}: the adapter does not fit the base {self.name}: {reason}"
                            + (f" and {other_count} other weights" if other_count else ""))
        return bool(config.get("modules_to_save") or saved - needed)

    def check(self, candidate: Candidate, any_base: bool = False) -> None:
        """Check that a candidate belongs to this base, without loading weights.

        Args:
            candidate: an adapter or a model.
            any_base: whether an adapter may name another base.

        Raises:
            DataError: an adapter names another base, or the vocabularies differ.
        """
        config = read_config(candidate.folder, candidate.kind)
        if candidate.kind == "adapter" and not any_base and (named := config.get("base_model_name_or_path")):
            self._check_name(candidate, str(named))
        if any((candidate.folder / name).is_file() for name in TOKENIZERS):
            other_numbers = load_tokenizer(candidate.folder).get_vocab()
            for token, number in self.tokenizer.get_vocab().items():
                if other_numbers.get(token) != number:
                    raise DataError(f"{candidate.folder}: its vocabulary is not that of the base {self.name}: token "
                                    f"{token!r} is {other_numbers.get(token, 'missing')} instead of {number}; name the "
                                    "base that it was trained from")
        elif candidate.kind == "model":
            sizes = [c.get("text_config", c).get("vocab_size") for c in (config, read_config(self.folder, "model"))]
            if sizes[0] != sizes[1]:
                raise DataError(f"{candidate.folder}: its vocabulary has {sizes[0]} tokens, that of the base "
                                f"{self.name} {sizes[1]}; name the base that it was trained from")

    def _check_name(self, candidate: Candidate, named: str) -> None:
        """Check that an adapter names this base: compare the last part of the path, or the files if they are local."""
        published = str(read_config(self.folder, "model").get("_name_or_path", ""))
        base_names = {self.name, self.name.partition("@")[0], str(self.folder.resolve()), published}
        if Path(named).name.lower() in {Path(name).name.lower() for name in base_names if name}:
            return
        path = Path(named)
        if (path / MODEL).is_file() and fingerprint(path) == fingerprint(self.folder):
            return
        raise DataError(f"{candidate.folder}: the adapter was trained on {named}, and the base is {self.name}; name "
                        "that base, or pass --any-base if both are the same model")


def check_plain(candidate: Candidate) -> None:
    """Check that an adapter is a plain LoRA, whose update can be scaled.

    Raises:
        SpecError: it is of another kind, uses an extension of LoRA, or has weights that replace those of the base.
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
        elif not reason and (replacing := [name for name in sorted(_weights(candidate))
                                           if not any(part in name for part in SCALED)]):
            reason = f"it replaces weights of the base, such as {replacing[0]}"
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
    with _explain_errors(path, "the adapter"):
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


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


def export_scaled(candidate: Candidate, scale: float, target: Path) -> None:
    """Write a copy of an adapter, for PEFT, whose update is scaled: its B matrices are multiplied by `scale`.

    Raises:
        SpecError: the adapter is not a plain LoRA.
        DataError: the adapter's weights are not in safetensors.
        StoreError: the folder is not empty, or cannot be written.
    """
    check_plain(candidate)
    source = _weights_file(candidate)
    if source.suffix != ".safetensors":
        raise DataError(f"{source}: only adapters in safetensors can be exported")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(f"{target} is not an empty folder; choose a new folder for the scaled adapter")
    weights = {name: tensor * scale if ".lora_B." in name or ".lora_embedding_B" in name else tensor
               for name, tensor in load_file(source).items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_tensors(target / source.name, weights, {"format": "pt"})
        shutil.copy(candidate.folder / "adapter_config.json", target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
