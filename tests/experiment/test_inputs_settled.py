"""What weights settle in the plan: size, normalization, base; and where published weights are found."""

import importlib
import json
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

import clbench
from clbench.core.errors import DataError, SpecError
from clbench.core.pretrained import Preprocessing, read_weights_info
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.models import hf_files, published
from clbench.models.weights import hash_tensors
from clbench.training.building import build_model

TIMM = pytest.mark.extra("timm")
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def planned(**values):
    return plan(build({"methods": "lora", "benchmark": "split-cifar10", "model": "resnet20", **values}),
                discover())[0].trial


@pytest.fixture
def weights(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"license": "MIT", "benchmark": "split-mnist"})
    return tmp_path / "w.safetensors"


def describe(weights, **values):
    weights.with_suffix(".json").write_text(json.dumps(values))
    return str(weights)


def test_without_a_description_nothing_changes(weights):
    trial = planned(weights=str(weights))
    assert trial.preprocessing is None and trial.benchmark.options["normalize"] == "dataset"
    assert trial.model.options == {"width": 16} and "preprocessing" not in json.loads(
        trial.model_dump_json(exclude_none=True))
    assert (trial.weights.licence, trial.weights.training_data) == ("MIT", "split-mnist")
    assert planned().method.options["base"] == "task1" and trial.method.options["base"] == "pretrained"
    assert planned().key == planned(methods="lora:base=task1").key
    assert trial.key == planned(methods="lora:base=pretrained", weights=str(weights)).key


@pytest.mark.parametrize(("benchmark", "advice"), [
    ("instructions:prompts", "a causal language model"),
    ("text:mails.csv", "or make numbers of the texts by clbench embed"),
])
def test_a_model_of_numbers_cannot_read_texts_and_only_texts_with_labels_can_be_embedded(benchmark, advice):
    refused = rf"^{benchmark} has texts, and model 'mlp' takes numbers; choose --model hf:NAME, {advice}$"
    with pytest.raises(SpecError, match=refused):
        planned(benchmark=benchmark, model="mlp", methods="naive")


def test_a_json_beside_the_weights_says_how_they_were_trained(weights):
    plain = planned(weights=str(weights)).key
    where = describe(weights, input_size=[3, 48, 48], interpolation="bilinear", antialias=False, **HALF)
    trial = planned(weights=where)
    assert trial.preprocessing == Preprocessing(interpolation="bilinear", antialias=False, mean=(0.5,) * 3,
                                                std=(0.25,) * 3)
    assert trial.model.options == {"width": 16, "size": 48} and trial.benchmark.options["normalize"] == "model"
    assert trial.key != plain
    smaller = planned(weights=where, model="resnet20:size=40", benchmark="split-cifar10:normalize=imagenet")
    assert smaller.model.options["size"] == 40 and smaller.benchmark.options["normalize"] == "imagenet"
    describe(weights, input_size=[3, 48, 48], interpolation="bicubic", **HALF)
    assert planned(weights=where).key != trial.key  # the same content, other inputs


def test_what_does_not_fit_is_said_with_a_way_out(weights):
    with pytest.raises(SpecError, match=r"split-cifar10: normalize = model, but no weights are given \(--weights\)"):
        planned(benchmark="split-cifar10:normalize=model")
    with pytest.raises(SpecError, match=r"nothing says how .* was trained; put a JSON file with mean and std"):
        planned(benchmark="split-cifar10:normalize=model", weights=str(weights))
    for wrong in ({"mean": [0.5], "std": [0.5, 0.5]}, {"mean": [0.5], "std": [0]}, {"mean": ["x"], "std": [1]},
                  {"input_size": 3}):
        with pytest.raises(SpecError, match=r"w\.json, which describes weights w\.safetensors, cannot be used"):
            planned(weights=describe(weights, **wrong))
    weights.with_suffix(".json").write_text("[]")
    with pytest.raises(DataError, match="expected an object"):
        read_weights_info(weights)
    with pytest.raises(SpecError, match=r"weights absent\.safetensors cannot be read \(No such file"):
        planned(weights="absent.safetensors")
    with pytest.raises(SpecError, match=r"weights 'timm': model 'resnet20' takes a file, or hf-hub:OWNER/NAME"):
        planned(weights="timm")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a maker of repositories in an empty cache of huggingface_hub, which cannot reach the hub."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(repository, tensors, config=None, commit="c0ffee" + "0" * 34):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        save_file(tensors, folder / "snapshots" / commit / "model.safetensors")
        if config is not None:
            (folder / "snapshots" / commit / "config.json").write_text(json.dumps(config))
        return commit

    return make


@pytest.fixture
def hub_server(hub, monkeypatch):
    """Return the requests that a server in the hub's place gets; it answers each, and has no repository."""
    constants = importlib.import_module("huggingface_hub.constants")
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield requests
        server.shutdown()


@pytest.fixture
def downloads(monkeypatch):
    """Return the names of the files that are asked of the hub itself, none of which it has."""
    hub, errors = map(importlib.import_module, ("huggingface_hub", "huggingface_hub.errors"))
    names = []

    def download(repository, name, revision=None, local_files_only=False):
        names.extend([] if local_files_only else [name])
        raise errors.LocalEntryNotFoundError(f"no {name}")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return names


