import os
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import Resolved
from clbench.models.builtin import ResNet18Options, ResNetCIFAR10Options, ViTB16Options, ViTOptions
from clbench.models.published import TORCHVISION, preset
from clbench.models.small import PadShortcut, resnet18, resnet20, resnet32
from clbench.models.vit import vit
from clbench.models.weights import load_weights
from clbench.training.building import build_model

IMAGE = (3, 32, 32)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("build", "options", "shape", "classes", "published"), [
    (resnet18, ResNet18Options(), IMAGE, 10, 11_173_962), (resnet20, ResNetCIFAR10Options(), IMAGE, 10, 269_722),
    (resnet32, ResNetCIFAR10Options(), IMAGE, 10, 464_154), (vit, ViTB16Options(), (3, 224, 224), 1000, 86_567_656),
])
def test_sizes_are_those_published(build, options, shape, classes, published):
    with torch.device("meta"):
        assert count(build(options, shape, classes)) == published


def test_resnet18_is_torchvisions_with_another_stem():
    other = torchvision.models.resnet18(num_classes=7)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    weights = {name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor
               for name, tensor in other.state_dict().items()}
    for tensor in weights.values():
        if tensor.dtype == torch.float32 and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    own = resnet18(ResNet18Options(), IMAGE, 7)
    own.load_state_dict({renamed(own, name): tensor for name, tensor in weights.items()})
    x = torch.randn(3, *IMAGE)
    for mode in (True, False):
        torch.testing.assert_close(own.train(mode)(x), other.train(mode)(x), rtol=1e-4, atol=1e-5)


def renamed(model, name):
    alias = max((a for a in model.aliases if name.startswith(a + ".")), key=len)
    return model.aliases[alias] + name.removeprefix(alias)


def test_vit_is_torchvisions():
    other = torchvision.models.VisionTransformer(image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8,
                                                 mlp_dim=16, num_classes=5).eval()
    nn.init.normal_(other.heads.head.weight)
    own = vit(ViTOptions(patch=4, width=8, depth=2, heads=2, mlp_ratio=2), (3, 8, 8), 5).eval()
    theirs, mine = other.state_dict(), own.state_dict()
    pairs = {"blocks.0.body.token": "class_token", "blocks.0.body.position": "encoder.pos_embedding"}
    layers = {"blocks.0.body.patches": "conv_proj", "blocks.2.activation.0": "encoder.ln", "head": "heads.head"}
    for i in range(2):
        mine_at, there = f"blocks.{i + 1}.body", f"encoder.layers.encoder_layer_{i}"
        layers |= {f"{mine_at}.norm1": f"{there}.ln_1", f"{mine_at}.norm2": f"{there}.ln_2",
                   f"{mine_at}.mlp.0": f"{there}.mlp.0", f"{mine_at}.mlp.2": f"{there}.mlp.3",
                   f"{mine_at}.attention.proj": f"{there}.self_attention.out_proj"}
    pairs |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in layers.items() for kind in ("weight", "bias")}
    weights = {a: theirs[b] for a, b in pairs.items()}
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = theirs[f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_{kind}"].chunk(3)
            weights |= {f"blocks.{i + 1}.body.attention.{n}.{kind}": p for n, p in zip("qkv", parts, strict=True)}
    assert weights.keys() == mine.keys()
    own.load_state_dict(weights)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(own(x), other(x))


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match="patch = 5 takes square images"):
        vit(ViTOptions(patch=5), IMAGE, 2)


def test_shortcut_a_pads_with_zeros_on_both_sides():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 4)(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, [0, 3]].any()


def published(model):
    """Return a model's weights under the names of the usual code, from a model on several GPUs."""
    own = {mine: theirs for theirs, mine in model.aliases.items()}
    out = {}
    for name, tensor in model.state_dict().items():
        mine = max((m for m in own if name.startswith(m + ".")), key=len)
        out["module." + own[mine] + name.removeprefix(mine)] = tensor
    return out


