"""Stacks of seeds on one base: it is in memory once, and nobody can change another's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from clbench.core.artifacts import save_tensors
from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.models.network import Block, Network
from clbench.strategy import Strategy
from clbench.testing import bench
from clbench.testing.tiny import MODELS
from clbench.training.loop import TrainingLoop
from clbench.training.members import require_counted_writes, share_equal
from clbench.training.precision import FoldedAttention

SEEDS = [0, 1, 2, 3]
RECIPE = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)


class Attention(nn.Module):
    """Self-attention by the function that has no batching rule, its projections fused as in timm."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


def attentive(input_shape, classes):
    _, height, width = input_shape
    return Network([Block(nn.Flatten(2), nn.Linear(height * width, 8)), Block(Attention(8, 2), nn.Identity()),
                    Block(nn.Flatten(), nn.Identity())], nn.Linear(8, classes))


class Base(Strategy):
    """Trains the head and a scale on a frozen body."""

    def before_task(self, task):
        self.model.requires_grad_(False)
        self.model.head.requires_grad_(True)


def members(monkeypatch, model, info=None, options=None, seeds=SEEDS):
    """Return benches of these seeds on the base of the first."""
    monkeypatch.setitem(MODELS, "attentive", attentive)
    found = [bench(info or StrategyInfo("base", Base, ""), options or {}, "task", seed, model) for seed in seeds]
    first = bench(StrategyInfo("base", Base, ""), {}, "task", 0, model)
    for b in found:
        b.strategy.model.blocks.load_state_dict(first.strategy.model.blocks.state_dict(), strict=False)
    return found


def learn(benches, tasks=2, recipe=RECIPE):
    trainer = TrainingLoop([b.replica for b in benches], recipe)
    for index in range(tasks):
        trainer.train_task(index)
    return benches


def memory(strategies):
    """Return the bytes of storages, each counted once however many tensors lie in it."""
    tensors = [p.data for s in strategies for p in s.parameters()]
    return sum({torch._C._data_address(t): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("model", ["mlp", "cnn", "attentive"])
def test_a_stack_on_one_base_equals_seed_by_seed(monkeypatch, model):
    stacked = learn(members(monkeypatch, model))
    for b, seed in zip(stacked, SEEDS, strict=True):
        alone, = learn(members(monkeypatch, model, seeds=[seed]))
        for name, tensor in alone.strategy.state_dict().items():
            torch.testing.assert_close(b.strategy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eight_seeds_take_the_memory_of_one_base_and_eight_heads(monkeypatch, precision):
    benches = members(monkeypatch, "mlp", seeds=range(8))
    base = sum(p.nbytes for p in benches[0].strategy.model.blocks.parameters())
    head = sum(p.nbytes for p in benches[0].strategy.model.head.parameters())
    assert memory([b.strategy for b in benches]) == 8 * (base + head)
    learn(benches, recipe=RECIPE.model_copy(update={"precision": precision}))
    assert memory([b.strategy for b in benches]) == base + 8 * head
    assert len({b.strategy.model.head.weight.data_ptr() for b in benches}) == 8


def test_who_writes_to_the_base_changes_no_other(monkeypatch):
    benches = learn(members(monkeypatch, "mlp"))
    weights = [next(b.strategy.model.blocks.parameters()) for b in benches]
    before = weights[0].clone()
    weights[1].data.add_(1)
    with torch.no_grad():
        weights[2].mul_(2)
    for weight, wanted in zip(weights, (before, before + 1, before * 2, before), strict=True):
        assert torch.equal(weight, wanted)


def test_what_is_saved_goes_on_being_shared(monkeypatch, tmp_path):
    benches = learn(members(monkeypatch, "mlp"))
    before = memory([b.strategy for b in benches])
    for b in benches:
        save_tensors(tmp_path / f"{b.seed}.safetensors", b.strategy.state_dict())
    assert memory([b.strategy for b in benches]) == before


def test_what_differs_or_is_trained_is_not_taken_for_shared(monkeypatch):
    benches = members(monkeypatch, "mlp")
    strategies = [b.strategy for b in benches]
    for strategy in strategies:
        strategy.before_task(None)
    names = {n for n, p in strategies[0].named_parameters() if not p.requires_grad}
    assert share_equal(strategies, frozen=True) == names and len(names) == 4
    with torch.no_grad():
        next(strategies[3].model.blocks.parameters())[0, 0] += 1
    assert len(share_equal(strategies, frozen=True)) == 3
    assert share_equal(strategies[:1]) == set()


def test_lora_on_one_base(monkeypatch):
    info = discover().strategy("lora")
    options = {"rank": 2, "base": "random"}
    stacked = learn(members(monkeypatch, "attentive", info, options))
    alone, = learn(members(monkeypatch, "attentive", info, options, seeds=[2]))
    for name, tensor in alone.strategy.state_dict().items():
        torch.testing.assert_close(stacked[2].strategy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


MASKS = {"none": None, "of a pair": (5, 5), "of a sample": (2, 1, 1, 5), "of a member": (3, 2, 1, 1, 5)}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_stack_is_that_of_its_members(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 2, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    mask = MASKS[kind] and (torch.rand(MASKS[kind], generator=generator) > 0.3) | (torch.arange(5) == 0)

    def use(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).float().square().sum()

    with FoldedAttention() as folding:
        stacked = vmap(use, in_dims=(0, 0, 0, 0 if kind == "of a member" else None))(q, k, v, mask)
    assert folding.calls == 1
    alone = torch.stack([use(q[i], k[i], v[i], mask[i] if kind == "of a member" else mask) for i in range(3)])
    torch.testing.assert_close(stacked, alone)
    for ours, theirs in zip(torch.autograd.grad(stacked.sum(), (q, k, v)),
                            torch.autograd.grad(alone.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_without_batches_stays_within_its_member():
    q, k, v = (torch.randn(3, count, 8) for count in (6, 4, 4))
    with FoldedAttention():
        stacked = vmap(F.scaled_dot_product_attention)(q, k, v)
    alone = [F.scaled_dot_product_attention(*parts) for parts in zip(q, k, v, strict=True)]
    torch.testing.assert_close(stacked, torch.stack(alone))


def test_a_write_through_data_that_ends_the_sharing_is_refused():
    members = [nn.Linear(4, 3).requires_grad_(False) for _ in range(2)]
    members[1].load_state_dict(members[0].state_dict())
    assert share_equal(members, frozen=True) == {"weight", "bias"}
    shared = {"weight": [member.weight for member in members]}
    require_counted_writes(shared)
    members[1].weight.data.mul_(2)
    with pytest.raises(PluginError, match=r"parameter weight was written through `.data`"):
        require_counted_writes(shared)


def test_heads_of_a_stack_may_share_keys_and_values():
    pytest.importorskip("torch", "2.5", reason="heads cannot share keys and values before torch 2.5")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, heads, 5, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))

    def use(q, k, v, grouped=True):
        if not grouped:
            k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **{"enable_gqa": True} if grouped else {})

    with FoldedAttention() as folding:
        stacked = vmap(use)(q, k, v)
    assert folding.calls == 1
    alone = torch.stack([use(q[i], k[i], v[i], grouped=False) for i in range(3)])
    torch.testing.assert_close(stacked, alone)
    for ours, theirs in zip(torch.autograd.grad(stacked.square().sum(), (q, k, v)),
                            torch.autograd.grad(alone.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs)
