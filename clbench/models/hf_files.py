"""Find the folders of Hugging Face text models. This module does not import torch.

For `hf:NAME`, clbench looks for a folder, then for `models/NAME` in the data folder, then on Hugging Face's hub (its
cache first). Weights are read from `model.safetensors`, or from the shards that its index lists. No code in a folder or
repository is ever run.
"""

from __future__ import annotations

import importlib
import json
import threading
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clbench.core import files
from clbench.core.errors import DataError, SpecError, message_of
from clbench.core.files import hash_file, hash_files
from clbench.core.pretrained import INDEX_SUFFIX, weight_files

WEIGHTS = "model.safetensors"
INDEX = f"model{INDEX_SUFFIX}"  # which lists the shards of a large model
CACHED = "models--"  # prefix of the folders of repositories in the hub's cache
LONGEST = 8.0  # seconds after which Hugging Face's hub counts as unreachable
# Files to download: configuration, tokenizer, weights.
PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", WEIGHTS, "model-*.safetensors")
_without_tokenizer: set[Path] = set()  # folders of the hub's cache for which this process asked the hub for a tokenizer
Kind = Literal["adapter", "model"]
TOKENIZER = "its tokenizer"  # what a folder of the cache lacks
ADAPTER, MODEL = "adapter_config.json", "config.json"
CONFIGURATION = (MODEL, "1_Pooling/config.json")  # of a network; the second one is of sentence-transformers
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_INFO = "clbench.json"  # beside an adapter that clbench wrote
HASHED = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "tokenizer*", "*.jinja", "*.model",
          "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json")


def package(name: str) -> Any:
    """Import a library and return it, without warnings and progress bars.

    Raises:
        SpecError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except ModuleNotFoundError:
        advice = "'clbench[text]', or for language models " if name == "transformers" else ""
        what = "adapters" if name == "peft" else "models hf:NAME"
        raise SpecError(f"{what} need {name}: pip install {advice}'clbench[lm]'") from None
    if name == "transformers":
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
    return module


def inner(model: str) -> str:
    """Return NAME of a model `hf:NAME`: a folder or a repository, with `@REVISION` if it has one."""
    name = model.partition(":")[2]
    if not name:
        raise SpecError(f"model {model!r}: name a folder or a repository on Hugging Face's hub, as in "
                        "hf:sentence-transformers/all-MiniLM-L6-v2")
    return name


def folder_of(name: str, weights: bool = False) -> Path:
    """Return the folder of a model and its tokenizer.

    Args:
        name: a folder, or a repository on Hugging Face's hub.
        weights: whether the model's weights are needed. The hub's cache may have only the tokenizer of a repository.

    Raises:
        DataError: the model was not found and cannot be downloaded.
    """
    places = _places(name)
    if local := next((place for place in places if (place / MODEL).is_file()), None):
        return local
    paths = " nor ".join(map(str, dict.fromkeys(places)))
    if name.startswith((".", "/", "~")):
        raise DataError(f"model {name!r} was not found, because {paths} has no config.json: check the path")
    repository, _, revision = name.partition("@")
    return _from_hub(name, repository, revision or None, paths, weights)


def local_folder(name: str) -> Path | None:
    """Return the folder of a model on this machine, as `folder_of` does without a download; None if there is none."""
    folders = _places(name)
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        repository, _, revision = name.partition("@")
        folders.append(Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(PATTERNS),
                                                  local_files_only=True)))
    except (ImportError, OSError, ValueError):  # not installed, not in the cache, or no name of a repository
        pass
    return next((folder for folder in folders if (folder / MODEL).is_file()), None)


def _places(name: str) -> list[Path]:
    """Return the folders in which a model may be, apart from the hub's cache."""
    return [files.expand_home(name), files.default_data_dir() / "models" / name]


def hash_configuration(name: str) -> dict[str, str]:
    """Return the hashes of the files that determine how the network of a text model is built, by name.

    There are none if the model is not on this machine.
    """
    folder = local_folder(name)
    return {file: hash_file(folder / file) for file in CONFIGURATION if (folder / file).is_file()} if folder else {}


def hub_problem(hub: Any) -> str:
    """Return why Hugging Face's hub cannot be reached, or an empty string if it can, by one request without a retry.

    The library itself tries each file six times and prints a line for each try. Without a connection, this takes half a
    minute.

    Args:
        hub: the library huggingface_hub.
    """
    problem = [f"no answer from it in {LONGEST:g} seconds"]

    def request() -> None:
        try:
            hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=LONGEST / 2)
            problem[0] = ""
        except Exception as error:  # the type depends on its HTTP library, which differs between releases
            problem[0] = message_of(error, 200) or type(error).__name__

    # In a thread, because the timeout does not apply to the DNS lookup.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(LONGEST)
    return problem[0]


