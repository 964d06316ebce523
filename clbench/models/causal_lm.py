"""Causal language models and PEFT adapters: load them, and check that an adapter fits its base.

The base is loaded once. Adapters are added to it and removed again. If an adapter replaces weights of the base, or if
the base then gives other logits than before, it is loaded again. No code from a model's folder is ever run.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core.errors import DataError, SpecError, message_of, typed_message
from clbench.models.hf_candidates import Candidate, token_count
from clbench.models.hf_files import MODEL, TOKENIZERS, fingerprint, package, read_config


def load_tokenizer(folder: Path, template: Path | None = None) -> Any:
    """Return the tokenizer of a base, with the chat template of the file `template` if it is given.

    Raises:
        DataError: the tokenizer or the file cannot be read.
    """
    with explain_errors(folder, "its tokenizer"):
        tokenizer = package("transformers").AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if template is not None:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{template}: the chat template cannot be read: {error}") from None
    return tokenizer


def text_config(folder: Path) -> Any:
    """Return the configuration of a model, or the part for texts of a model that also takes images."""
    with explain_errors(folder, "its configuration"):
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
    with explain_errors(folder, "the model"):
        library = package("transformers")
        config = library.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        config.dtype = torch.float32  # otherwise constants, such as the scale of Gemma's embeddings, are rounded
        model, info = library.AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise DataError(f"{folder}: {len(missing)} weights of the model are missing, such as {missing[0]}")
    if getattr(model, "is_quantized", False):
        raise DataError(f"{folder}: the model is quantized, and clbench scores in float32; name the model before its "
                        "quantization, with --any-base if an adapter names another one")
    # With frozen weights, autocast keeps no copies of them in the other precision.
    return model.float().to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def explain_errors(folder: Path, what: str) -> Iterator[None]:
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
        with explain_errors(candidate.folder, f"the adapter, for the base {self.name},"):
            with warnings.catch_warnings(record=True) as shown:
                warnings.simplefilter("always")
                model = peft.PeftModel.from_pretrained(base, str(candidate.folder), is_trainable=False)
            lacking = [str(warning.message) for warning in shown if "missing adapter keys" in str(warning.message)]
            replaces_weights = self._check_weights(peft, model, candidate, lacking)
            model = model.to(self.device).eval()
            self._probe(model)  # some kinds of adapters need more inputs than tokens, such as the number of a task
        yield model
        if replaces_weights:
            return  # PEFT leaves these weights in the base, and the probe sees only the embeddings of its tokens
        self._model = model.unload() if hasattr(model, "unload") else model.get_base_model()
        if self._logits is None or not torch.equal(self._probe(self._model), self._logits):
            self.release()  # some initializations of adapters change the base

    def _check_weights(self, peft: Any, model: Any, candidate: Candidate, lacking: list[str]) -> bool:
        """Check that the file of an adapter has exactly the weights that its layers in this base need.

        Return whether the adapter also has weights that replace those of the base, such as embeddings.

        Args:
            peft: the library.
            model: the base with the adapter.
            candidate: the adapter.
            lacking: warnings of PEFT about weights that the file lacks.
        """
        saved = importlib.import_module("peft.utils").load_peft_weights(str(candidate.folder), device="cpu")
        weights = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
        embeddings = set(peft.get_peft_model_state_dict(model, save_embedding_layers=True)) - weights
        if model.active_peft_config.peft_type == "LORA":
            unexpected, missing = saved.keys() - weights - embeddings, weights - saved.keys()
        else:  # other kinds do not save tensors that a seed determines, or rename the tensors that they save
            missing = set(re.findall(r"'(\S+)'", " ".join(lacking)) or lacking)
            unexpected = set()
            if not model.active_peft_config.is_prompt_learning:
                unexpected = set(peft.set_peft_model_state_dict(model, saved).unexpected_keys)
        if unexpected or missing:
            first, *others = sorted(unexpected or missing)
            reason = f"the base has no place for {first}" if unexpected else f"its file lacks {first}"
            raise DataError(f"{candidate.folder}: the adapter does not fit the base {self.name}: {reason}"
                            + (f" and {len(others)} other weights" if others else ""))
        return bool(model.active_peft_config.to_dict().get("modules_to_save") or saved.keys() & embeddings)

    def check(self, candidate: Candidate, any_base: bool = False) -> None:
        """Check that a candidate belongs to this base, without loading weights.

        Args:
            candidate: an adapter or a model.
            any_base: whether an adapter may name another base.

        Raises:
            DataError: an adapter names another base, or the vocabularies differ.
        """
        config = read_config(candidate.folder, candidate.kind)
        base_config = read_config(self.folder, "model")
        base_size = base_config.get("text_config", base_config).get("vocab_size")
        if candidate.kind == "adapter":
            if not any_base and (named := config.get("base_model_name_or_path")):
                self._check_name(candidate, str(named))
            if (size := token_count(candidate)) is not None and size != (base_size or size):
                raise DataError(f"{candidate.folder}: its embeddings have {size} tokens, those of the base {self.name} "
                                f"{base_size}; merge the adapter into the model that it was trained on "
                                "(merge_and_unload of PEFT), and name the merged model instead")
        if any((candidate.folder / name).is_file() for name in TOKENIZERS):
            other_numbers = load_tokenizer(candidate.folder).get_vocab()
            for token, number in self.tokenizer.get_vocab().items():
                if other_numbers.get(token) != number:
                    raise DataError(f"{candidate.folder}: its vocabulary is not that of the base {self.name}: token "
                                    f"{token!r} is {other_numbers.get(token, 'missing')} instead of {number}; name the "
                                    "base that it was trained from")
        elif candidate.kind == "model":
            size = config.get("text_config", config).get("vocab_size")
            if size != base_size:
                raise DataError(f"{candidate.folder}: its vocabulary has {size} tokens, that of the base {self.name} "
                                f"{base_size}; name the base that it was trained from")

    def _check_name(self, candidate: Candidate, named: str) -> None:
        """Check that an adapter names this base: compare files if it names a folder on this machine, else the names.

        A folder that cannot be read, such as one of another user, counts as one of another machine.
        """
        path, is_base = Path(named), None
        with contextlib.suppress(OSError):
            if (path / MODEL).is_file():
                is_base = path.resolve() == self.folder.resolve() or fingerprint(path) == fingerprint(self.folder)
        if is_base is None:
            published = str(read_config(self.folder, "model").get("_name_or_path", ""))
            base_names = {self.name, self.name.partition("@")[0], str(self.folder.resolve()), published}
            is_base = path.name.lower() in {Path(name).name.lower() for name in base_names if name}
        if is_base:
            return
        raise DataError(f"{candidate.folder}: the adapter was trained on {named}, and the base is {self.name}; name "
                        "that base, or pass --any-base if both are the same model")
