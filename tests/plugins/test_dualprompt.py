"""`dualprompt`: its parts by hand, on a tiny vision transformer."""

import pytest
import torch
import torch.nn.functional as F
from clbench_dualprompt import DualPromptOptions
from clbench_dualprompt.strategy import DualPrompt
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

from clbench.core.errors import SpecError
from clbench.models.builtin import ViTOptions
from clbench.models.network import Prefix
from clbench.models.vit import vit
from clbench.strategy.base import StreamInfo
from clbench.training.costs import measure

D, C = 8, 6


def transformer(seed=0, depth=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vit(ViTOptions(patch=4, width=D, depth=depth, heads=2), (1, 8, 8), C)


def dualprompt(scenario="class", seed=0, depth=3, **options):
    chosen = {"base": "random", "g_length": 2, "e_length": 3, "e_blocks": 2, **options}
    return DualPrompt(transformer(seed, depth), make_stream_info(scenario), DualPromptOptions(**chosen))


def spread(strategy, seed=0):
    """Make prompts and keys differ, which start close to each other."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in (strategy.g_prompts, *strategy.e_prompts, *strategy.keys):
        parameter.data = torch.randn(parameter.shape, generator=generator)


def by_hand(strategy, x, task):
    """The logits for x with the E-Prompt of a task, by the network's blocks."""
    n, blocks = len(x), strategy.model.blocks
    g, e = strategy.g_prompts, strategy.e_prompts[task]
    tokens = blocks[0].body(x)
    for body, (keys, values) in zip((b.body for b in blocks[1:]), (g[:, 0], e[:, 0], e[:, 1]), strict=True):
        tokens = body(tokens, Prefix(keys.expand(n, -1, -1), values.expand(n, -1, -1)))
    return strategy.model.head(F.layer_norm(tokens[:, 0], (D,), *blocks[-1].activation[0].parameters(), eps=1e-6))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_task_trains_its_own_prompt_and_key_the_prompt_of_all_and_the_head(scenario):
    strategy = dualprompt(scenario, pull=0.7)
    learn(strategy, make_task(0))
    begin(strategy, make_task(1))
    spread(strategy)
    batch = as_batch(make_task(1))
    query = strategy.model.features(batch.x).detach()
    logits = by_hand(strategy, batch.x, 1)[:, 2:4]
    pull = (1 - F.cosine_similarity(query, strategy.keys[1][None])).mean()
    wanted = F.cross_entropy(logits, batch.y - 2) + 0.7 * pull
    loss = strategy.loss(batch)
    torch.testing.assert_close(loss, wanted)
    trained = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    assert set(trained) == {"g_prompts", "e_prompts.1", "keys.1", "model.head.weight", "model.head.bias"}
    for a, b in zip(*(torch.autograd.grad(of, trained.values()) for of in (loss, wanted)), strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_without_a_task_id_each_sample_gets_the_prompt_whose_key_is_most_like_it(scenario):
    strategy = dualprompt(scenario)
    for index in range(3):
        begin(strategy, make_task(index))
    spread(strategy)
    x = inputs(12)
    strategy.eval()
    with torch.no_grad():
        for key, feature in zip(strategy.keys, strategy.model.features(x[[0, 5, 9]]), strict=True):
            key.copy_(feature)  # which samples have anything but far from each other, untrained
    logits, tasks = answer(strategy, None, x)
    with torch.no_grad():
        for i, (own, task) in enumerate(zip(logits, tasks, strict=True)):
            query = strategy.model.features(x[i:i + 1])[0]
            cosine = [float(query @ key / query.norm() / key.norm()) for key in strategy.keys]
            assert cosine[task] >= max(cosine) - 1e-6
            torch.testing.assert_close(own, by_hand(strategy, x[i:i + 1], task)[0])
    assert tasks[[0, 5, 9]].tolist() == [0, 1, 2]


def test_keys_that_differ_by_less_than_bfloat16_resolves_are_told_apart_under_autocast():
    strategy = dualprompt()
    for index in range(2):
        begin(strategy, make_task(index))
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(20, D, generator=generator), dim=1)
    strategy.keys[0].data = torch.randn(D, generator=generator)
    strategy.keys[1].data = strategy.keys[0].data + 1e-3 * torch.randn(D, generator=generator)
    keys = F.normalize(torch.stack(list(strategy.keys)).detach().double(), dim=1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        similarity = strategy.similarity(query)
    torch.testing.assert_close(similarity.double(), query.double() @ keys.T, atol=1e-6, rtol=0)
    assert torch.equal(similarity.argmax(1), (query.double() @ keys.T).argmax(1))


def test_a_given_task_has_its_own_prompt_and_one_not_learned_yet_the_nearest():
    strategy = dualprompt("task")
    x = inputs()
    assert torch.equal(answer(strategy, 0).logits, transformer().eval()(x))
    for index in range(2):
        begin(strategy, make_task(index))
    spread(strategy)
    with torch.no_grad():
        for task in range(2):
            torch.testing.assert_close(answer(strategy, task).logits, by_hand(strategy, x, task))
    assert torch.equal(answer(strategy, 2).logits, answer(strategy, None).logits)
    assert answer(strategy, 2).task is None  # given, so not inferred


def test_old_prompts_and_keys_stay_bit_for_bit_and_new_ones_start_as_the_last():
    for start, same in (("last", True), ("new", False)):
        strategy = dualprompt("class", start=start)
        blocks = {n: p.clone() for n, p in strategy.model.blocks.state_dict().items()}
        trained = 2 * 2 * D + 2 * 2 * 3 * D + D + D * C + C
        assert learn(strategy, make_task(0)) == [trained]
        prompt, key = strategy.e_prompts[0].clone(), strategy.keys[0].clone()
        begin(strategy, make_task(1))
        assert torch.equal(strategy.e_prompts[1], prompt) is same
        assert strategy.keys[1].min() >= 0 and strategy.keys[1].max() < 0.01
        steps(strategy, make_task(1))
        assert learn(strategy, make_task(2)) == [trained]
        assert torch.equal(strategy.e_prompts[0], prompt) and torch.equal(strategy.keys[0], key)
        assert not torch.equal(strategy.e_prompts[1], prompt)
        assert all(torch.equal(blocks[n], p) for n, p in strategy.model.blocks.state_dict().items())
    assert measure(strategy).parameters["prompts"] == 2 * 2 * D + 3 * (2 * 2 * 3 * D + D)


def test_the_key_of_a_task_moves_towards_its_samples():
    strategy = dualprompt(pull=5.0)
    begin(strategy, make_task(0))
    spread(strategy)
    before = strategy.similarity(strategy.query(make_task(0).train.x)).mean()
    for _ in range(20):
        strategy.keys[0].data -= torch.autograd.grad(strategy.loss(as_batch(make_task(0))), strategy.keys[0])[0]
    assert strategy.similarity(strategy.query(make_task(0).train.x)).mean() > before + 0.1


def test_with_task1_the_network_is_trained_first_without_prompts():
    strategy = dualprompt(base="task1")
    task = make_task(0)
    begin(strategy, task)
    assert strategy.phases(task) == 2 and not strategy.g_prompts.requires_grad
    assert torch.equal(strategy.loss(as_batch(task)), F.cross_entropy(transformer()(task.train.x)[:, :2], task.train.y))
    strategy.before_phase(task, 1)
    assert not any(p.requires_grad for p in strategy.model.blocks.parameters())
    assert [len(learn(dualprompt(base="task1"), make_task(0))), strategy.phases(make_task(1))] == [2, 1]


def test_two_seeds_stacked_equal_one_by_one():
    check_stacking(lambda seed: dualprompt("task", seed))
    check_stacking(lambda seed: dualprompt("task", seed, base="task1"), tasks=1)


def test_blocks_are_the_papers_and_in_proportion_in_fewer():
    def blocks(depth, **options):
        strategy = DualPrompt(transformer(0, depth), make_stream_info(), DualPromptOptions(base="random", **options))
        return strategy.shared, strategy.own, len(strategy.notes)

    assert [blocks(depth) for depth in (2, 4, 6, 12, 14)] == [(1, 1, 2), (1, 1, 2), (1, 2, 2), (2, 3, 0), (2, 3, 0)]
    assert blocks(4, g_blocks=0, e_blocks=4) == (0, 4, 0)
    with pytest.raises(SpecError, match="g_blocks = 2 and then e_blocks = 3 blocks, and this model has 4; choose"):
        blocks(4, g_blocks=2, e_blocks=3)
    with pytest.raises(SpecError, match="g_blocks = 1 and then e_blocks = 1 blocks, and this model has 1"):
        blocks(1)


def test_refusals_say_the_way_out():
    with pytest.raises(SpecError, match="dualprompt puts prompts in the attention of a vision transformer, and"):
        DualPrompt(make_model(), make_stream_info(), DualPromptOptions())
    model = transformer()
    model.takes_prefixes = lambda: False
    with pytest.raises(SpecError, match="this one's attention has no known place for them; with --model choose vit-ti"):
        DualPrompt(model, make_stream_info(), DualPromptOptions())
    with pytest.raises(SpecError, match="dualprompt: base = pretrained needs a pretrained model"):
        dualprompt(base="pretrained")


@pytest.mark.extra("timm")
def test_a_vision_transformer_of_timm_with_registers_answers_with_prompts():
    import timm

    from clbench.models.timm_models import transformer as of_timm

    theirs = timm.create_model("test_vit", img_size=32, num_classes=4, reg_tokens=2)
    model = of_timm(theirs, theirs.get_classifier(), 4, None)
    stream_info = StreamInfo(4, 2, "class", (3, 32, 32), torch.Generator())
    strategy = DualPrompt(model, stream_info, DualPromptOptions(base="random"))
    strategy.before_task(make_task(0))
    assert strategy.e_prompts[0].shape == (2, strategy.own, 20, 64) and (strategy.shared, strategy.own) == (1, 2)
    x = torch.rand(2, 3, 32, 32)
    before = answer(strategy, None, x).logits
    strategy.e_prompts[0].data += torch.randn(64)
    assert (answer(strategy, None, x).logits - before).abs().max() > 1e-4