@pytest.mark.parametrize("form", ["plain", "wrapped", "safetensors"])
def test_published_weights_find_their_places(form, tmp_path):
    given, model = resnet20(ResNetCIFAR10Options(width=4), IMAGE, 10), resnet20(ResNetCIFAR10Options(width=4), IMAGE, 6)
    weights = published(given)
    assert "module.layer2.0.conv1.weight" in weights and "module.linear.bias" in weights
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.th")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "best_prec1": 91.7} if form == "wrapped" else weights, path)
    assert load_weights(model, path) == ["weights: no head of this size, it starts untrained"]
    x = torch.randn(2, *IMAGE)
    assert torch.equal(model.eval().features(x), given.eval().features(x))


def test_counters_of_batches_may_be_absent_but_weights_may_not(tmp_path):
    model = resnet20(ResNetCIFAR10Options(width=4), IMAGE, 10)
    weights = {n: t for n, t in published(model).items() if not n.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.th")
    assert load_weights(model, tmp_path / "old.th") == []
    del weights["module.bn1.running_var"]
    torch.save(weights, tmp_path / "less.th")
    with pytest.raises(DataError, match=r"do not fit the model: 1 of 95 tensors missing: blocks"):
        load_weights(model, tmp_path / "less.th")


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran",)


def test_pickles_with_code_are_refused_and_not_run(tmp_path, capfd):
    torch.save({"x": Evil()}, tmp_path / "evil.th")
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(resnet20(ResNetCIFAR10Options(width=4), IMAGE, 10), tmp_path / "evil.th")
    assert capfd.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.th")
    with pytest.raises(DataError, match="expected tensors by name, found list"):
        load_weights(resnet20(ResNetCIFAR10Options(width=4), IMAGE, 10), tmp_path / "list.th")


def test_torchvisions_models_by_name(tmp_path):
    registry = discover()
    model, _ = build_model(Resolved(name="torchvision:resnet18"), None, IMAGE, 4, registry)
    other = torchvision.models.resnet18()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    assert load_weights(model, tmp_path / "w.pth") == ["weights: no head of this size, it starts untrained"]
    other.fc = nn.Identity()
    x = torch.randn(2, *IMAGE)
    assert torch.equal(model.eval().features(x), other.eval()(x)) and model(x).shape == (2, 4)
    with pytest.raises(SpecError, match=r"no torchvision model 'resnet19'; did you mean"):
        build_model(Resolved(name="torchvision:resnet19"), None, IMAGE, 4, registry)
    with pytest.raises(SpecError, match=r"takes square images with 3 channels, .* has inputs \[1, 28, 28\]"):
        build_model(Resolved(name="torchvision:resnet18"), None, (1, 28, 28), 4, registry)


@pytest.mark.extra("timm")
def test_timms_models_by_name():
    import timm

    registry = discover()
    model, _ = build_model(Resolved(name="timm:resnet18"), None, IMAGE, 4, registry)
    other = timm.create_model("resnet18", num_classes=0).eval()
    other.load_state_dict({model.published_name(name): tensor
                           for name, tensor in model.state_dict().items() if not name.startswith("head.")})
    x = torch.randn(2, *IMAGE)
    assert torch.equal(model.eval().features(x), other(x)) and model(x).shape == (2, 4)
    with pytest.raises(SpecError, match="no timm model 'resnet19'"):
        build_model(Resolved(name="timm:resnet19"), None, IMAGE, 4, registry)


def test_without_timm_its_models_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=r"pip install 'clbench\[timm\]'"):
        build_model(Resolved(name="timm:resnet18"), None, IMAGE, 4, discover())


