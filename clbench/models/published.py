"""Sources of published weights: repositories on Hugging Face's hub, timm's names and torchvision's names.

Reading weights never runs code in them: tensors are read from safetensors, or by `torch.load` with `weights_only`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clbench.core.errors import DataError, SpecError, message_of, unknown
from clbench.core.pretrained import NamedWeights, Preprocessing, PretrainedInfo, parse_weights_info, read_weights_info
from clbench.models.hf_files import hub_problem
from clbench.models.timm_models import check_name, home
from clbench.models.torchvision_models import inner_name
from clbench.models.weights import read_weights

FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")  # weights files in a repository
HUB_NAME = re.compile(r"hf-hub:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Hub:
    """Repositories on Hugging Face's hub, `hf-hub:OWNER/NAME[@REVISION]`, for any model."""

    names = "a file, or hf-hub:OWNER/NAME"

    def find(self, model: str, name: str) -> NamedWeights:
        """Return the weights of a repository, at the commit in the cache or else at the latest commit on the hub."""
        match = HUB_NAME.fullmatch(name)
        if not match:
            raise SpecError(f"weights {name!r}: model {model!r} takes {self.names}, and no such file is there")
        file = find_in_hub(match["repository"], match["revision"], FILES)
        info = self.info(model)
        description = find_in_hub(match["repository"], file.parent.name, ("config.json",), needed=False)
        if description is not None:
            info = read_weights_info(description.with_name("model.safetensors")) or info
        return NamedWeights(f"hf-hub:{match['repository']}@{file.parent.name}", info)

    def load(self, model: str, name: str) -> Mapping[str, Tensor]:
        """Return the tensors of `hf-hub:OWNER/NAME@COMMIT`."""
        match = HUB_NAME.fullmatch(name)
        if not match:
            raise DataError(f"weights {name!r} are none that model {model!r} has")
        return read_weights(find_in_hub(match["repository"], match["revision"], FILES))

    def info(self, model: str) -> PretrainedInfo:
        """Return empty information, because clbench's own models have no published weights."""
        return PretrainedInfo()


class Timm(Hub):
    """timm's own weights: `timm` (the model's default), `timm:TAG`; and repositories on the hub."""

    names = "a file, timm, timm:TAG or hf-hub:OWNER/NAME"

    def find(self, model: str, name: str) -> NamedWeights:
        """Return the weights `timm:TAG` of a model; `timm` means the tag in the model's name, or the default tag."""
        source, _, tag = name.partition(":")
        if source != "timm":
            return super().find(model, name)
        full_name = check_name(model)
        if tag:
            architecture = full_name.partition(".")[0]
            tags = [n.partition(".")[2] for n in home().list_pretrained(f"{architecture}.*")]
            if tag not in tags:
                raise SpecError(unknown(f"tag of timm's {architecture}", tag, tags,
                                        f"timm.list_pretrained('{architecture}*')"))
            full_name = f"{architecture}.{tag}"
        config = home().get_pretrained_cfg(full_name)
        repository = config.hf_hub_id if config is not None else None
        # custom_load = True concerns files from other places, such as Google's .npz; as text, it concerns the hub.
        if repository is None or isinstance(config.custom_load, str) or config.hf_hub_filename not in (None, *FILES):
            raise SpecError(f"timm publishes no weights of {full_name} on the hub that are plain tensors; name a file, "
                            f"or another tag of timm.list_pretrained('{full_name.partition('.')[0]}*')")
        file = find_in_hub(repository, None, FILES)
        info = parse_weights_info({**config.to_dict(), "training_data": config.tag or ""})
        return NamedWeights(f"hf-hub:{repository}@{file.parent.name}", info)

    def info(self, model: str) -> PretrainedInfo:
        """Return timm's information on the model's default weights, without the license."""
        config = home().get_pretrained_cfg(check_name(model))
        return PretrainedInfo() if config is None else parse_weights_info(
            {k: v for k, v in config.to_dict().items() if k != "license"})


