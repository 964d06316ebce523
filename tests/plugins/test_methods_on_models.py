import pytest
import torch
from helpers.methods import METHODS

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Resolved
from clbench.strategy.base import StreamInfo
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.building import build_model
from clbench.training.evaluation import evaluate

REGISTRY = discover()
BY_LAYER = ("lora", "pnn", "shared-private", "packnet", "gpm")  # deal with each layer, and so with its kind
PROMPTS = ("l2p", "dualprompt", "coda-prompt", "s-iprompts")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options", "model"), [
    *((*method, model) for model in ("resnet20", "vit") for method in METHODS),
    *((*method, "resnet18") for method in METHODS if method[0] in BY_LAYER)])
def test_every_method_learns_on_every_kind_of_model(method, options, model, monkeypatch):
    monkeypatch.setattr(tiny, "RECIPE", Recipe(
        lr=0.01, batch_size=8, epochs=40 if method == "lora-mean" else 10))  # half of what each task learned is left
    if (method in PROMPTS or options == {"width": 4}) and model != "vit":
        with pytest.raises(SpecError, match="this model has none" if method in PROMPTS else "model has no such block"):
            bench(REGISTRY.strategy(method), options, "task", model=model)
        return
    if method in ("hat", "xdg"):
        with pytest.raises(SpecError, match=f"{method} (masks|gates) the units of a chain of Linear and Conv2d layers"):
            bench(REGISTRY.strategy(method), options, "task", model=model)
        return
    b = bench(REGISTRY.strategy(method), options, "task", model=model)
    for index in range(2):
        b.learn(index)
    accuracy = evaluate(b.strategy, b.stream, "task", learned=2).accuracy[:2]
    chance = 0.5
    assert max(accuracy) > chance or method == "frozen", accuracy  # a head on sixteen features of a tiny resnet18


def test_lora_on_attention_adapts_q_k_v_and_proj_of_every_block():
    b = bench(REGISTRY.strategy("lora"), {"rank": 1, "layers": "attention"}, "task", model="vit")
    assert list(b.strategy.adapted) == [f"blocks.{i}.body.attention.{name}" for i in (1, 2)
                                        for name in ("q", "k", "v", "proj")]


def test_pnn_has_no_place_for_laterals_in_a_model_of_one_block():
    registry = discover()
    model, _ = build_model(Resolved(name="torchvision:mobilenet_v2"), None, (3, 32, 32), 4, registry)
    stream_info = StreamInfo(4, 2, "task", (3, 32, 32), torch.Generator())
    from clbench_pnn.strategy import PNN

    with pytest.raises(SpecError, match=r"pnn: no lateral connection is known for blocks\.0 \(Backbone\)"):
        PNN(model, stream_info)