def test_torchvisions_weights_by_name(monkeypatch):
    def plan_of(model):
        spec = build({"methods": "naive", "benchmark": "split-cifar10", "model": model, "weights": "IMAGENET1K_V1"})
        return plan(spec, registry)[0].trial

    registry = discover()
    trial = plan_of("torchvision:resnet18")
    assert trial.weights.named and trial.key != plan_of("torchvision:resnet34").key
    given = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: given.state_dict())
    model, notes = build_model(trial.model, trial.weights, IMAGE, 10, registry)
    assert notes == ["weights: no head of this size, it starts untrained"]
    assert torch.equal(model.state_dict()["blocks.1.body.layer1.0.conv1.weight"], given.layer1[0].conv1.weight)
    assert trial.preprocessing.mean == (0.485, 0.456, 0.406) and trial.preprocessing.interpolation == "bilinear"
    assert trial.model.options == {"size": 224} and trial.benchmark.options["normalize"] == "model"
    other = trial.weights.model_copy(update={"path": "IMAGENET1K_V9"})
    assert not other.named
    with pytest.raises(DataError, match=r"weights .IMAGENET1K_V1. are none that model .resnet20. has"):
        build_model(Resolved(name="resnet20", options={"width": 2}), trial.weights, IMAGE, 10, registry)
    with pytest.raises(SpecError, match=r"no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V1'"):
        TORCHVISION.find("torchvision:resnet18", "IMAGENET1K_V3")

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(DataError, match=r"IMAGENET1K_V1 of torchvision:resnet18 could not be downloaded \(no route "
                                        r"to host"):
        TORCHVISION.load("torchvision:resnet18", "IMAGENET1K_V1")


def test_the_name_default_means_torchvisions_current_weights():
    assert TORCHVISION.find("torchvision:resnet50", "DEFAULT").name == "IMAGENET1K_V2"


@pytest.mark.parametrize("model", ["resnett18", "fcn_resnet50"])  # the latter is a model of segmentation
def test_weights_of_a_model_that_torchvision_does_not_have_are_refused(model, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1)}, file)
    for weights in ("DEFAULT", str(file)):
        spec = build({"methods": "naive", "benchmark": "split-cifar10", "model": f"torchvision:{model}",
                      "weights": weights})
        with pytest.raises(SpecError, match=f"no torchvision model '{model}'"):
            plan(spec, discover())


def test_a_file_of_weights_that_changed_since_it_was_planned_is_refused(tmp_path):
    file, registry = tmp_path / "w.safetensors", discover()
    save_file(resnet20(ResNetCIFAR10Options(width=2), IMAGE, 10).state_dict(), file)
    spec = build({"methods": "naive", "benchmark": "split-cifar10", "model": "resnet20:width=2", "weights": str(file)})
    trial = plan(spec, registry)[0].trial
    assert build_model(trial.model, trial.weights, IMAGE, 10, registry)[1] == []
    save_file(resnet20(ResNetCIFAR10Options(width=2), IMAGE, 10).state_dict(), file)
    with pytest.raises(DataError, match=rf"weights {file} are not those that were planned; run again"):
        build_model(trial.model, trial.weights, IMAGE, 10, registry)
    file.unlink()
    with pytest.raises(DataError, match=f"cannot read weights {file}: No such file"):
        build_model(trial.model, trial.weights, IMAGE, 10, registry)


def test_the_published_resnet20(request):
    where = os.environ.get("CLBENCH_RESNET20")
    if not where:
        pytest.skip("CLBENCH_RESNET20 does not name the published weights resnet20-12fca82f.th")
    model = resnet20(ResNetCIFAR10Options(), IMAGE, 10)
    assert load_weights(model, Path(where)) == []


def test_weights_of_swag_have_seen_more_than_imagenet():
    weights = torchvision.models.get_model_weights("vit_b_16")
    assert preset(weights.IMAGENET1K_V1).training_data == "ImageNet-1k"
    assert preset(weights.IMAGENET1K_SWAG_E2E_V1).training_data.startswith("Instagram images with hashtags (SWAG)")
