"""Prefixes of attention, in every kind of vision transformer: against softmax attention by hand, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from clbench.core.errors import SpecError
from clbench.models.network import Prefix, TokenNetwork
from clbench.testing.tiny import MODELS
from clbench.training.precision import FoldedAttention

TIMMS = {"plain": {}, "registers": {"reg_tokens": 3}, "layer scale": {"init_values": 0.3}, "qk-norm": {"qk_norm": True},
         "scale norm": {"scale_attn_norm": True, "scale_mlp_norm": True}, "no bias": {"qkv_bias": False},
         "two registers without position": {"reg_tokens": 2, "no_embed_class": True}}
KINDS = ["vit", "torchvision", *(pytest.param(kind, marks=pytest.mark.extra("timm")) for kind in TIMMS)]


def of_timm(classes=4, **options):
    import timm

    from clbench.models.timm_models import transformer

    model = timm.create_model("test_vit", img_size=32, depth=2, **options)
    return transformer(model, model.get_classifier(), classes, None)


def network(kind, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "vit":
            model = MODELS["vit"]((3, 32, 32), 4)
        elif kind == "torchvision":
            import torchvision

            from clbench.models.torchvision_models import transformer

            theirs = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=4)
            model = transformer(theirs, theirs.heads[0], 4)
        else:
            model = of_timm(**TIMMS[kind])
        for parameter in model.parameters():  # torchvision's and timm's start with zeros that would hide much
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


def numbers(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(count=3, dtype=torch.float64):
    return numbers(count, 3, 32, 32, dtype=dtype)


def prefix(width, length, count=3, seed=5, dtype=torch.float64):
    return Prefix(*numbers(2, count, length, width, seed=seed, dtype=dtype))


def softmax_attention(q, k, v, heads):
    """Attention of single samples, head by head and query by query: q [L, D], k and v [M, D]."""
    out = torch.zeros_like(q)
    d = q.shape[1] // heads
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for i, query in enumerate(q[:, part]):
            scores = torch.exp(k[:, part] @ query / math.sqrt(d))
            out[i, part] = scores @ v[:, part] / scores.sum()
    return out


def normed(norm, x, heads):
    """A norm of each head's numbers."""
    return x if isinstance(norm, nn.Identity) else norm(x.unflatten(-1, (heads, -1))).flatten(-2)


def by_hand(body, tokens, given):
    """A block's output [N, L, D]; of timm's and torchvision's blocks only linear layers, norms and MLPs are called."""
    if hasattr(body, "attention"):
        a, norm1, norm2, mlp = body.attention, body.norm1, body.norm2, body.mlp
        project, out, heads = (lambda x: (a.q(x), a.k(x), a.v(x))), a.proj, a.heads
    elif hasattr(body.unit, "self_attention"):
        a, norm1, norm2, mlp = body.unit.self_attention, body.unit.ln_1, body.unit.ln_2, body.unit.mlp
        project, out, heads = (lambda x: F.linear(x, a.qkv.weight, a.qkv.bias).chunk(3, 1)), a.out_proj, a.heads
    else:
        unit = body.unit
        a, norm1, norm2, heads = unit.attn, unit.norm1, unit.norm2, unit.attn.num_heads

        def project(x):
            q, k, v = F.linear(x, a.qkv.weight, a.qkv.bias).chunk(3, 1)
            return normed(a.q_norm, q, heads), normed(a.k_norm, k, heads), v

        def out(x):
            return unit.ls1(a.proj(a.norm(x)))

        def mlp(x):
            return unit.ls2(unit.mlp(x))
    done = []
    for x, keys, values in zip(tokens, given.keys, given.values, strict=True):
        q, k, v = project(norm1(x))
        x = x + out(softmax_attention(q, torch.cat([keys, k]), torch.cat([values, v]), heads))
        done.append(x + mlp(norm2(x)))
    return torch.stack(done)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_has_the_prefixes_keys_and_values_beside_its_own(kind):
    model = network(kind)
    assert model.takes_prefixes() and model.depth == 2
    width = model.head.in_features
    first, last = prefix(width, 3), prefix(width, 1, seed=6)
    with torch.no_grad():
        tokens = model.embed(images())
        wanted = by_hand(model.blocks[2].body, by_hand(model.blocks[1].body, tokens, first), last)
        got = model.encode(tokens, {0: first, 1: last})
        torch.testing.assert_close(got, model.normalized(wanted), rtol=1e-9, atol=1e-9)
        only = model.encode(tokens, {1: last})
        torch.testing.assert_close(only, model.normalized(by_hand(model.blocks[2].body, model.blocks[1](tokens), last)),
                                   rtol=1e-9, atol=1e-9)
    assert (got - only).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_no_keys_changes_nothing_and_features_are_the_class_token(kind):
    model = network(kind)
    none = prefix(model.head.in_features, 0)
    with torch.no_grad():
        tokens = model.embed(images())
        torch.testing.assert_close(model.encode(tokens, {0: none, 1: none}), model.encode(tokens), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.encode(tokens, {})[:, 0], model.features(images()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["vit", "torchvision", pytest.param("qk-norm", marks=pytest.mark.extra("timm"))])
def test_prefixes_learn_the_same_in_a_stack_and_alone_and_know_their_shapes_on_meta(kind):
    team = [network(kind, seed) for seed in range(2)]
    width = team[0].head.in_features
    keys, values = numbers(2, 2, 3, 4, width)  # of each member, sample and place
    parameters, buffers = stack_module_state(team)
    encoder, x = Encoder(team[0]), images()

    def loss(keys, values, parameters, buffers):
        state = {f"model.{name}": t for name, t in {**parameters, **buffers}.items()}
        return functional_call(encoder, state, (x, Prefix(keys, values)))

    state = [{n: t.detach() for n, t in part.items()} for part in (parameters, buffers)]
    learned = keys.clone().requires_grad_(), values.clone().requires_grad_()
    with FoldedAttention() as folded:
        stacked = torch.autograd.grad(vmap(loss)(*learned, *state).sum(), learned)
    assert folded.calls == (0 if kind == "vit" else 2)
    for i in range(2):
        alone = grad(loss, argnums=(0, 1))(keys[i], values[i], *({n: t[i] for n, t in part.items()} for part in state))
        for a, b in zip(alone, stacked, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-9, atol=1e-9)
            assert a.abs().min() > 0
    meta = network(kind, dtype=torch.float32).to("meta")
    given = Prefix(*torch.empty(2, 3, 5, width, device="meta"))
    x = x.float().to("meta")
    assert meta.encode(meta.embed(x), {0: given}).shape == meta.embed(x).shape


class Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, given):
        return self.model.encode(self.model.embed(x), {1: given})[:, 0].square().sum()


@pytest.mark.extra("timm")
def test_blocks_of_timm_that_compute_otherwise_have_no_place_for_prefixes():
    from timm.models.vision_transformer import ParallelScalingBlock

    model = of_timm(block_fn=ParallelScalingBlock)
    assert isinstance(model, TokenNetwork) and not model.takes_prefixes()


def test_a_network_that_does_not_say_how_refuses_prefixes():
    class Bare(TokenNetwork):
        def normalized(self, tokens):
            return tokens

    like = network("vit")
    bare = Bare(like.blocks, like.head)
    assert not bare.takes_prefixes()
    with pytest.raises(SpecError, match="Bare has no place for the prefixes of attention"):
        bare.encode(like.embed(images()), {0: prefix(8, 1)})