class Torchvision(Hub):
    """torchvision's own weights, such as IMAGENET1K_V1, which torchvision stores in torch's hub folder."""

    names = "a file, hf-hub:OWNER/NAME or one of torchvision's names such as IMAGENET1K_V1"

    def find(self, model: str, name: str) -> NamedWeights:
        """Return torchvision's weights of a model with this name, or the weights of a repository on the hub."""
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            return super().find(model, name)
        weights = self._find_weights(model, name)
        return NamedWeights(weights.name, preset(weights))  # DEFAULT is another name of one of them

    def load(self, model: str, name: str) -> Mapping[str, Tensor]:
        """Return the tensors of weights by torchvision's name; torchvision checks the hash in their URL."""
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            return super().load(model, name)
        try:
            entry = self._find_weights(model, name)
            weights: Mapping[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"weights {name} of {model} could not be downloaded ({message_of(error)}): "
                            f"put {self._find_weights(model, name).url} into {torch_hub()}") from error
        return weights

    def info(self, model: str) -> PretrainedInfo:
        """Return torchvision's information on the model's first weights, without license and training data."""
        from torchvision.models import get_model_weights

        default = next(iter(get_model_weights(inner_name(model))), None)
        return PretrainedInfo() if default is None else replace(preset(default), licence="", training_data="")

    def _find_weights(self, model: str, name: str) -> Any:
        from torchvision.models import get_model_weights

        inner = inner_name(model)
        published = get_model_weights(inner).__members__
        if name not in published:
            raise SpecError(unknown("weights", name, published, f"torchvision's get_model_weights({inner!r})"))
        return published[name]


def preset(weights: Any) -> PretrainedInfo:
    """Return the image size, preprocessing, license and training data of torchvision's weights."""
    transforms = weights.transforms()
    interpolation = transforms.interpolation.value
    kind = interpolation if interpolation in ("nearest", "bilinear", "bicubic") else "bicubic"
    known_as = Preprocessing(interpolation=kind, antialias=bool(transforms.antialias), mean=tuple(transforms.mean),
                             std=tuple(transforms.std))
    data = "ImageNet-1k" if weights.name.startswith("IMAGENET1K") else ""
    if "_SWAG_" in weights.name:
        data = "Instagram images with hashtags (SWAG), then ImageNet-1k"
    return PretrainedInfo(int(transforms.crop_size[0]), known_as, str(weights.meta.get("license") or ""), data)


def torch_hub() -> Path:
    """Return the folder in which torch keeps downloaded weights."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


def find_in_hub(repository: str, revision: str | None, names: tuple[str, ...], needed: bool = True) -> Any:
    """Return the path of the first of the files `names` that a repository has, from the cache or else downloaded.

    If there is none, return None unless it is `needed`.

    Raises:
        SpecError: huggingface_hub is not installed.
        DataError: a needed file does not exist, or is not in the cache and cannot be downloaded.
    """
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
        cache: str = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
    except ModuleNotFoundError:
        raise SpecError("weights of hf-hub and timm need huggingface_hub, which is not installed: pip install "
                        "'clbench[timm]'") from None
    reason = ""
    for offline in (True, False):
        if not offline and (problem := hub_problem(hub)):
            reason = problem
            break
        for name in names:
            try:
                return Path(hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline))
            except errors.EntryNotFoundError as error:  # no such file, or not in the cache and no connection
                reason = reason if offline or not isinstance(error, OSError) else message_of(error, 200)
            except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
                reason = message_of(error, 200)
    if not needed:
        return None
    folder = Path(cache) / f"models--{repository.replace('/', '--')}"
    raise DataError(f"weights hf-hub:{repository}{f'@{revision}' if revision else ''} are not in {folder} and could "
                    f"not be downloaded ({reason or 'the repository has none of ' + ', '.join(names)}). On a machine "
                    f"with a connection run `hf download {repository} {names[0]}` and copy that folder here")


HUB, TIMM, TORCHVISION = Hub(), Timm(), Torchvision()
