"""`slca++`: loss, adapters, learning rates and the correction of old classes by hand."""

import numpy as np
import pytest
import torch
from clbench_slca import SLCAPlusOptions
from clbench_slca.plus import SLCAPlus
from helpers.methods import activate, batch, deep_model, make, task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.recipe import Recipe
from clbench.strategy.alignment import lower
from clbench.testing.tiny import bench
from clbench.training.optimizers import rates_of

REGISTRY = discover()
LAYER = "model.blocks.1.body"


def slca_plus(scenario="class", **options):
    return make(SLCAPlus, SLCAPlusOptions(**{"base": "random", "rank": 2, **options}), scenario, deep_model)


def begin(strategy, index):
    strategy.class_mask[index, [2 * index, 2 * index + 1]] = True
    strategy.before_task(task(index))


def test_the_loss_is_that_of_the_authors_code_in_numpy():
    strategy = slca_plus(cross=0.7, reverse=0.4)
    begin(strategy, 0)
    begin(strategy, 1)
    b = batch(1, 7)
    logits = 3 * strategy(b.x).detach().numpy()[:, 2:4]
    with torch.no_grad():
        for parameter in strategy.model.head.parameters():
            parameter.mul_(3)
    powers = np.exp(logits)
    p = powers / powers.sum(1, keepdims=True)
    one_hot = np.eye(2)[b.y.numpy() - 2]
    cross = -np.log((p * one_hot).sum(1)).mean()
    reverse = -(np.clip(p, 1e-7, 1) * np.log(np.clip(one_hot, 1e-4, 1))).sum(1).mean()
    np.testing.assert_allclose(strategy.loss(b).detach().numpy(), 0.7 * cross + 0.4 * reverse, rtol=1e-10)


def test_adapters_start_in_the_main_directions_and_change_nothing():
    strategy = slca_plus()
    x = batch(0).x
    before = strategy.model(x)
    begin(strategy, 0)
    assert torch.equal(strategy(x), before)
    layer = strategy.adapted["blocks.1.body"]
    weight = layer.base_layer.weight.detach().numpy()
    values, vectors = np.linalg.eigh(weight.T @ weight)
    assert values[-2] > values[-3] + 1e-3
    main = vectors[:, -2:]
    a = layer.lora_A[0].weight.detach().numpy()
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(a.T @ a, main @ main.T, atol=1e-10)
    with torch.no_grad():
        layer.lora_B[0].weight.copy_(torch.randn(7, 2))
    b = layer.lora_B[0].weight.detach().numpy()
    expected = np.tanh(x.numpy() @ (weight + 3.2 / 2 * b @ a).T + layer.base_layer.bias.detach().numpy())
    np.testing.assert_allclose(strategy.model.features(x).detach().numpy(), expected, rtol=1e-10)


def test_learning_rates_and_what_learns():
    strategy = slca_plus(slow=0.2, first_slow=0.4)
    begin(strategy, 0)
    assert strategy.learning_rates() == {"model.head.*": 1.0, "*.lora_*": 0.4, "model.*": 0.2}
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {
        f"{LAYER}.lora_A.0.weight", f"{LAYER}.lora_B.0.weight", f"{LAYER}.base_layer.bias", "model.head.weight",
        "model.head.bias"}
    strategy.after_task(task(0))
    begin(strategy, 1)
    assert strategy.learning_rates()["*.lora_*"] == 0.2 and len(strategy.adapted["blocks.1.body"].lora_A) == 1
    first = slca_plus(base="task1")
    begin(first, 0)
    assert first.learning_rates() == {"model.head.*": 1.0}
    with pytest.raises(SpecError, match="head_lr cannot be used with SLCAPlus"):  # not only in the second phase
        rates_of(first, dict(first.named_parameters()), Recipe(head_lr=0.1))
    b = batch(0)
    torch.testing.assert_close(first.loss(b), first.cross_entropy(first.model(b.x), b))


def test_a_transformer_learns_biases_norms_and_the_class_token_besides_the_adapters():
    b = bench(REGISTRY.strategy("slca++"), {"base": "random"}, "class", model="vit")
    b.learn(0)
    learning = {n for n, p in b.strategy.named_parameters() if p.requires_grad}
    frozen = {n for n, p in b.strategy.named_parameters() if not p.requires_grad}
    assert "model.blocks.0.body.token" in learning and "model.blocks.0.body.position" in frozen
    assert all("bias" in n or "norm" in n or "activation.0" in n or "lora_" in n or n.endswith("token")
               or n.startswith("model.head") for n in learning)
    assert not any("bias" in n or "norm" in n or "lora_" in n for n in frozen)


def aligned(**options):
    """Return a strategy after two tasks, with one step on each set of drawn features, and its unaligned head."""
    strategy = slca_plus(align_epochs=1, align_samples=400, align_temperature=None, **options)
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        strategy.after_task(task(index))
    return strategy


def test_features_drawn_for_older_classes_are_shorter():
    strategy = aligned(align_growth=0.5)
    strategy.stream_info.generator.manual_seed(5)
    features, rows = strategy._draw()
    strategy.stream_info.generator.manual_seed(5)
    for row, (mean, factor) in enumerate(zip(strategy.class_means, strategy.class_factors, strict=True)):
        noise = torch.randn(400, 7, generator=strategy.stream_info.generator).double()
        plain = mean + noise @ lower(factor, 7).T
        ratio = plain / features[rows == row]
        assert torch.allclose(ratio, ratio[:, :1].expand(-1, 7))
        age = 1 if row < 2 else 0
        length = ratio[:, 0]
        assert length.min() >= 1 + 0.49 * age - 1e-9 and length.max() <= 1 + 0.51 * age + 1e-9
        assert bool(length.std() > 0.004) is bool(age)


def test_realigned_weights_of_older_classes_are_larger_and_the_unaligned_head_comes_back():
    plain, growing = aligned(align_growth=0.0, align_lr=1e-12), aligned(align_growth=0.5, align_lr=1e-12)
    ratio = growing.model.head.weight / plain.model.head.weight  # such steps change nothing
    torch.testing.assert_close(ratio, torch.tensor([[1.5], [1.5], [1.0], [1.0], [1.0], [1.0]]).expand(-1, 7).double())
    torch.testing.assert_close(growing.model.head.bias, plain.model.head.bias)
    growing.before_task(task(2))
    torch.testing.assert_close(growing.model.head.weight, plain.model.head.weight)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_where_outputs_of_tasks_do_not_compete_nothing_is_aligned(scenario):
    strategy = slca_plus(scenario)
    begin(strategy, 0)
    strategy.after_task(task(0))
    assert not hasattr(strategy, "class_means") and "align = true changes nothing here" in strategy.notes[-1]
