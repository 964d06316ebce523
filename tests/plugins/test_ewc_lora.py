import copy
import dataclasses

import pytest
import torch
from clbench_lora import EWCLoRAOptions, LoRAMeanOptions
from clbench_lora.arithmetic import combined, delta
from clbench_lora.ewc_lora import EWCLoRA
from clbench_lora.layers import FusedLoRA
from clbench_lora.lora_mean import LoRAMean
from clbench_lora.strategy import LoRA, LoRAOptions
from helpers.per_task import (
    answer,
    as_batch,
    begin,
    check_stacking,
    inputs,
    learn,
    make_model,
    make_stream_info,
    make_task,
    steps,
)
from torch import nn
from torch.nn import functional as F

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.data.samples import Samples
from clbench.models.network import Block, Network
from clbench.strategy.base import Task
from clbench.training.costs import measure

DOUBLE = torch.float64
METHODS = {"ewc-lora": (EWCLoRA, EWCLoRAOptions), "lora-mean": (LoRAMean, LoRAMeanOptions)}


def make(method="ewc-lora", kind="mlp", scenario="class", seed=0, dtype=DOUBLE, model=None, **options):
    cls, own = METHODS[method]
    stream_info = dataclasses.replace(make_stream_info(scenario), prepare=lambda x: x.to(dtype))
    model = make_model(kind, seed=seed, dtype=dtype) if model is None else model
    return cls(model, stream_info, own(**{"rank": 2, "base": "random", **options}))


def double(task):
    return Task(task.index, task.classes, Samples(task.train.x.double(), task.train.y, task.train.tasks))


def tasks(count, classes=None):
    return [double(make_task(i, classes)) for i in range(count)]


def dense(strategy, changes, kind="mlp"):
    """Return a plain network whose weights are W plus changes by layer."""
    plain = make_model(kind, dtype=DOUBLE)
    for name, layer in strategy.adapted.items():
        plain.get_submodule(name).weight.data = (layer.base_layer.weight + changes[name]).detach()
    return plain


def change(layer, i):
    a, b = (part[i].weight.detach().flatten(1) for part in (layer.lora_A, layer.lora_B))
    return (layer.scaling * b @ a).view_as(layer.base_layer.weight)


# ewc-lora


def by_autograd(strategy, task, plain, label):
    """Return the mean square of each sample's own gradient by dense weights W + s B A."""
    head, classes = strategy.heads[task.index], list(task.classes)
    weights = {name: plain.get_submodule(name).weight for name in strategy.adapted}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y in zip(task.train.x, task.train.y, strict=True):
        log_p = F.linear(plain.features(x[None]), head.weight.detach(), head.bias.detach()).log_softmax(1)[0]
        for c in range(len(classes)) if label == "exact" else [classes.index(y)]:
            share = log_p[c].exp().item() if label == "exact" else 1.0
            found = torch.autograd.grad(log_p[c], list(weights.values()), retain_graph=True)
            for name, gradient in zip(weights, found, strict=True):
                total[name] += share * gradient.square()
    return {name: value / len(task.train) for name, value in total.items()}


@pytest.mark.parametrize(("kind", "label"), [("mlp", "empirical"), ("mlp", "exact"), ("cnn", "empirical")])
def test_the_fisher_is_that_of_the_dense_weight(kind, label):
    strategy, total = make(kind=kind, alpha=3.0, gamma=0.5, fisher=label), {}
    for task in tasks(2):
        begin(strategy, task)
        strategy.before_phase(task, 0)
        steps(strategy, task)
        changes = {name: change(layer, 0) for name, layer in strategy.adapted.items()}
        assert all(value.any() for value in changes.values())
        new = by_autograd(strategy, task, dense(strategy, changes, kind), label)
        total = {name: 0.5 * total.get(name, 0) + value for name, value in new.items()}
        needed = [p.requires_grad for p in strategy.parameters()]
        strategy.after_task(task)
        assert [p.requires_grad for p in strategy.parameters()] == needed
        for name, value in total.items():
            assert value.max() > 0
            torch.testing.assert_close(strategy.importance(name), value, rtol=1e-9, atol=1e-15)