def _from_hub(name: str, repository: str, revision: str | None, paths: str, weights: bool) -> Path:
    """Return the folder of a repository in the hub's cache, downloaded if necessary."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ModuleNotFoundError:
        raise DataError(f"model {name!r} was not found: neither {paths} has a config.json, and huggingface_hub, "
                        "which could download it, is not installed: pip install 'clbench[text]'") from None
    failures = (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError)
    snapshot = partial(hub.snapshot_download, repository, allow_patterns=list(PATTERNS))
    cached = None
    with suppress(*failures):
        folder = Path(snapshot(revision=revision, local_files_only=True))
        cached = folder if (folder / MODEL).is_file() else None
    missing = "it" if cached is None else _missing_part(cached, weights)
    if cached is not None and not missing:
        return cached
    reason = hub_problem(hub)
    if not reason:
        try:
            folder = Path(snapshot(revision=cached.name if cached else revision, local_files_only=False))
            if (folder / MODEL).is_file():
                return folder
            reason = f"the repository has no {MODEL}"
        except failures as error:
            reason = message_of(error, 200)
    if cached is not None and missing == TOKENIZER:
        return cached
    raise DataError(f"model {name!r} was not found: neither {paths} has a config.json, and {missing} could not be "
                    f"downloaded from the Hugging Face Hub ({reason}). On a machine with a connection run `hf download "
                    f"{repository}` and copy its folder")


def _missing_part(folder: Path, weights: bool) -> str:
    """Return which part of a model a folder of the hub's cache lacks, as words for a message; empty if none.

    A missing tokenizer is returned once for each folder, because not every repository has one.
    """
    if weights and _lacks_weights(folder):
        return "its weights"
    if folder not in _without_tokenizer and not any(map(is_tokenizer_file, folder.iterdir())):
        _without_tokenizer.add(folder)
        return TOKENIZER
    return ""


def is_tokenizer_file(path: Path) -> bool:
    """Return whether a file defines a tokenizer, by its name."""
    return (path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens"))
            or path.suffix in (".model", ".spm"))  # of SentencePiece


def _lacks_weights(folder: Path) -> bool:
    """Return whether a folder lacks weights, in one file or in the shards that its index lists."""
    path = weights_in(folder)
    with suppress(DataError):
        return path is None or not weight_files(path)
    return True


def published_as(weights: str) -> tuple[str, str | None]:
    """Return the repository or folder of a Hugging Face model, given its weights file; empty for any other file.

    The second value is the commit of a repository, and None for a folder.

    Args:
        weights: path of the file.
    """
    path = Path(weights)
    if path.name not in (WEIGHTS, INDEX) or not (path.parent / "config.json").is_file():
        return "", None
    repositories = [part for part in path.parts if part.startswith(CACHED)]  # in the hub's cache
    if repositories:
        return repositories[-1].removeprefix(CACHED).replace("--", "/"), path.parent.name
    return str(path.parent.resolve()), None


def weights_in(folder: Path) -> Path | None:
    """Return the weights file in a folder, or the index of its shards; None if there is neither."""
    return next((path for path in (folder / WEIGHTS, folder / INDEX) if path.is_file()), None)


def weights_of(model: str) -> Path:
    """Return the weights file of a model `hf:NAME`, or the index of its shards.

    Raises:
        DataError: there is neither.
    """
    folder = folder_of(inner(model), weights=True)
    if path := weights_in(folder):
        return path
    raise DataError(f"model {model!r}: no {WEIGHTS} in {folder}; save it as such by transformers' save_pretrained, or "
                    "begin untrained (--weights none)")


def read_config(folder: Path, kind: Kind) -> dict[str, Any]:
    """Return the configuration of an adapter or a model.

    Raises:
        DataError: it cannot be read.
    """
    return read_object(folder / (ADAPTER if kind == "adapter" else MODEL))


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: it cannot be read as JSON: {message_of(error)}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object")
    return config


def fingerprint(folder: Path) -> str:
    """Return a hash of the files of a model: configuration, weights and tokenizer."""
    files = sorted({path for pattern in HASHED for path in folder.glob(pattern)})
    return hash_files(files)
