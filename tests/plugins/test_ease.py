"""`ease`: prototypes and logits against NumPy, bottlenecks against transformer blocks by hand."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_ease import EASEOptions
from clbench_ease.bottleneck import AdaptedBlock, adapt, transformer_blocks
from clbench_ease.prototypes import completed
from clbench_ease.strategy import EASE
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
)
from pydantic import ValidationError

from clbench.core.errors import SpecError
from clbench.models.builtin import VisionOptions
from clbench.models.timm_models import timm as timm_model
from clbench.testing.tiny import MODELS
from clbench.training.costs import measure

D, C, W = 8, 6, 3


def transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS["vit"]((1, 8, 8), C)


def ease(scenario="class", seed=0, double=False, classes=C, **options):
    lora = options.get("adapter") == "lora"
    model = make_model(seed=seed, classes=classes) if lora else transformer(seed)
    stream_info = make_stream_info(scenario, classes)
    if double:
        model, stream_info = model.double(), dataclasses.replace(stream_info, prepare=torch.Tensor.double)
    return EASE(model, stream_info, EASEOptions(**{"base": "random", "width": W, "dropout": 0.0, **options}))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference(real, owner, donors):
    """Fill in missing prototypes one by one: real[c][j] is the mean of class c in subspace j, None if missing."""
    filled = [list(row) for row in real]
    for c, row in enumerate(real):
        for k in range(owner[c] + 1, len(row)):
            assert row[k] is None
            others = [d for d in range(len(real)) if owner[d] == k or (donors == "later" and owner[d] > k)]
            alike = np.array([unit(row[owner[c]]) @ unit(real[d][owner[c]]) for d in others])
            share = np.exp(alike) / np.exp(alike).sum()
            filled[c][k] = sum(s * real[d][k] for s, d in zip(share, others, strict=True))
    return np.array(filled)


def features_of(strategy, x, task):
    with torch.no_grad(), strategy.using(task):
        return strategy.model.features(x).numpy()


@pytest.mark.parametrize("donors", ["later", "next"])
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_prototypes_and_logits_are_those_of_the_paper(kind, donors):
    strategy = ease(double=True, adapter=kind, donors=donors, alpha=0.3, beta=0.7, scale=2.0)
    order = [(4, 1), (0,), (5, 2, 3)]
    tasks = [make_task(i, classes) for i, classes in enumerate(order)]
    tasks = [dataclasses.replace(t, train=dataclasses.replace(t.train, x=t.train.x.double())) for t in tasks]
    for task in tasks:
        learn(strategy, task)
    strategy.eval()
    x = inputs(20, dtype=torch.float64)
    real, plain, owner, labels = [], [], [], []
    for i, task in enumerate(tasks):
        for c in task.classes:
            own = task.train.x[task.train.y == c]
            real.append([features_of(strategy, own, j).mean(0) if j <= i else None for j in range(3)])
            plain.append(features_of(strategy, own, None).mean(0))
            owner.append(i)
            labels.append(c)
    wanted = reference(real, owner, donors)
    np.testing.assert_allclose(strategy.prototypes.numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert np.abs(wanted[0, 0] - wanted[0, 2]).max() > 0.01  # the subspaces differ
    logits = np.full((20, C), -np.inf)
    for k, c in enumerate(labels):
        cosines = [unit(features_of(strategy, x, j)) @ unit(wanted[k, j]) for j in range(3)]
        others = sum(cosines[j] for j in range(3) if j != owner[k])
        base = unit(features_of(strategy, x, None)) @ unit(plain[k])
        logits[:, c] = cosines[owner[k]] + 0.3 / 2 * others + 0.7 * base
    np.testing.assert_allclose(answer(strategy, x=x).logits.numpy(), logits, rtol=1e-9, atol=1e-12)
    assert torch.equal(answer(strategy, 1, x).logits, answer(strategy, x=x).logits)


def test_donors_differ_and_what_is_there_stays():
    prototypes = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    later, following = (completed(prototypes, [2, 2, 2], donors) for donors in ("later", "next"))
    assert not torch.allclose(later[:2, 1], following[:2, 1])
    assert torch.equal(later[:4, 2], following[:4, 2])  # the last task has no later ones
    for i in range(3):
        assert torch.equal(later[2 * i:2 * i + 2, :i + 1], prototypes[2 * i:2 * i + 2, :i + 1])
    # A class that is just like one donor, and unlike the other, takes after it.
    line = torch.tensor([[[1.0, 0], [9, 9]], [[1, 0], [0, 5]], [[-1, 0], [5, 0]]])
    share = torch.tensor([1.0, -1.0]).softmax(0)
    torch.testing.assert_close(completed(line, [1, 2], "next")[0, 1], torch.tensor([5 * share[1], 5 * share[0]]))


def test_a_bottleneck_is_beside_the_mlp_and_reads_what_comes_before_its_norm():
    strategy, plain = ease(scale=0.5), transformer()
    begin(strategy, make_task(0))
    x = inputs()
    before = plain.features(x).detach().numpy()
    assert np.array_equal(features_of(strategy, x, 0), before)  # a new adapter changes nothing
    for layer in strategy.adapted.values():
        for parameter in layer.parameters_of(0).values():
            parameter.data = torch.randn(parameter.shape)
    tokens = plain.blocks[0](x)
    for block, layer in zip(plain.blocks[1:], strategy.adapted.values(), strict=True):
        unit_, adapter = block.body, layer.adapters[0]
        h = tokens + unit_.attention(unit_.norm1(tokens))
        tokens = h + unit_.mlp(unit_.norm2(h)) + 0.5 * adapter.up(F.relu(adapter.down(h)))
    torch.testing.assert_close(torch.from_numpy(features_of(strategy, x, 0)), plain.blocks[-1].activation(tokens))
    assert all(layer.get_submodule(layer.tap).input is None for layer in strategy.adapted.values())
    assert np.array_equal(features_of(strategy, x, None), before)


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_only_the_newest_adapters_and_head_are_trained_and_old_ones_stay(kind):
    strategy = ease(adapter=kind)
    learn(strategy, make_task(0))
    before = {n: t.clone() for n, t in strategy.state_dict().items() if n.startswith("model.")}
    prototypes = strategy.prototypes.clone()
    layers = sum(p.numel() for layer in strategy.adapted.values() for p in layer.parameters_of(0).values())
    width = strategy.model.head.in_features
    assert learn(strategy, make_task(1)) == [layers + 2 * width + 1]
    after = strategy.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert {n for n in after if n.startswith("model.")} > set(before)
    assert torch.equal(strategy.prototypes[:2, :1], prototypes)
    if kind == "bottleneck":
        assert layers == 2 * (2 * D * W + D + W)
        kept = measure(strategy)
        assert kept.parameters["adapters"] == 2 * layers
        assert kept.bytes["prototypes"] == 4 * 4 * 2 * D + 8 * 4


def test_the_loss_is_a_cosine_head_on_the_tasks_own_classes():
    strategy = ease()
    learn(strategy, make_task(0))
    begin(strategy, make_task(1))
    assert strategy.outputs == "own"  # so that the harness lets no others compete
    batch, head = as_batch(make_task(1)), strategy.head
    head.sigma.data.fill_(3.0)
    features = torch.from_numpy(features_of(strategy, batch.x, 1))
    own = 3 * torch.stack([F.cosine_similarity(features, w[None]) for w in head.weight], 1)
    torch.testing.assert_close(strategy.loss(batch), F.cross_entropy(own, batch.y - 2))


def test_where_classes_come_again_the_largest_of_their_prototypes_counts():
    strategy = ease("domain", adapter="lora", classes=2, alpha=0.0, double=True)
    tasks = [make_task(i, (0, 1)) for i in range(2)]
    for task in tasks:
        learn(strategy, dataclasses.replace(task, train=dataclasses.replace(task.train, x=task.train.x.double())))
    x = inputs(dtype=torch.float64)
    cosines = [unit(features_of(strategy, x, t)) @ unit(strategy.prototypes.numpy()[2 * t:2 * t + 2, t]).T
               for t in range(2)]
    np.testing.assert_allclose(answer(strategy, x=x).logits.numpy(), np.maximum(*cosines), rtol=1e-9)


def test_with_task1_the_network_is_trained_first():
    strategy = ease(base="task1")
    task = make_task(0)
    begin(strategy, task)
    assert strategy.phases(task) == 2 and not strategy.head.weight.requires_grad
    assert torch.equal(strategy.loss(as_batch(task)), F.cross_entropy(transformer()(task.train.x)[:, :2], task.train.y))
    strategy.before_phase(task, 1)
    learning = {n for n, p in strategy.named_parameters() if p.requires_grad}
    assert all(n.startswith("head.") or ".adapters.0." in n for n in learning)
    assert [len(learn(ease(base="task1"), make_task(0))), strategy.phases(make_task(1))] == [2, 1]


def test_a_resumed_strategy_answers_the_same():
    strategy, again = ease(beta=1.0), ease(beta=1.0)
    for i in range(3):
        learn(strategy, make_task(i))
        begin(again, make_task(i), seed=5)
    again.load_state_dict(strategy.state_dict())
    again.sizes = list(strategy.sizes)
    assert torch.equal(answer(again).logits, answer(strategy).logits)


def test_two_seeds_stacked_equal_one_by_one():
    for options in ({}, {"adapter": "lora", "width": 2}):
        check_stacking(lambda seed, options=options: ease("task", seed, **options))
    check_stacking(lambda seed: ease("task", seed, base="task1"), tasks=1)


def test_dropout_is_on_in_training_only():
    strategy = ease(dropout=0.5)
    begin(strategy, make_task(0))
    for layer in strategy.adapted.values():
        layer.adapters[0].up.weight.data.normal_()
    strategy.train()
    assert not np.array_equal(*(features_of(strategy, inputs(), 0) for _ in range(2)))
    assert not any(m.training for n, m in strategy.model.named_modules() if ".adapters" not in n)
    strategy.eval()
    assert np.array_equal(*(features_of(strategy, inputs(), 0) for _ in range(2)))


@pytest.mark.extra("timm")
def test_transformers_of_timm_have_bottlenecks_too():
    import timm

    from clbench.models.timm_models import transformer as network

    model = timm.create_model("test_vit", num_classes=C)
    net = network(model, model.get_classifier(), C, None).eval()
    x = torch.rand(2, 3, 160, 160)
    before = net.features(x)
    strategy = EASE(net, make_stream_info(pretrained=True), EASEOptions())
    assert [type(layer) for layer in strategy.adapted.values()] == [AdaptedBlock] * len(model.blocks)
    begin(strategy, make_task(0))
    strategy.eval()
    with strategy.using(0):
        assert torch.equal(net.features(x), before)


@pytest.mark.extra("timm")
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "naflexvit_base_patch16_gap", "pvt_v2_b0",
                                  "twins_svt_small"])
def test_blocks_of_timm_with_more_arguments_have_bottlenecks_too(name):
    with torch.device("meta"):
        net, x = timm_model(f"timm:{name}", VisionOptions(), (3, 224, 224), C).eval(), torch.empty(2, 3, 224, 224)
    calls = []
    for layer in adapt(net, W, 0.1, 0.0).values():
        layer.add()
        layer.active = (0,)
        layer.adapters[0].register_forward_hook(lambda _, given, out: calls.append((given[0].shape, out.shape)))
    assert net(x).shape == (2, C)
    assert calls and all(given == out for given, out in calls)


@pytest.mark.extra("timm")
def test_a_block_with_two_arguments_gets_both():
    with torch.random.fork_rng():
        net = timm_model("timm:pvt_v2_b0", VisionOptions(), (3, 32, 32), C).eval()
    x, plain = torch.rand(2, 3, 32, 32), copy.deepcopy(net)
    layer, *_ = adapt(net, W, 0.5, 0.0, count=1).values()
    layer.add()
    torch.nn.init.normal_(layer.adapters[0].up.weight)
    block, *_ = transformer_blocks(plain).values()
    block.mlp.register_forward_hook(lambda _, __, out: out + 0.5 * layer.adapters[0].up(F.relu(
        layer.adapters[0].down(seen[-1]))))
    seen = []
    block.norm2.register_forward_pre_hook(lambda _, inputs_: seen.append(inputs_[0]))
    layer.active = (0,)
    torch.testing.assert_close(net(x), plain(x))
    layer.active = ()
    assert not torch.allclose(net(x), plain(x))


def test_refusals_say_the_way_out():
    with pytest.raises(SpecError, match="no such block; choose adapter = lora, or with --model vit-tiny"):
        EASE(make_model(), make_stream_info(), EASEOptions())
    with pytest.raises(SpecError, match="ease: base = pretrained needs a pretrained model"):
        ease(base="pretrained")
    with pytest.raises(ValidationError, match="the loss fixes outputs = own"):
        EASEOptions(outputs="seen")
    with pytest.raises(SpecError, match=r"ease: width = 500 exceeds the width \d+ of .*; choose width <= \d+$"):
        EASE(make_model(), make_stream_info(), EASEOptions(base="random", adapter="lora", width=500))