def test_for_batches_of_one_the_fisher_is_the_reference_codes():
    # Re-derived: the gradient that reaches the product B A, squared batch by batch, weighted by the batch's size.
    strategy, (task,) = make(), tasks(1)
    begin(strategy, task)
    strategy.before_phase(task, 0)
    steps(strategy, task)
    names = list(strategy.adapted)
    products = {name: change(strategy.adapted[name], 0).requires_grad_(True) for name in names}
    plain = dense(strategy, {name: 0 for name in names})

    def reference(batch):
        total = {name: torch.zeros_like(product) for name, product in products.items()}
        for x, y in zip(task.train.x.split(batch), task.train.y.split(batch), strict=True):
            weights = {f"{name}.weight": plain.get_submodule(name).weight.detach() + products[name] for name in names}
            features = torch.func.functional_call(Features(plain), {f"of.{k}": w for k, w in weights.items()}, x)
            loss = F.cross_entropy(strategy.heads[0](features)[:, :2], y)
            for name, gradient in zip(names, torch.autograd.grad(loss, list(products.values())), strict=True):
                total[name] += len(x) * gradient.square() / len(task.train)
        return total

    one, eight = reference(1), reference(8)
    strategy.after_task(task)
    for name in names:
        torch.testing.assert_close(strategy.importance(name), one[name], rtol=1e-9, atol=1e-15)
        assert eight[name].sum() < one[name].sum()


