"""`lae`: averages and ensembles of adapters by hand, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_ease import LAEOptions
from clbench_ease.bottleneck import AdaptedBlock
from clbench_ease.lae import LAE
from helpers.methods import CLASSES, activate, batch, deep_model, make, task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.strategy.base import StreamInfo
from clbench.strategy.granted import PhaseSpec
from clbench.testing.tiny import MODELS, bench


def lae(scenario="class", **options):
    return make(LAE, LAEOptions(**{"base": "random", "width": 2, **options}), scenario, deep_model)


def layer_of(strategy):
    return strategy.adapted["blocks.1.body"]


def products(strategy):
    """Return B A of each adapter of the only layer, in numpy."""
    layer = layer_of(strategy)
    return [(b.weight @ a.weight).detach().numpy() for a, b in zip(layer.lora_A, layer.lora_B, strict=True)]


def train(strategy, index, steps=4, lr=0.3):
    """Train on a task by hand as the harness does, and return the online adapter after each step."""
    activate(strategy, index)
    strategy.before_task(task(index))
    shares = strategy.phases(task(index))
    counts = [steps] if isinstance(shares, int) else [round(steps * share) for share in shares]
    online = []
    for number, count in enumerate(counts):
        strategy.before_phase(task(index), PhaseSpec(number, count, lr))
        for _ in range(count):
            b = strategy.prepare_batch(batch(index))
            learning = [p for p in strategy.parameters() if p.requires_grad]
            for p, gradient in zip(learning, torch.autograd.grad(strategy.loss(b), learning), strict=True):
                p.data -= lr * gradient
            online.append({n: p.detach().clone() for n, p in layer_of(strategy).parameters_of(0).items()})
    strategy.after_task(task(index))
    return online


def test_the_offline_adapter_is_the_average_of_the_online_one_after_each_step():
    strategy = lae(decay=0.8, freeze=0.5)
    first = train(strategy, 0)[-1]
    assert len(layer_of(strategy).lora_A) == 1
    offline = {name: value.numpy() for name, value in first.items()}
    for index in (1, 2):
        online = train(strategy, index)
        assert torch.equal(online[0]["lora_B.weight"], online[1]["lora_B.weight"])  # frozen in the first half
        assert not torch.equal(online[1]["lora_B.weight"], online[3]["lora_B.weight"])
        for after in online:
            offline = {name: 0.8 * value + 0.2 * after[name].numpy() for name, value in offline.items()}
        assert len(layer_of(strategy).lora_A) == 2
        for name, value in layer_of(strategy).parameters_of(1).items():
            np.testing.assert_allclose(value.detach().numpy(), offline[name], rtol=1e-12)


def test_only_the_head_learns_first_and_then_the_online_adapter_too():
    strategy = lae()
    train(strategy, 0)
    activate(strategy, 1)
    strategy.before_task(task(1))
    head = {"model.head.weight", "model.head.bias"}
    learning = [{n for n, p in strategy.named_parameters() if p.requires_grad}]
    strategy.before_phase(task(1), PhaseSpec(1, 2, 0.1))
    learning.append({n for n, p in strategy.named_parameters() if p.requires_grad})
    name = "model.blocks.1.body.lora_{}.0.weight"
    assert learning == [head, head | {name.format("A"), name.format("B")}]
    assert strategy.phases(task(1)) == (0.6, 0.4) and strategy.phases(task(0)) == 1
    assert lae(freeze=0.0).phases(task(1)) == 1 and lae(base="task1").phases(task(0)) == 2


@pytest.mark.parametrize(("scenario", "given", "outputs"), [
    ("class", None, [0, 1, 2, 3]), ("task", 1, [2, 3]), ("task", 2, list(range(CLASSES))),
    ("domain", None, [0, 1, 2, 3])])
def test_predictions_are_the_larger_of_both_probabilities(scenario, given, outputs):
    strategy = lae(scenario, decay=0.3, scale=0.7)
    for index in range(2):
        train(strategy, index)
    x = batch(0, 9).x
    body, head = strategy.model.blocks[1].body.base_layer, strategy.model.head
    larger = []
    with torch.no_grad():
        for product in products(strategy):
            features = np.tanh(x.numpy() @ (body.weight.numpy() + 0.7 * product).T + body.bias.numpy())
            logits = features @ head.weight.numpy().T + head.bias.numpy()
            powers = np.exp(logits)
            larger.append(powers / powers[:, outputs].sum(1, keepdims=True))
        assert np.abs(larger[0] - larger[1]).max() > 1e-3
        logits = strategy.eval()(x, given)
    np.testing.assert_allclose(logits.exp().numpy(), np.maximum(*larger), rtol=1e-10)


def test_before_the_second_task_the_online_adapter_predicts_alone():
    strategy = lae()
    x = batch(0).x
    torch.testing.assert_close(strategy(x), strategy.model(x))
    train(strategy, 0)
    with strategy.using(0):
        expected = strategy.model(x)
    assert torch.equal(strategy(x), expected) and not torch.equal(expected, strategy.model(x))


def test_the_loss_is_over_the_classes_of_the_task_with_the_online_adapter():
    strategy = lae()
    train(strategy, 0)
    strategy.class_mask[1, 2:4] = True
    strategy.before_task(task(1))
    b = batch(1)
    with strategy.using(0):
        logits = strategy.model(b.x)[:, 2:4]
    torch.testing.assert_close(strategy.loss(b), F.cross_entropy(logits, b.y - 2))


@pytest.mark.parametrize(("adapter", "names"), [
    ("lora", ["blocks.1.body.attention.k", "blocks.1.body.attention.v"]), ("bottleneck", ["blocks.1.body"])])
def test_adapters_are_in_the_first_blocks_of_a_transformer(adapter, names):
    stream_info = StreamInfo(CLASSES, 3, "class", (1, 8, 8), torch.Generator())
    strategy = LAE(MODELS["vit"]((1, 8, 8), CLASSES), stream_info, LAEOptions(base="random", adapter=adapter, blocks=1))
    assert list(strategy.adapted) == names
    assert all(isinstance(layer, AdaptedBlock) for layer in strategy.adapted.values()) is (adapter == "bottleneck")


def test_bottlenecks_learn_and_are_averaged():
    b = bench(discover().strategy("lae"), {"adapter": "bottleneck", "decay": 0.5}, "class", model="vit")
    for index in range(2):
        b.learn(index)
    for block in b.strategy.adapted.values():
        online, offline = (block.adapters[number].up.weight for number in (0, 1))
        assert online.any() and offline.any() and not torch.equal(online, offline)


def test_refusals_say_the_way_out():
    with pytest.raises(SpecError, match="lae: adapter = bottleneck is put parallel to the MLP of a transformer block"):
        lae(adapter="bottleneck")
    with pytest.raises(SpecError, match="lae: base = pretrained needs a pretrained model"):
        lae(base="pretrained")
    with pytest.raises(SpecError, match=r"lae: width = 500 exceeds the width \d+ of .*; choose width <= \d+$"):
        lae(width=500)


def test_a_number_of_blocks_without_effect_is_noted():
    assert lae().notes == lae(blocks=5).notes == []
    assert lae(blocks=1).notes == ["blocks = 1 has no effect: on this network, the adapters are not limited to the "
                                   "first blocks"]
