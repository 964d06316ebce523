"""`l2p`: its parts by hand, on a tiny vision transformer."""

import pytest
import torch
import torch.nn.functional as F
from clbench_l2p import L2POptions
from clbench_l2p.strategy import L2P
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

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved
from clbench.models.network import TokenNetwork
from clbench.strategy.base import StreamInfo
from clbench.testing.tiny import MODELS
from clbench.training.building import build_model
from clbench.training.costs import measure

D, C = 8, 6


def transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS["vit"]((1, 8, 8), C)


def l2p(scenario="class", seed=0, spread=True, **options):
    strategy = L2P(transformer(seed), make_stream_info(scenario), L2POptions(**{"base": "random", **options}))
    if spread:  # keys that start close to each other choose the same for all samples
        generator = torch.Generator().manual_seed(seed)
        for parameter in (strategy.prompts, strategy.keys):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return strategy


def by_hand(strategy, x, prompts):
    """The logits of a network with prompts [N, P, D] in front of its tokens, block by block."""
    embedding, *blocks = strategy.model.blocks
    tokens = torch.cat([prompts, embedding.body(x)], 1)
    for block in blocks:
        tokens = block.body(tokens)
    outputs = F.layer_norm(tokens, (D,), *blocks[-1].activation[0].parameters(), eps=1e-6)
    return strategy.model.head(outputs[:, :prompts.shape[1]].mean(1))


def test_a_pool_of_one_prompt_is_prompt_tuning():
    strategy = l2p(pool=1, top=1, length=3)
    begin(strategy, make_task(0))
    batch = as_batch(make_task(0))
    prompt = strategy.prompts.detach()[0].requires_grad_()
    own = by_hand(strategy, batch.x, prompt.expand(len(batch.x), -1, -1))
    loss = F.cross_entropy(own[:, :2], batch.y)
    wanted, = torch.autograd.grad(loss, prompt)
    got, = torch.autograd.grad(strategy.loss(batch), strategy.prompts)
    torch.testing.assert_close(got[0], wanted)
    torch.testing.assert_close(strategy(batch.x), own)


def test_each_sample_is_given_the_prompts_with_the_most_similar_keys():
    strategy = l2p(pool=6, top=2, length=3)
    begin(strategy, make_task(0))
    strategy.eval()
    chosen = []
    for x in torch.cat([inputs(6), 3 - 6 * inputs(6)]):  # of two kinds, which have different features
        query = strategy.model.features(x[None])[0]
        similarity = torch.stack([query @ key / query.norm() / key.norm() for key in strategy.keys])
        best = similarity.argsort(descending=True)[:2].tolist()
        chosen.append(best)
        prompts = torch.cat([strategy.prompts[i] for i in best])[None]
        torch.testing.assert_close(strategy(x[None]), by_hand(strategy, x[None], prompts))
    assert len(set(map(tuple, chosen))) > 1
    assert torch.allclose(strategy(inputs(12))[:1], strategy(inputs(12)[:1]), atol=1e-6)  # whatever the batch


def test_keys_are_drawn_to_the_samples_that_chose_them_and_by_nothing_else():
    strategy = l2p(pool=5, top=2, pull=0.7)
    begin(strategy, make_task(0))
    batch = as_batch(make_task(0))
    expected, value = torch.zeros(5, D), 0.0
    for query in strategy.model.features(batch.x).detach():
        similarity = F.cosine_similarity(query[None], strategy.keys.detach())
        for i in similarity.topk(2).indices.tolist():
            key, length = strategy.keys.detach()[i], strategy.keys.detach()[i].norm()
            expected[i] -= 0.7 / len(batch.y) * (query / query.norm() / length - similarity[i] * key / length**2)
            value += 0.7 / len(batch.y) * (1 - similarity[i])
    loss = strategy.loss(batch)
    torch.testing.assert_close(torch.autograd.grad(loss, strategy.keys, retain_graph=True)[0], expected)
    torch.testing.assert_close(loss, F.cross_entropy(strategy(batch.x)[:, :2], batch.y) + value)


def test_what_is_trained_by_formula_and_the_blocks_stay():
    strategy = l2p(pool=7, length=4, top=3)
    before = {n: p.clone() for n, p in strategy.model.blocks.state_dict().items()}
    trained = 7 * 4 * D + 7 * D + D * C + C
    assert [learn(strategy, make_task(i)) for i in range(2)] == [[trained]] * 2
    assert all(torch.equal(before[n], p) for n, p in strategy.model.blocks.state_dict().items())
    kept = measure(strategy)
    assert kept.parameters["prompts"] == 7 * 4 * D + 7 * D
    assert kept.bytes == {name: 4 * count for name, count in kept.parameters.items()}


def test_with_task1_the_network_is_trained_first_without_prompts():
    strategy = l2p(base="task1")
    task = make_task(0)
    begin(strategy, task)
    assert strategy.phases(task) == 2 and not strategy.prompts.requires_grad
    assert torch.equal(strategy.loss(as_batch(task)), F.cross_entropy(transformer()(task.train.x)[:, :2], task.train.y))
    strategy.before_phase(task, 1)
    assert {n.partition(".")[0] for n, p in strategy.named_parameters() if p.requires_grad} == {
        "prompts", "keys", "model"}
    assert not any(p.requires_grad for p in strategy.model.blocks.parameters())
    assert [len(learn(l2p(base="task1"), make_task(0))), strategy.phases(make_task(1))] == [2, 1]


def test_prompts_and_keys_start_as_in_the_authors_code():
    strategy = l2p(spread=False)
    for parameter in (strategy.prompts, strategy.keys):
        assert parameter.min() >= 0 and 0.009 < parameter.max() < 0.01


def test_two_seeds_stacked_equal_one_by_one():
    check_stacking(lambda seed: l2p("task", seed, pool=4, top=2, length=2))
    check_stacking(lambda seed: l2p("task", seed, pool=4, top=2, length=2, base="task1"), tasks=1)


def test_refusals_say_the_way_out():
    with pytest.raises(SpecError, match="this model has none; with --model choose vit-tiny, vit-b16 or a plain"):
        L2P(make_model(), make_stream_info(), L2POptions())
    with pytest.raises(SpecError, match="top = 5 prompts cannot be chosen from a pool of 3"):
        validate(L2POptions, {"pool": 3}, "l2p", "clbench methods")
    with pytest.raises(SpecError, match="l2p: base = pretrained needs a pretrained model"):
        l2p(base="pretrained")


def test_a_networks_two_parts_make_its_features():
    model = transformer().eval()
    torch.testing.assert_close(model.encode(model.embed(inputs()))[:, 0], model.features(inputs()))


@pytest.mark.extra("timm")
def test_vision_transformers_of_timm_take_prompts():
    shape = (3, 224, 224)
    model, _ = build_model(Resolved(name="timm:vit_tiny_patch16_224"), None, shape, 4, discover())
    other, _ = build_model(Resolved(name="timm:resnet18"), None, (3, 32, 32), 4, discover())
    assert isinstance(model, TokenNetwork) and not isinstance(other, TokenNetwork)
    x = torch.rand(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode(model.embed(x))[:, 0], model.features(x))
        strategy = L2P(model, StreamInfo(4, 2, "class", shape, torch.Generator()), L2POptions(base="random"))
        strategy.before_task(make_task(0))
        assert strategy.prompts.shape == (10, 5, 192) and answer(strategy, None, x).logits.shape == (2, 4)
