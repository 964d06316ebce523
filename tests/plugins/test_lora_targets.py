"""Adapters on q, k, v, proj and mlp, and on parts of one layer for q, k and v."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from clbench_lora import AdapterOptions, InfLoRAOptions, LoRAOptions, OLoRAOptions, SeqLoRAOptions
from clbench_lora.arithmetic import combined, delta, merged
from clbench_lora.inflora import InfLoRA
from clbench_lora.layers import LoRALayer
from clbench_lora.olora import OLoRA
from clbench_lora.peft_format import base_tensors, fingerprint
from clbench_lora.reload import put
from clbench_lora.selection import adapt, parts_of, remarks, select
from clbench_lora.seq import SeqLoRA
from clbench_lora.strategy import LoRA
from helpers.per_task import answer, begin, check_stacking, inputs, learn, make_stream_info, make_task, steps
from helpers.text_models import save_model
from torch import nn

from clbench.core.errors import SpecError, StoreError
from clbench.core.options import label, validate
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.models.builtin import TextModelOptions, VisionOptions, ViTOptions
from clbench.models.hf_models import text_model
from clbench.models.network import Block, Network
from clbench.models.timm_models import timm
from clbench.models.vit import vit
from clbench.persistence.strategy_state import capture, load
from clbench.strategy.base import StreamInfo
from clbench.training.costs import measure

WIDTH = 12
OPTIONS = [{}, {"alpha": 5.0}, {"scaling": "rslora", "alpha": 5.0}, {"bias": True, "alpha": 5.0}, {"dora": True},
           {"init": "pissa"}, {"init": "gaussian"}, {"init": "pissa", "bias": True, "scaling": "rslora"}]
METHODS = {"lora": (LoRA, LoRAOptions), "seq-lora": (SeqLoRA, SeqLoRAOptions), "o-lora": (OLoRA, OLoRAOptions),
           "inflora": (InfLoRA, InfLoRAOptions)}


class Attention(nn.Module):
    """Timm's, by its names: q, k and v as one layer or as three."""

    def __init__(self, width, fused=True):
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        return self.proj((q @ k.transpose(1, 2) / q.shape[-1]**0.5).softmax(-1) @ v)


class Transformer(nn.Module):
    def __init__(self, width, fused=True):
        super().__init__()
        self.attn = Attention(width, fused)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](x)))


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(16, WIDTH)

    def forward(self, x):
        return self.proj(x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(1, 3).flatten(2))


