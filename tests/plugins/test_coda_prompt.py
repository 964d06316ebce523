"""`coda-prompt`: its parts by hand, on a tiny vision transformer."""

import pytest
import torch
import torch.nn.functional as F
from clbench_coda_prompt import CodaPromptOptions
from clbench_coda_prompt.strategy import CodaPrompt, orthonormal
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
from clbench.models.builtin import ViTOptions
from clbench.models.network import Prefix
from clbench.models.vit import vit
from clbench.strategy.base import StreamInfo
from clbench.training.costs import measure

D, C, L, EACH = 8, 6, 4, 2


def transformer(seed=0, depth=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vit(ViTOptions(patch=4, width=D, depth=depth, heads=2), (1, 8, 8), C)


def coda(scenario="class", seed=0, depth=3, **options):
    chosen = {"base": "random", "components": 3 * EACH + 1, "length": L, "blocks": 2, **options}
    return CodaPrompt(transformer(seed, depth), make_stream_info(scenario), CodaPromptOptions(**chosen))


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(strategy):
    """Let components be anything, as after training."""
    for seed, part in enumerate((strategy.prompts, strategy.keys, strategy.attention)):
        for i, parameter in enumerate(part):
            parameter.data = numbers(*parameter.shape, seed=10 * seed + i)


def parts(strategy, block):
    """Prompts [M, L, D], keys and attention [M, D] of a block."""
    return [torch.cat([p[block] for p in part]) for part in (strategy.prompts, strategy.keys, strategy.attention)]


def weights_by_hand(query, keys, attention):
    """[N, M], as the paper writes them: attended queries [N, M, D], then their cosines with the keys."""
    attended = torch.einsum("nd,md->nmd", query, attention)
    return torch.einsum("nmd,md->nm", attended / attended.norm(dim=2, keepdim=True), keys / keys.norm(dim=1)[:, None])


def by_hand(strategy, x):
    """The logits for x, by the network's blocks."""
    query, (embedding, *blocks) = strategy.model.features(x).detach(), strategy.model.blocks
    tokens = embedding.body(x)
    for number, block in enumerate(blocks):
        if number >= 2:
            tokens = block.body(tokens)
            continue
        prompts, keys, attention = parts(strategy, number)
        prompt = torch.einsum("nm,mld->nld", weights_by_hand(query, keys, attention), prompts)
        tokens = block.body(tokens, Prefix(prompt[:, :L // 2], prompt[:, L // 2:]))
    return strategy.model.head(F.layer_norm(tokens[:, 0], (D,), *blocks[-1].activation[0].parameters(), eps=1e-6))


def penalty_by_hand(strategy):
    total = 0
    for block in range(2):
        for part in parts(strategy, block):
            rows = part.detach().flatten(1)
            total += sum((float(a @ b) - (i == j))**2 for i, a in enumerate(rows) for j, b in enumerate(rows)
                         ) / len(rows)**2
    return total


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_loss_and_gradients_by_hand_in_the_second_task(scenario):
    strategy = coda(scenario, ortho=0.1)
    learn(strategy, make_task(0))
    begin(strategy, make_task(1))
    spread(strategy)
    batch = as_batch(make_task(1))
    query = strategy.query(batch.x).double()
    for block in range(2):
        _, keys, attention = parts(strategy, block)
        torch.testing.assert_close(strategy.weights(strategy.query(batch.x))[:, block].double(),
                                   weights_by_hand(query, keys.double(), attention.double()), rtol=1e-5, atol=1e-6)
    wanted = F.cross_entropy(by_hand(strategy, batch.x)[:, 2:4], batch.y - 2)
    loss = strategy.loss(batch)
    torch.testing.assert_close(loss.detach(), wanted.detach() + 0.1 * penalty_by_hand(strategy))
    strategy.options = strategy.options.model_copy(update={"ortho": 0.0})
    trained = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    assert set(trained) == {"prompts.1", "keys.1", "attention.1", "model.head.weight", "model.head.bias"}
    grads = [torch.autograd.grad(of, trained.values()) for of in (strategy.loss(batch), wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert a.abs().max() > 0


@pytest.mark.parametrize(("scenario", "task"), [("task", 0), ("class", None), ("domain", None)])
def test_all_components_so_far_answer_whatever_the_task(scenario, task):
    strategy = coda(scenario)
    x = inputs()
    assert torch.equal(answer(strategy, task).logits, transformer().eval()(x))
    for index in range(3):
        begin(strategy, make_task(index))
    spread(strategy)
    with torch.no_grad():
        torch.testing.assert_close(answer(strategy, task).logits, by_hand(strategy, x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(answer(strategy, task, x[:1]).logits, by_hand(strategy, x)[:1], rtol=1e-4, atol=1e-6)


def test_components_of_earlier_tasks_stay_bit_for_bit():
    strategy = coda(ortho=0.1)
    blocks = {n: p.clone() for n, p in strategy.model.blocks.state_dict().items()}
    trained = 2 * EACH * (L * D + 2 * D) + D * C + C
    kept = []
    for index in range(3):
        assert learn(strategy, make_task(index)) == [trained]
        kept.append([p.detach().clone() for p in (strategy.prompts[-1], strategy.keys[-1], strategy.attention[-1])])
    for index, then in enumerate(kept):
        now = strategy.prompts[index], strategy.keys[index], strategy.attention[index]
        assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    assert all(torch.equal(blocks[n], p) for n, p in strategy.model.blocks.state_dict().items())
    assert measure(strategy).parameters["prompts"] == 3 * 2 * EACH * (L * D + 2 * D)


def test_new_components_are_orthonormal_to_each_other_and_to_those_that_were_trained():
    strategy = coda()
    for index in range(2):
        learn(strategy, make_task(index))
    begin(strategy, make_task(2))
    for part in (strategy.prompts, strategy.keys, strategy.attention):
        *old, new = [p.detach().flatten(2) for p in part]
        torch.testing.assert_close(new @ new.mT, torch.eye(EACH).expand(2, -1, -1), rtol=0, atol=1e-5)
        assert (new @ torch.cat(old, 1).mT).abs().max() < 1e-5
        assert (old[0] @ old[0].mT - torch.eye(EACH)).abs().max() > 1e-5 or part is not strategy.prompts  # it learned


def test_orthonormal_is_gram_schmidt_of_gaussian_draws():
    earlier = numbers(1, 3, D)
    torch.manual_seed(0)
    got = orthonormal(earlier, 7)[0]
    torch.manual_seed(0)
    basis = []
    for vector in [*earlier[0].double(), *torch.empty(1, 7, D).normal_()[0].double()][:D]:
        for known in basis:
            vector = vector - (vector @ known) * known
        basis.append(vector / vector.norm())
    torch.testing.assert_close(got[:D - 3].double(), torch.stack(basis[3:]), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(7))  # two for which no dimension is left


def test_with_task1_the_network_is_trained_first_without_prompts():
    strategy = coda(base="task1")
    task = make_task(0)
    begin(strategy, task)
    assert strategy.phases(task) == 2 and not strategy.prompts[0].requires_grad
    assert torch.equal(strategy.loss(as_batch(task)), F.cross_entropy(transformer()(task.train.x)[:, :2], task.train.y))
    strategy.before_phase(task, 1)
    assert not any(p.requires_grad for p in strategy.model.blocks.parameters()) and strategy.prompts[0].requires_grad
    assert len(learn(coda(base="task1"), make_task(0))) == 2


def test_two_seeds_stacked_equal_one_by_one():
    check_stacking(lambda seed: coda("task", seed, ortho=0.1))
    check_stacking(lambda seed: coda("task", seed, base="task1"), tasks=1)


def test_options_fit_the_network_and_the_stream_or_say_why_not():
    def blocks(depth, **options):
        strategy = CodaPrompt(transformer(0, depth), make_stream_info(), CodaPromptOptions(base="random", components=6,
                                                                                     **options))
        return strategy.count, len(strategy.notes)

    assert [blocks(depth) for depth in (1, 2, 6, 12, 14)] == [(1, 1), (1, 1), (2, 1), (5, 0), (5, 0)]
    with pytest.raises(SpecError, match="prompts in blocks = 3 blocks, and this model has 2; choose fewer"):
        blocks(2, blocks=3)
    with pytest.raises(SpecError, match="components = 2 cannot be shared out to 3 tasks; choose components=3 or more"):
        coda(components=2)
    with pytest.raises(SpecError, match="length"):
        validate(CodaPromptOptions, {"length": 3}, "coda-prompt", "clbench methods")
    with pytest.raises(SpecError, match="coda-prompt puts prompts in the attention of a vision transformer, and"):
        CodaPrompt(make_model(), make_stream_info(), CodaPromptOptions())
    assert coda(components=100).notes == [
        "coda-prompt: of 99 components only 8 can have orthogonal keys in a network of width 8"]
    assert coda().each == EACH  # 7 // 3


@pytest.mark.extra("timm")
def test_a_vision_transformer_of_timm_with_registers_answers_with_prompts():
    import timm

    from clbench.models.timm_models import transformer as of_timm

    theirs = timm.create_model("test_vit", img_size=32, num_classes=4, reg_tokens=2)
    model = of_timm(theirs, theirs.get_classifier(), 4, None)
    stream_info = StreamInfo(4, 2, "class", (3, 32, 32), torch.Generator())
    strategy = CodaPrompt(model, stream_info, CodaPromptOptions(base="random"))
    strategy.before_task(make_task(0))
    assert strategy.prompts[0].shape == (2, 50, 8, 64)
    x = torch.rand(2, 3, 32, 32)
    before = answer(strategy, None, x).logits
    strategy.prompts[0].data += 1
    assert (answer(strategy, None, x).logits - before).abs().max() > 1e-4