@TIMM
def test_a_hub_out_of_reach_is_asked_once_and_told_in_one_line(hub_server, downloads, monkeypatch, caplog):
    constants = importlib.import_module("huggingface_hub.constants")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen, so that connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(SpecError) as caught:
            planned(model="timm:test_vit", weights="timm")
    assert "could not be downloaded ([Errno " in str(caught.value) and "\n" not in str(caught.value)
    assert not downloads and not caplog.records


@TIMM
def test_a_hub_in_reach_is_asked_for_each_file(hub_server, downloads):
    with pytest.raises(SpecError, match=r"are not in .* could not be downloaded \(no pytorch_model\.bin\)"):
        planned(model="timm:test_vit", weights="hf-hub:me/other")
    assert len(hub_server) == 1 and downloads == list(published.FILES)


@TIMM
def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
    library, constants = map(importlib.import_module, ("huggingface_hub", "huggingface_hub.constants"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_files, "LONGEST", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hf_files.hub_problem(library)


@TIMM
def test_weights_of_a_repository(hub):
    import timm

    torch.manual_seed(0)
    given = timm.create_model("test_vit", num_classes=0)
    commit = hub("me/mine", given.state_dict(), {"architecture": "test_vit", "license": "apache-2.0",
                                                 "pretrained_cfg": {"input_size": [3, 64, 64], **HALF}})
    trial = planned(model="timm:test_vit:size=32", weights="hf-hub:me/mine")
    assert trial.weights.path == f"hf-hub:me/mine@{commit}" and trial.weights.named
    assert trial.weights.licence == "apache-2.0" and trial.preprocessing.mean == (0.5,) * 3
    assert planned(model="timm:test_vit:size=32", weights=f"hf-hub:me/mine@{commit}").key == trial.key
    assert planned(model="timm:test_vit", weights="hf-hub:me/mine").model.options["size"] == 64
    model, notes = build_model(trial.model, trial.weights, (3, 32, 32), 10, discover())
    assert notes == ["weights: no head of this size, it starts untrained"]
    assert torch.equal(model.state_dict()["blocks.1.body.unit.attn.qkv.weight"], given.blocks[0].attn.qkv.weight)
    assert model.weights_hash == hash_tensors({n: t.float() for n, t in given.state_dict().items()})
    with pytest.raises(SpecError, match=r"weights hf-hub:me/other are not in .*models--me--other and could not be "
                                        r"downloaded"):
        planned(model="timm:test_vit", weights="hf-hub:me/other")


@TIMM
def test_weights_by_timms_names(hub):
    import timm

    tagged = timm.get_pretrained_cfg("test_vit").hf_hub_id
    commit = hub(tagged, timm.create_model("test_vit").state_dict())
    trial = planned(model="timm:test_vit:size=32", weights="timm")
    assert trial.weights.path == f"hf-hub:{tagged}@{commit}" and trial.weights.training_data == "r160_in1k"
    assert trial.preprocessing.std == tuple(timm.get_pretrained_cfg("test_vit").std)
    assert planned(model="timm:test_vit.r160_in1k:size=32", weights="timm:r160_in1k").weights == trial.weights
    with pytest.raises(SpecError, match="no tag of timm's test_vit 'r160'; did you mean 'r160_in1k'"):
        planned(model="timm:test_vit", weights="timm:r160")


@TIMM
def test_weights_that_timm_loads_otherwise_from_elsewhere_are_plain_tensors_on_the_hub(hub, monkeypatch):
    import timm

    config = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert config.custom_load is True  # for Google's .npz file
    given = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    commit = hub(config.hf_hub_id, given.state_dict())
    trial = planned(model="timm:vit_tiny_patch16_224:size=32", weights="timm")
    assert trial.weights.path == f"hf-hub:{config.hf_hub_id}@{commit}"
    model, _ = build_model(trial.model, trial.weights, (3, 32, 32), 10, discover())
    assert torch.equal(model.state_dict()["blocks.1.body.unit.attn.qkv.weight"], given.blocks[0].attn.qkv.weight)
    refused = "timm publishes no weights of .* on the hub that are plain tensors"
    with pytest.raises(SpecError, match=refused):
        planned(model="timm:legacy_seresnet18", weights="timm")  # only at a URL
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: replace(config, custom_load="hf"))
    with pytest.raises(SpecError, match=refused):
        planned(model="timm:vit_tiny_patch16_224", weights="timm")


@TIMM
def test_a_run_says_what_was_done_to_its_inputs(tmp_path):
    import timm

    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    record, = clbench.run(methods="lora:targets=q+v", benchmark="helpers.tiny_benchmarks:photos", seeds=1, workers=0,
                          model="timm:test_vit:size=32", weights=str(tmp_path / "vit.safetensors"), epochs=1,
                          out=tmp_path / "run")
    assert record.status == "done" and record.stream.input_shape == [3, 32, 32]
    assert any("preprocessed as the weights were trained" in note for note in record.stream.notes)
    assert any("photos of several sizes" in note for note in record.stream.notes)
    assert record.costs.trainable[0] < 50_000 and record.trial.benchmark.options == {"normalize": "model", "size": 32}