def transformer(fused=True, seed=0, dtype=torch.float32):
    """Return a network of two transformer blocks; with the same numbers, fused or not."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Network([Block(Patches(), nn.Identity()), *(Block(Transformer(WIDTH), nn.Identity()) for _ in range(2)),
                         Block(nn.Flatten(), nn.Identity())], nn.Linear(4 * WIDTH, 6)).to(dtype)
    if fused:
        return model
    for block in model.blocks[1:3]:
        apart, whole = Attention(WIDTH, fused=False).to(dtype), block.body.attn
        for layer, weight, bias in zip((apart.q, apart.k, apart.v), whole.qkv.weight.chunk(3), whole.qkv.bias.chunk(3),
                                       strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        apart.proj = whole.proj
        block.body.attn = apart
    return model


def made(method="lora", scenario="task", fused=True, seed=0, dtype=torch.float32, targets=("q", "v"), **options):
    kind, known = METHODS[method]
    return kind(transformer(fused, seed, dtype), make_stream_info(scenario),
                known(base="random", targets=list(targets), rank=3, **options))


def fill(strategy):
    """Give adapters and heads numbers far from where they started, by name, so that both forms get the same."""
    for name, layer in strategy.adapted.items():
        generator = torch.Generator().manual_seed(sum(map(ord, name.replace("qkv.", ""))))
        for adapter in range(len(layer.lora_A)):
            for p in layer.parameters_of(adapter).values():
                p.data += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def pairs(one, other):
    """Yield the parameters of adapted layers, and heads, of both."""
    short = {name.replace("qkv.", ""): layer for name, layer in one.adapted.items()}
    assert list(short) == [*other.adapted]
    for name, layer in short.items():
        for adapter in range(len(layer.lora_A)):
            yield from zip(layer.parameters_of(adapter).values(), other.adapted[name].parameters_of(adapter).values(),
                           strict=True)


def dense(layer, x, adapter=0):
    """The output of rows of a layer by hand."""
    w, bias = layer.base_layer.weight, layer.base_layer.bias
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    product = layer.scaling * (b @ a)
    if layer.init == "pissa":
        product = product - layer.scaling * layer.pissa_B @ layer.pissa_A
    changed = w + product
    if layer.lora_magnitude_vector is not None:
        changed = layer.lora_magnitude_vector[adapter][:, None] * changed / changed.norm(dim=1, keepdim=True)
    out = x @ changed.T + bias
    return out + layer.scaling * layer.lora_B[adapter].bias if layer.lora_bias else out


@pytest.mark.parametrize("targets", [("q",), ("q", "v"), ("q", "k", "v")], ids="+".join)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_fused_layer_is_the_dense_computation_by_hand(options, targets):
    strategy = made(dtype=torch.float64, targets=targets, **options)
    begin(strategy, make_task(0))
    fused = strategy.model.get_submodule("blocks.1.body.attn.qkv")
    x = torch.rand(2, 5, WIDTH, dtype=torch.float64)
    with strategy.using(0):
        torch.testing.assert_close(fused(x), fused.base_layer(x), rtol=1e-12, atol=1e-12)
    fill(strategy)
    expected = [*fused.base_layer(x).chunk(3, -1)]
    for i, name in enumerate("qkv"):
        if name in targets:
            layer = strategy.adapted[f"blocks.1.body.attn.qkv.{name}"]
            assert torch.equal(layer.base_layer.weight, fused.base_layer.weight[i * WIDTH:(i + 1) * WIDTH])
            assert (dense(layer, x) - expected[i]).abs().max() > 0.01
            expected[i] = dense(layer, x)
    with strategy.using(0):
        torch.testing.assert_close(fused(x), torch.cat(expected, -1), rtol=1e-12, atol=1e-12)
    assert torch.equal(fused(x), fused.base_layer(x))


@pytest.mark.parametrize(("method", "options"), [(method, {"alpha": 1.0}) for method in METHODS] + [
    ("lora", {"dora": True}), ("lora", {"init": "pissa"})], ids=str)
def test_the_state_of_parts_of_a_layer_is_saved_and_loaded(method, options):
    strategies = [made(method, "class", seed=seed, **options) for seed in range(2)]
    for index in range(2):
        learn(strategies[0], make_task(index))
        begin(strategies[1], make_task(index))
    state, tensors = capture(strategies[0])
    load(state, tensors, strategies[1])
    logits = [answer(strategy).logits for strategy in strategies]
    assert torch.equal(*logits) and logits[0].isfinite().all() == (method != "lora")
    assert len(tensors) == len({id(value) for value in strategies[0].state_dict(keep_vars=True).values()})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "proj", "mlp")], ids="+".join)
def test_outputs_and_gradients_are_those_of_three_layers(options, targets):
    forms = [made(fused=fused, dtype=torch.float64, targets=targets, **options) for fused in (True, False)]
    task = make_task(0)
    object.__setattr__(task.train, "x", task.train.x.double())
    for strategy in forms:
        begin(strategy, task)
        strategy.before_phase(task, 0)
        fill(strategy)
    for a, b in pairs(*forms):
        b.data.copy_(a)
    for fused, apart in zip(*(s.adapted.values() for s in forms), strict=True):
        if fused.init == "pissa":
            for part in ("pissa_A", "pissa_B"):
                torch.testing.assert_close(getattr(fused, part), getattr(apart, part), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*(answer(s, 0, inputs(dtype=torch.float64)).logits for s in forms), rtol=1e-9, atol=1e-9)
    batch = task.train
    losses = [F.cross_entropy(s.forward_task(batch.x, 0)[:, :2], batch.y) for s in forms]
    for loss in losses:
        loss.backward()
    count = 0
    for a, b in pairs(*forms):
        assert a.grad.any()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10)
        count += 1
    assert count >= 2 * 2 * len(targets)


@pytest.mark.parametrize("method", METHODS)
def test_methods_learn_on_parts_as_on_three_layers(method):
    forms = [made(method, "class", fused=fused, dropout=0.0) for fused in (True, False)]
    for index in range(2):
        task = make_task(index)
        for strategy in forms:
            begin(strategy, task)
        if method != "inflora":  # whose A is computed
            for a, b in pairs(*forms):
                b.data.copy_(a)
        trained = []
        for strategy in forms:
            strategy.before_phase(task, 0)
            trained.append(steps(strategy, task, lr=0.1))
            strategy.after_task(task)
        assert trained[0] == trained[1]
    torch.testing.assert_close(*(answer(s, 0).logits for s in forms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"init": "pissa"}], ids=str)
@pytest.mark.parametrize("method", ["lora", "seq-lora"])
def test_stacked_is_alone(method, options):
    check_stacking(lambda seed: made(method, "class", seed=seed, **options))


def test_copies_have_parts_of_their_own():
    strategy = made()
    learn(strategy, make_task(0))
    other = copy.deepcopy(strategy)
    before = answer(strategy, 0).logits
    assert torch.equal(answer(other, 0).logits, before)
    with torch.no_grad():
        for layer in other.adapted.values():
            layer.base_layer.layer.weight.zero_()
        assert not other.model.get_submodule("blocks.1.body.attn.qkv.base_layer").weight.any()
    assert torch.equal(answer(strategy, 0).logits, before)


def test_what_was_learned_is_loaded_again():
    strategy = made()
    for index in range(2):
        learn(strategy, make_task(index))
    other = made(seed=1)
    for index in range(2):
        begin(other, make_task(index))
    other.load_state_dict(strategy.state_dict())
    for task in range(2):
        assert torch.equal(answer(other, task).logits, answer(strategy, task).logits)


def test_parameters_by_formula():
    strategy = made(targets=("q", "v", "mlp"))
    head = 4 * WIDTH * 2 + 2
    adapters = 2 * 3 * (2 * (WIDTH + WIDTH) + 2 * (WIDTH + 2 * WIDTH))
    assert learn(strategy, make_task(0)) == [adapters + head]
    start = sum(p.numel() for p in transformer().parameters())
    assert measure(strategy).parameters == {"adapters": adapters, "base": start, "heads": head}


def test_inflora_on_a_fused_vision_transformer_trains_as_many_as_its_paper_says():
    # Rank 10 on k and v of 12 blocks, and a head for 10 classes.
    with torch.device("meta"):
        model = Network([Block(Transformer(768), nn.Identity()) for _ in range(12)], nn.Linear(768, 100))
    strategy = LoRA(model, StreamInfo(100, 10, "task", (768,), torch.Generator()),
                    LoRAOptions(rank=10, targets=["k", "v"], base="random"))
    strategy.before_task(make_task(0, tuple(range(10))))
    trained = {name: p.numel() for name, p in strategy.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trained.items() if "lora_A" not in name) == 192_010


def test_rank_patterns_and_dropout_go_for_all_parts():
    adapted = adapt(transformer(), AdapterOptions(targets=["q", "v"], rank_pattern={r"blocks\.1\..*qkv": 2},
                                                  dropout=0.5))
    assert {name: layer.rank for name, layer in adapted.items()} == {
        f"blocks.{block}.body.attn.qkv.{part}": rank for block, rank in ((1, 2), (2, 4)) for part in "qv"}
    assert all(isinstance(layer.lora_dropout, nn.Dropout) for layer in adapted.values())
    with pytest.raises(SpecError, match=r"rank = 13 exceeds the width 12 of blocks\.1\.body\.attn\.qkv"):
        adapt(transformer(), AdapterOptions(targets=["q"], rank=13))


def kept(**options):
    """Return a strategy that has learned two tasks, far from the base, its adapters as they are stored, and its base.
    """
    strategy = made(**options)
    tasks = [make_task(index) for index in range(2)]
    for task in tasks:
        learn(strategy, task)
    fill(strategy)
    base = base_tensors(strategy.model, strategy.adapted)
    return strategy, [strategy.adapter(task, "trial", fingerprint(base)) for task in tasks], base


@pytest.mark.parametrize("targets", [("k",), ("q", "v", "mlp"), ("q", "k", "v", "proj")], ids="+".join)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stored_adapter_is_stacked_and_blockwise_and_comes_back(options, targets):
    strategy, stored, base = kept(targets=targets, **options)
    assert base.keys() == transformer().state_dict().keys()
    name, n = "blocks.1.body.attn.qkv", len({*targets} & {*"qkv"})
    members = [strategy.adapted[f"{name}.{part}"] for part in "qkv" if part in targets]
    a, b = stored[1].factors(name)
    r = 2 * 3 if "pissa" in options.values() else 3
    assert stored[1].rank(name) == n * r
    assert a.shape == (n * r, WIDTH)
    assert b.shape == (3 * WIDTH, n * r)
    assert stored[1].scaling(name) == pytest.approx(members[0].scaling, rel=1e-9)
    change = stored[1].scaling(name) * b.double() @ a.double()
    for i, part in enumerate("qkv"):
        rows = change[i * WIDTH:(i + 1) * WIDTH]
        if part not in targets:
            assert not rows.any()
        else:
            own = strategy.adapted[f"{name}.{part}"]._product(1).double()
            torch.testing.assert_close(rows, own, rtol=1e-5, atol=1e-6)
    assert b.count_nonzero() == n * WIDTH * r
    other = made(targets=targets, seed=4, **options)
    other.model.blocks.load_state_dict(strategy.model.blocks.state_dict(), strict=False)  # the base
    for adapter in stored:
        put(other, adapter)
    for task in range(2):
        assert torch.equal(answer(other, task).logits, answer(strategy, task).logits)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_merged_and_combined_weights_are_the_same_function(options):
    strategy, stored, base = kept(targets=("q", "v", "proj"), **options)
    plain = transformer()
    for task in range(2):
        plain.load_state_dict(merged(stored[task], base))
        torch.testing.assert_close(plain.eval()(inputs()), answer(strategy, task).logits, rtol=1e-4, atol=1e-5)
    if "dora" in options:
        with pytest.raises(SpecError, match="dora adapters cannot be combined"):
            combined(dict(enumerate(stored)), [0.5, 0.5])
        return
    mixture = combined(dict(enumerate(stored)), [0.25, 0.5])
    for name in stored[0].layers:
        weight = base[f"{name}.weight"]
        expected = 0.25 * delta(stored[0], name, weight) + 0.5 * delta(stored[1], name, weight)
        torch.testing.assert_close(delta(mixture, name, weight), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_on_the_whole_layer_is_not_taken_for_one_on_its_parts():
    _, stored, _ = kept()
    stored[0].factors("blocks.1.body.attn.qkv")[1][0, 5] = 1.0
    with pytest.raises(StoreError, match=r"lora_B\.weight of blocks\.1\.body\.attn\.qkv has numbers outside"):
        put(made(), stored[0])
    with pytest.raises(StoreError, match=r"lora_A\.weight of blocks\.1\.body\.attn\.qkv is missing or of another"):
        put(made(targets=("q", "k", "v")), stored[0])


@pytest.mark.parametrize(("name", "parts"), [
    ("blocks.0.body.attn.qkv", "qkv"), ("blocks.1.body.attention.q", "q"), ("blocks.1.body.attention.v", "v"),
    ("blocks.0.body.model.blocks.3.attn.proj", ["proj"]), ("blocks.1.body.attn.q_proj", "q"),
    ("encoder.layer.0.attention.attention.key", "k"), ("blocks.2.self_attention.out_proj", ["proj"]),
    ("blocks.1.body.mlp.0", ["mlp"]), ("blocks.0.body.mlp.fc2", ["mlp"]), ("blocks.0.body.patch_embed.proj", []),
    ("blocks.0.body.1", []), ("blocks.0.body.attn.gate", []), ("blocks.0.body.q", []),
    ("layer.0.attention.output.dense", ["proj"]), ("layer.0.output.dense", []), ("layer.0.attention.q_lin", "q"),
    ("layer.0.attention.self.value_proj", "v"), ("layers.0.attn.Wqkv", []), ("layers.0.attention.dense", ["proj"])])
def test_parts_are_told_by_names(name, parts):
    assert parts_of(name) == tuple(parts)


@pytest.mark.extra("text")
@pytest.mark.parametrize(("kind", "names"), [
    ("bert", "self.query self.key self.value output.dense"), ("distilbert", "q_lin k_lin v_lin out_lin"),
    ("deberta", "self.query_proj self.key_proj self.value_proj output.dense"), ("neox", "query_key_value dense")])
def test_attention_of_text_models_is_whole(tmp_path, kind, names):
    save_model(tmp_path, kind)
    model = text_model(f"hf:{tmp_path}", TextModelOptions(), (12,), 4)
    chosen = [re.sub(r".*?\.attention\.", "", name) for name in select(model, "attention")]
    assert chosen == 2 * names.split()
    settled = LoRAOptions().settled(True, lambda: model)
    assert settled.targets == ([] if kind == "neox" else ["q", "v"])
    assert remarks(model, settled) == (["all layers have adapters, because the parts that the method's paper "
                                        "adapts (q+v) are not layers of their own in this model"] * (kind == "neox"))


def test_other_layers_in_attention_are_noted():
    model = transformer()
    for block in model.blocks[1:3]:
        block.body.attn.gate = nn.Linear(WIDTH, WIDTH)
    assert remarks(model, LoRAOptions(layers="attention")) == [
        "layers = attention leaves out layers in attention that are not q, k, v or the output projection by their "
        "names: blocks.*.body.attn.gate"]
    assert remarks(model, LoRAOptions(targets=["q"])) == []


def test_targets_narrow_layers():
    own = vit(ViTOptions(patch=4, width=12, depth=2, heads=3), (1, 8, 8), 4)
    assert list(select(own, "attention", targets=["q", "proj"])) == [
        f"blocks.{i}.body.attention.{n}" for i in (1, 2) for n in ("q", "proj")]
    assert list(select(own, "all", targets=["mlp"])) == [f"blocks.{i}.body.mlp.{n}" for i in (1, 2) for n in (0, 2)]
    assert list(select(own, r"blocks\.1\..*", targets=["v", "mlp"])) == [
        f"blocks.1.body.{n}" for n in ("attention.v", "mlp.0", "mlp.2")]
    assert list(select(own, "last:3", targets=["mlp"])) == ["blocks.2.body.mlp.0", "blocks.2.body.mlp.2"]
    fused = transformer()
    assert list(select(fused, "all", targets=["k"])) == [f"blocks.{i}.body.attn.qkv" for i in (1, 2)]
    whole = adapt(transformer(), AdapterOptions(layers="attention"))
    assert next(iter(whole)) == "blocks.1.body.attn.qkv"  # no targets: one adapter for all three, as ever
    assert isinstance(whole["blocks.1.body.attn.qkv"], LoRALayer)


def test_targets_that_are_not_there_are_refused():
    with pytest.raises(SpecError, match=r"^lora: targets = q\+mlp: no selected layer of this model is mlp by its "
                                        r"name .*the selected are blocks\.1\.body\.attn\.qkv$"):
        select(transformer(), r"blocks\.1\.body\.attn\.qkv", targets=["q", "mlp"])
    torchs = Network([Block(nn.ModuleDict({"self_attention": nn.MultiheadAttention(4, 2), "mlp": nn.Linear(4, 4)}),
                            nn.Identity())], nn.Linear(4, 6))
    assert list(select(torchs, "all", targets=["mlp"])) == ["blocks.0.body.mlp"]
    for targets in (["q"], ["v", "mlp"]):
        with pytest.raises(SpecError, match=r"attention is torch's nn\.MultiheadAttention, .*; only mlp can be"):
            select(torchs, "all", targets=targets)
    with pytest.raises(SpecError, match=r"out_proj is part of torch's nn\.MultiheadAttention"):
        select(torchs, "all", targets=["proj"])
    odd = Network([Block(nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 8)})}), nn.Identity())],
                  nn.Linear(4, 6))
    with pytest.raises(SpecError, match=r"qkv \(weight 8x4\) is not q, k and v of one width"):
        select(odd, "all", targets=["q"])
    biased = transformer()
    biased.blocks[1].body.attn.q_bias = nn.Parameter(torch.zeros(WIDTH))
    with pytest.raises(SpecError, match=r"blocks\.1\.body\.attn\.qkv is part of an attention with biases outside"):
        adapt(biased, AdapterOptions(layers=".*", targets=["q"]))
    assert isinstance(biased.blocks[2].body.attn.qkv, nn.Linear)


@pytest.mark.extra("timm")
@pytest.mark.parametrize(("name", "side"), [("tiny_vit_5m_224", 224), ("maxvit_rmlp_pico_rw_256", 256)])
def test_rows_ordered_by_head_are_not_divided(name, side):
    with torch.device("meta"):
        model = timm(f"timm:{name}", VisionOptions(), (3, side, side), 5)
    assert LoRAOptions().settled(True, lambda: model).targets == []
    with pytest.raises(SpecError, match=r"^lora: targets = q: the rows of .*\.qkv are ordered by head"):
        select(model, r".*\.attn\.qkv", targets=["q"])


def test_targets_as_written():
    def read(raw):
        return validate(LoRAOptions, raw, "lora", "clbench methods")

    assert read({"targets": "v+q"}) == read({"targets": ["q", "v", "q"]}) == LoRAOptions(targets=["q", "v"])
    assert read({"targets": "mlp"}).targets == ["mlp"]
    assert label("lora", read({"targets": "v+q"})) == "lora:targets=q+v"
    with pytest.raises(SpecError, match=r"lora\.targets: should be 'q', .*, 'mlp' or 'all-linear', got 'qkv'"):
        read({"targets": "q+qkv"})
    with pytest.raises(SpecError, match="layers = attention has q, k, v and proj, not mlp"):
        read({"targets": "q+mlp", "layers": "attention"})


def test_keys_of_trials_without_targets_stay_as_they_were():
    def trials(methods):
        return plan(build({"methods": methods, "seeds": 1}), discover())

    old, written, new = trials([{"name": "lora"}, {"name": "lora", "options": {"targets": []}, "label": "same"},
                                {"name": "lora", "options": {"targets": "v+q"}}])
    assert "targets" not in old.trial.method.options
    assert old.trial.key == written.trial.key != new.trial.key
    assert new.label == "lora:targets=q+v"
    assert new.trial.key == trials("lora:targets=q+v")[0].trial.key


def test_all_linear_layers_are_peft_s_with_one_adapter_each():
    model = transformer()
    chosen = select(model, "all", targets=["all-linear"])
    assert [*chosen] == ["blocks.0.body.proj", *(f"blocks.{b}.body.{part}" for b in (1, 2) for part in (
        "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))]
    layers = adapt(model, AdapterOptions(targets=["all-linear"], rank=2))
    assert [*layers] == [*chosen]  # one for q, k and v together
    assert [*select(transformer(), "attention", targets=["all-linear"])] == [n for n in chosen if "attn" in n]
    convolutions = Network([Block(nn.Conv2d(1, 2, 3), nn.Flatten()), Block(nn.Linear(72, 4), nn.ReLU())],
                           nn.Linear(4, 2))
    assert [*select(convolutions, "all", targets=["all-linear"])] == ["blocks.1.body"]
    with pytest.raises(SpecError, match="targets = all-linear: none of the selected layers is a Linear one; they are"):
        select(convolutions, r"blocks\.0\..*", targets=["all-linear"])


def test_all_linear_is_written_as_it_is_read_and_stands_alone():
    options = validate(LoRAOptions, {"targets": "all-linear"}, "lora", "clbench methods")
    assert options.targets == ["all-linear"] and label("lora", options) == "lora:targets=all-linear"
    with pytest.raises(SpecError, match="all-linear has the other targets in it; name it alone"):
        validate(LoRAOptions, {"targets": "q+all-linear"}, "lora", "clbench methods")
