"""The weights that the user named, and the size and normalization of inputs that follow from them.

The plan calls these functions before it makes a trial's key, so the key has the resulting values.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clbench.core.entry_points import builder, resolve
from clbench.core.errors import ClbenchError
from clbench.core.hookspecs import ModelInfo
from clbench.core.objective import CLASSIFICATION, ObjectiveInfo
from clbench.core.options import Options
from clbench.core.pretrained import Preprocessing, PretrainedInfo, WeightsSource, hash_weights, read_weights_info
from clbench.experiment.spec import Named
from clbench.experiment.trial import Weights, hash_of_name

NAME = re.compile(r"[A-Z][A-Z0-9_]*|timm|(timm|hf-hub):.+")  # names of weights, unless a file has this path

RGB = 3  # channels


class Inputs(NamedTuple):
    """Options with the values that follow from pretrained weights, and the preprocessing of the weights."""

    benchmark: Options
    model: Options
    preprocessing: Preprocessing | None


def find_weights(text: str | None, model: Named, info: ModelInfo,
                 problems: list[str]) -> tuple[Weights | None, PretrainedInfo]:
    """Return the weights that the user named and their metadata; mistakes are added to `problems`.

    The weights are a file, or a name that the model's source knows (`ModelInfo.weights`). The metadata of a file are in
    a JSON file in the same folder. Without it, the metadata of the model's default weights apply. If the user named no
    weights, the model may have its own (`ModelInfo.own_weights`).
    """
    text = text and os.path.expanduser(text)
    try:
        if text is None and info.own_weights:
            text = str(resolve(info.own_weights, f"model {info.name!r}")(model.name))
        if text in (None, "none"):
            return None, PretrainedInfo()
        by_name = NAME.fullmatch(text) and not Path(text).is_file()
        content = "" if by_name else hash_weights(Path(text))  # before the source is loaded, which imports torch
        source: WeightsSource = resolve(info.weights, f"model {info.name!r}")
        if by_name:
            named_weights = source.find(model.name, text)
            weights_info = named_weights.info
            return Weights(path=named_weights.name, sha256=hash_of_name(named_weights.name),
                           licence=weights_info.licence, training_data=weights_info.training_data), weights_info
        weights_info = read_weights_info(Path(text)) or source.info(model.name)
        metadata = header(Path(text))
        return Weights(path=text, sha256=content, licence=weights_info.licence or metadata.get("license", ""),
                       training_data=weights_info.training_data or metadata.get("training_data", "")
                       or metadata.get("benchmark", "")), weights_info
    except OSError as error:
        relative = "" if os.path.isabs(text or "") else ", which is relative to the current folder"
        problems.append(f"weights {text} cannot be read ({error.strerror}): check the path{relative}")
    except ClbenchError as error:
        problems += str(error).splitlines()
    return None, PretrainedInfo()


def header(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}  # loading the file reports the error


def advise_text_model(predicts_tokens: bool) -> str:
    """Return what to do if a benchmark of texts meets a model that takes numbers."""
    if predicts_tokens:
        return "choose --model hf:NAME, a causal language model"
    return "choose --model hf:NAME, or make numbers of the texts by clbench embed"


def settle_inputs(benchmark: Options, named: Named, model: Options, weights: Weights | None, known: PretrainedInfo,
                  problems: list[str], info: ModelInfo, objective: ObjectiveInfo = CLASSIFICATION) -> Inputs:
    """Return the options of benchmark and model with the size and normalization that the weights need.

    A benchmark of texts gets the model's tokenizer. Options that the user gave are not changed. Mistakes are added to
    `problems`.

    Args:
        benchmark: the validated options of the benchmark.
        named: the benchmark as the user wrote it.
        model: the validated options of the model.
        weights: the pretrained weights, if there are any.
        known: the metadata of the weights.
        problems: the mistakes so far.
        info: the declaration of the model.
        objective: the training objective of the benchmark.
    """
    fields = type(benchmark).model_fields
    texts = "tokenizer" in fields and getattr(benchmark, "text_column", "") is not None
    if texts and "tokenizer" not in named.options:
        if info.text:
            benchmark = benchmark.model_copy(update={"tokenizer": info.name.partition(":")[2]})
        else:
            problems.append(f"{named.name} has texts, and model {info.name!r} takes numbers; "
                            + advise_text_model(objective.labels == "tokens"))
    preprocessing = known.preprocessing if weights is not None else None
    if preprocessing is None:
        if getattr(benchmark, "normalize", None) == "model":
            problems.append(f"{named.name}: normalize = model, but " +
                            ("no weights are given (--weights)" if weights is None else
                             f"nothing says how {weights.path} was trained; put a JSON file with mean and std next to "
                             "it"))
    elif "normalize" in fields and not {"normalize", "mean"} & set(named.options):
        benchmark = benchmark.model_copy(update={"normalize": "model"})
    if "size" not in type(model).model_fields:
        return Inputs(benchmark, model, preprocessing)
    if weights is not None and getattr(model, "size", None) is None and known.size is not None:
        model = model.model_copy(update={"size": known.size})
    if "size" in fields and "size" not in named.options and getattr(benchmark, "crop", None) is None:
        benchmark = benchmark.model_copy(update={"size": getattr(model, "size", None)})
    return Inputs(benchmark, model, preprocessing)


def network_of(info: ModelInfo, inputs: Inputs, known: int | None = None, classes: int = 1
               ) -> Callable[[], Any] | None:
    """Return a function that builds the model once on the meta device; None if the size of its images is not known.

    The function returns None for a model that cannot be built. The run, which knows the inputs, reports the error.
    """
    side = getattr(inputs.model, "size", None) or known
    # Items of language models may be shorter than the benchmark allows, and than the model takes.
    length = getattr(inputs.benchmark, "length", 1) if classes else 1
    shape = (length,) if info.text else (info.channels or RGB, side, side)
    if side is None and not info.text:
        return None

    @functools.cache
    def network() -> Any:
        import torch

        build = builder(info, "model")
        try:
            with torch.device("meta"):
                return build(inputs.model, shape, classes)
        except Exception:  # third-party models may raise anything
            return None

    return network