class Features(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        return self.of.features(x)


def test_penalty_value_and_gradient_by_hand():
    strategy = make(strength=7.0, alpha=6.0)
    first, second = tasks(2)
    begin(strategy, first)
    assert strategy.penalty().item() == 0
    steps(strategy, first)
    strategy.after_task(first)
    begin(strategy, second)
    assert strategy.penalty().item() == 0  # B = 0: W has not changed yet
    steps(strategy, second, lr=0.1)
    expected, gradients = 0.0, {}
    for name, layer in strategy.adapted.items():
        f, a, b = strategy.importance(name), layer.lora_A[0].weight.detach(), layer.lora_B[0].weight.detach()
        moved = 3 * b @ a
        expected += 3.5 * (f * moved**2).sum()
        gradients[name] = (3 * b.T @ (7 * f * moved), 3 * (7 * f * moved) @ a.T)
    assert expected > 0
    torch.testing.assert_close(strategy.penalty(), expected)
    plain = F.cross_entropy(strategy(second.train.x)[:, 2:4], second.train.y - 2)
    torch.testing.assert_close(strategy.loss(as_batch(second)), plain + expected)
    strategy.penalty().backward()
    for name, (of_a, of_b) in gradients.items():
        torch.testing.assert_close(strategy.adapted[name].lora_A[0].weight.grad, of_a)
        torch.testing.assert_close(strategy.adapted[name].lora_B[0].weight.grad, of_b)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_adapter_goes_into_w_without_a_change_of_answers(kind):
    strategy, start = make(kind=kind, alpha=3.0, strength=0.1), make_model(kind, dtype=DOUBLE)
    sums = {name: 0 for name in strategy.adapted}
    for task in tasks(3):
        begin(strategy, task)
        steps(strategy, task)
        sums = {name: value + change(strategy.adapted[name], 0) for name, value in sums.items()}
        drawn = [layer.lora_A[0].weight.clone() for layer in strategy.adapted.values()]
        before = answer(strategy, None, inputs(dtype=DOUBLE)).logits
        strategy.after_task(task)
        torch.testing.assert_close(answer(strategy, None, inputs(dtype=DOUBLE)).logits, before)
        assert all(len(layer.lora_A) == 1 and not layer.lora_B[0].weight.any() for layer in strategy.adapted.values())
    for name, layer in strategy.adapted.items():
        torch.testing.assert_close(layer.base_layer.weight, start.get_submodule(name).weight + sums[name])
    begin(strategy, task)
    assert all(not torch.equal(layer.lora_A[0].weight, a)
               for layer, a in zip(strategy.adapted.values(), drawn, strict=True))


def test_a_strong_penalty_keeps_old_answers_and_a_weak_one_does_not():
    moved = {}
    for strength in (0.0, 1e6):
        strategy = make(strength=strength)
        first, second = tasks(2)
        learn(strategy, first)
        old = answer(strategy, None, first.train.x).logits[:, :2]
        begin(strategy, second)
        before = answer(strategy, None, second.train.x).logits[:, 2:4]
        train = [p for p in strategy.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(train, lr=2e-2)
        for _ in range(30):
            optimizer.zero_grad()
            strategy.loss(as_batch(second)).backward()
            optimizer.step()
        strategy.after_task(second)
        moved[strength] = (answer(strategy, None, first.train.x).logits[:, :2] - old).abs().mean()
        assert (answer(strategy, None, second.train.x).logits[:, 2:4] - before).abs().mean() > 0.1
    assert moved[1e6] < 0.2 * moved[0.0]


def test_parts_of_one_layer_for_q_k_and_v_have_their_own_rows_of_the_fisher():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(1).unflatten(1, (8, 8))).chunk(3, -1)
            return ((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1)

    torch.manual_seed(0)
    body = nn.Module()
    body.attention = Attention()
    body.forward = body.attention.forward
    model = Network([Block(body, nn.Identity())], nn.Linear(8, 6)).double()
    strategy, (task,) = make(model=model, targets=["k", "v"]), tasks(1)
    assert isinstance(model.blocks[0].body.attention.qkv, FusedLoRA)
    whole = model.blocks[0].body.attention.qkv.base_layer
    start = whole.weight.detach().clone()
    begin(strategy, task)
    strategy.before_phase(task, 0)
    steps(strategy, task)
    strategy.after_task(task)
    assert list(strategy.adapted) == [f"blocks.0.body.attention.qkv.{part}" for part in "kv"]
    assert torch.equal(whole.weight[:8], start[:8])
    assert (whole.weight[8:16] != start[8:16]).any() and (whole.weight[16:] != start[16:]).any()
    total, head = torch.zeros_like(start), strategy.heads[0]
    for x, y in zip(task.train.x, task.train.y, strict=True):
        weight = whole.weight.detach().clone().requires_grad_(True)
        features = torch.func.functional_call(whole, {"weight": weight}, x.reshape(1, 8, 8)).chunk(3, -1)
        pooled = ((features[0] @ features[1].transpose(1, 2)).softmax(-1) @ features[2]).mean(1)
        loss = F.cross_entropy(F.linear(pooled, head.weight, head.bias), y[None])
        total += torch.autograd.grad(loss, weight)[0].square() / len(task.train)
    for rows, name in ((slice(8, 16), "k"), (slice(16, 24), "v")):
        torch.testing.assert_close(strategy.importance(f"blocks.0.body.attention.qkv.{name}"), total[rows],
                                   rtol=1e-9, atol=1e-15)


def test_what_is_kept_does_not_grow_but_by_heads_and_the_fisher_is_counted():
    strategy, kept = make(dtype=torch.float32, strength=0.1), []
    for i in range(3):
        assert learn(strategy, make_task(i)) == [2 * (64 + 12 + 12 + 12) + 12 * 2 + 2]
        kept.append(measure(strategy))
    assert [k.parameters["adapters"] for k in kept] == [2 * (64 + 12 + 12 + 12)] * 3
    assert [k.bytes["importance"] for k in kept] == [4 * (64 * 12 + 12 * 12)] * 3


# lora-mean


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_answers_come_from_w_plus_the_mean_of_the_products(kind, scenario):
    strategy, x = make("lora-mean", kind, scenario, alpha=3.0), inputs(dtype=DOUBLE)
    for done, task in enumerate(tasks(3), 1):
        learn(strategy, task)
        means = {name: sum(change(layer, i) for i in range(done)) / done for name, layer in strategy.adapted.items()}
        features = dense(strategy, means, kind).features(x)
        own = [F.linear(features, head.weight, head.bias).detach() for head in strategy.heads]
        joined = answer(strategy, None, x).logits
        torch.testing.assert_close(joined[:, :2 * done], torch.cat(own, 1))
        torch.testing.assert_close(joined[:, 2 * done:], strategy.model.head(features)[:, 2 * done:].detach())
        for i in range(done):
            given = answer(strategy, i, x).logits
            torch.testing.assert_close(given[:, 2 * i:2 * i + 2], own[i])
            assert given.isfinite().sum() == 2 * len(x)
    apart = {name: layer.scaling * (sum(b.weight.flatten(1) for b in layer.lora_B) / 3) @ (
        sum(a.weight.flatten(1) for a in layer.lora_A) / 3) for name, layer in strategy.adapted.items()}
    assert any((apart[name].view_as(means[name]) - means[name]).abs().max() > 1e-3 for name in means)


def test_where_tasks_share_classes_the_heads_are_averaged():
    strategy, x = make("lora-mean", scenario="domain"), inputs(dtype=DOUBLE)
    for task in tasks(2, classes=(0, 1)):
        learn(strategy, task)
    means = {name: (change(layer, 0) + change(layer, 1)) / 2 for name, layer in strategy.adapted.items()}
    features = dense(strategy, means).features(x)
    weight, bias = (sum(getattr(head, part) for head in strategy.heads) / 2 for part in ("weight", "bias"))
    torch.testing.assert_close(answer(strategy, None, x).logits[:, :2], F.linear(features, weight, bias).detach())


@pytest.mark.parametrize("base", ["random", "task1"])
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_each_task_learns_what_it_learns_in_lora_and_combine_gives_the_same(base, scenario):
    mean = make("lora-mean", scenario=scenario, base=base, alpha=3.0)
    stream_info = dataclasses.replace(make_stream_info(scenario), prepare=torch.Tensor.double)
    alone = LoRA(make_model(dtype=DOUBLE), stream_info, LoRAOptions(rank=2, base=base, alpha=3.0))
    kinds = tasks(3, (0, 1) if scenario == "domain" else None)
    for task in kinds:
        assert learn(mean, task) == learn(alone, task)
    for name, layer in mean.adapted.items():
        for key in range(3):
            for ours, theirs in zip(layer.parameters_of(key).values(), alone.adapted[name].parameters_of(key).values(),
                                    strict=True):
                assert torch.equal(ours, theirs)
    mixture = combined({t.index: alone.adapter(t, "x", "x") for t in kinds}, [1 / 3] * 3)
    changes = {name: delta(mixture, name, layer.base_layer.weight.detach()) for name, layer in mean.adapted.items()}
    plain = copy.deepcopy(alone.model)
    for name, value in changes.items():
        plain.get_submodule(name).base_layer.weight.data += value
    features, classes = plain.features(inputs(dtype=DOUBLE)), list(mixture.info.classes)
    weight, bias = (part[classes].double() for part in mixture.head)
    torch.testing.assert_close(answer(mean, None, inputs(dtype=DOUBLE)).logits[:, classes],
                               F.linear(features, weight, bias).detach(), rtol=1e-5, atol=1e-6)


def test_a_task_trains_on_w_alone_and_scales_are_as_before():
    strategy = make("lora-mean", alpha=6.0)
    first, second = tasks(2)
    learn(strategy, first)
    begin(strategy, second)
    loss = strategy.loss(as_batch(second))
    head = strategy.heads[1]
    features = make_model(dtype=DOUBLE).features(second.train.x)  # B = 0: W as it started
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(features, head.weight, head.bias), second.train.y - 2))
    answer(strategy, None, inputs(dtype=DOUBLE))
    assert all(layer.scaling == 3.0 and layer.active == (1,) for layer in strategy.adapted.values())


# both


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", METHODS)
def test_two_seeds_stacked_equal_one_by_one(method, kind):
    options = {"strength": 10.0} if method == "ewc-lora" else {}
    check_stacking(lambda seed: make(method, kind, seed=seed, dtype=torch.float32, **options))


@pytest.mark.parametrize(("method", "raw", "message"), [
    ("ewc-lora", {"strength": -1}, "ewc-lora.strength"), ("ewc-lora", {"gamma": 1.1}, "ewc-lora.gamma"),
    ("ewc-lora", {"dora": True}, "no option 'dora'"), ("lora-mean", {"outputs": "seen"}, "fixes outputs = own"),
    ("lora-mean", {"infer": "entropy"}, "no option 'infer'")])
def test_bad_options_are_refused(method, raw, message):
    with pytest.raises(SpecError, match=message):
        validate(METHODS[method][1], raw, method, "clbench methods")
