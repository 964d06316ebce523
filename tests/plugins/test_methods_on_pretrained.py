"""Every method on models of timm with weights: a transformer and a convolutional network."""

import pytest
import torch

import clbench
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build

pytestmark = pytest.mark.extra("timm")
METHODS = ["naive", "joint", "ewc", "si", "mas", "lwf", "er", "er-ace", "der++", "a-gem", "icarl", "lora",
           "seq-lora", "o-lora", "inflora", "sd-lora", "lora-sub", "ewc-lora", "lora-mean", "pnn",
           "shared-private", "frozen", "independent",
           "acl", "packnet", "ncm", "slda", "ranpac", "simplecil", "fecam", "l2p", "slca", "dualprompt", "coda-prompt",
           "s-iprompts", "lae", "slca++", "mos",
           "bic", "wa", "lucir", "podnet", "dynamic-er", "ease", "gdumb", "mir", "gpm"]
PROMPTS = ("l2p", "dualprompt", "coda-prompt", "s-iprompts")
OPTIONS = {"er": "capacity=8", "er-ace": "capacity=8", "der++": "capacity=8", "a-gem": "capacity=8",
           "icarl": "capacity=8", "bic": "capacity=12", "wa": "capacity=8:clip=false", "lucir": "capacity=8",
           "podnet": "capacity=8", "dynamic-er": "capacity=8",
           "gdumb": "capacity=8", "mir": "capacity=8:replayed=2", "l2p": "pool=4:top=2:length=2",
           "ranpac": "projections=64:adapt=lora", "simplecil": "adapt=lora:both=true",
           **dict.fromkeys(("inflora", "sd-lora", "lora-sub", "ewc-lora"), "rank=8")}  # the narrowest layer's width


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    for name in ("test_vit", "test_efficientnet"):
        torch.manual_seed(0)
        save_file(timm.create_model(name, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_every_method_runs_on_pretrained_models_of_timm(tmp_path, weights, model):
    chosen = [":".join(filter(None, [name, OPTIONS.get(name)])) for name in METHODS]
    if model == "test_efficientnet":
        for name, place in zip(PROMPTS, ("among the tokens", "in the attention", "in the attention",
                                         "among the tokens"), strict=True):
            with pytest.raises(SpecError, match=f"{name} puts prompts {place} of a vision transformer"):
                clbench.run(methods=name, benchmark="helpers.tiny_benchmarks:pictures", model=f"timm:{model}:size=32",
                            weights=str(weights / f"{model}.safetensors"), workers=0, out=tmp_path)
        chosen = [f"{name}:adapter=lora" if name in ("ease", "mos") else name for name in chosen
                  if not name.startswith(PROMPTS)]
    records = clbench.run(methods=chosen, benchmark="helpers.tiny_benchmarks:pictures", scenario="class", seeds=1,
                          model=f"timm:{model}:size=32", weights=str(weights / f"{model}.safetensors"), epochs=1,
                          batch_size=8, workers=0, out=tmp_path)
    failed = {r.label: r.failure.message for r in records if r.status != "done"}
    assert failed == {}
    assert len(records) == len(chosen)


def test_a_pretrained_transformer_has_adapters_where_the_papers_have_unless_layers_are_chosen(weights):
    def targets(model, *methods):
        given = {"weights": str(weights / f"{model}.safetensors")}
        spec = build({"methods": list(methods), "benchmark": "helpers.tiny_benchmarks:pictures", "seeds": 1,
                      "model": f"timm:{model}:size=32", **given})
        return [one.trial.method.options.get("targets", []) for one in plan(spec, discover())]

    assert targets("test_vit", "lora", "seq-lora", "o-lora", "sd-lora", "inflora", "lora-sub") == [
        ["q", "v"]] * 4 + [["k", "v"]] * 2
    assert targets("test_vit", "ewc-lora", "lora-mean") == [["k", "v"], ["q", "v"]]
    assert targets("test_vit", "lora:layers=attention", "seq-lora:targets=q", "inflora:layers=all") == [[], ["q"], []]
    assert targets("test_vit", "lora:rank=2", "lora:rank=2:layers=blocks:1") == [["q", "v"], []]
    assert targets("test_efficientnet", "lora", "inflora") == [[], []]
    assert targets("test_vit", "lora", "lora:layers=all") == [["q", "v"], []]  # two rows, of two labels


def test_without_weights_the_layers_are_all_as_ever():
    one, = plan(build({"methods": "lora", "benchmark": "helpers.tiny_benchmarks:pictures", "seeds": 1,
                       "model": "timm:test_vit:size=32"}), discover())
    assert not one.trial.method.options.get("targets")
