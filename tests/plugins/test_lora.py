import copy
import math

import pytest
import torch
import torch.nn.functional as F
from clbench_lora import AdapterOptions, LoRAOptions
from clbench_lora.layers import LoRALayer, width
from clbench_lora.selection import adapt, select
from clbench_lora.strategy import LoRA
from helpers.per_task import (
    answer,
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

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.models.network import Block, Network
from clbench.strategy.base import StreamInfo
from clbench.testing.tiny import TASKS, bench
from clbench.training.costs import measure

CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (2, 0), "dilation": 2},
    {"padding": "same", "padding_mode": "circular"},
]


def lora(kind="mlp", scenario="task", pretrained=False, dtype=torch.float32, seed=0, **options):
    return LoRA(make_model(kind, dtype=dtype, seed=seed), make_stream_info(scenario, pretrained=pretrained),
                LoRAOptions(**options))


def filled(base, rank=3, scaling=5 / 3, **options):
    layer = LoRALayer(base, rank, scaling, **options)
    for _ in range(2):
        layer.add()
        for parameter in layer.parameters_of(-1).values():
            nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_new_adapters_leave_the_base_as_it_is_bitwise(kind):
    strategy = lora(kind, base="random")
    features = make_model(kind).features(inputs()).detach()
    begin(strategy, make_task(0))
    with strategy.using(0):
        assert torch.equal(strategy.model.features(inputs()), features)
    assert torch.equal(strategy.shared_features(inputs()), features)
    assert all(layer.active == () for layer in strategy.adapted.values())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_merged_linear_equals_the_unmerged(dtype, tolerance):
    layer = filled(nn.Linear(6, 9, dtype=dtype))
    x = torch.rand(4, 6, dtype=dtype)
    for task in (0, 1):
        layer.active = (task,)
        merged = F.linear(x, layer.merged_weight(task), layer.base_layer.bias)
        assert (layer(x) - merged).abs().max() <= tolerance * max(1.0, merged.abs().max().item())
    by_hand = layer.base_layer.weight + 5 / 3 * layer.lora_B[1].weight @ layer.lora_A[1].weight
    torch.testing.assert_close(layer.merged_weight(1), by_hand, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_merged_convolution_equals_the_unmerged(geometry, dtype, tolerance):
    layer = filled(nn.Conv2d(3, 8, 3, dtype=dtype, **geometry))
    layer.active = (1,)
    x = torch.rand(2, 3, 9, 9, dtype=dtype)
    plain = copy.deepcopy(layer.base_layer)
    plain.weight.data = layer.merged_weight(1).detach()
    merged = plain(x)
    assert (layer(x) - merged).abs().max() <= tolerance * max(1.0, merged.abs().max().item())
    assert not torch.allclose(layer(x), layer.base_layer(x))


def test_convolution_adapter_is_a_matrix_of_the_rank():
    layer = filled(nn.Conv2d(3, 8, 3), rank=2)
    singular = torch.linalg.svdvals(layer.delta_weight(0).flatten(1).double())
    assert (singular > 1e-5).sum() == 2


def test_initialization_is_kaiming_uniform_and_zero():
    layer = LoRALayer(nn.Linear(400, 50), 8, 1.0)
    layer.add()
    a = layer.lora_A[0].weight
    assert a.abs().max() <= 400**-0.5  # the bound of kaiming_uniform with a = sqrt(5)
    assert a.std().item() == pytest.approx((400 * 3) ** -0.5, rel=0.05)
    assert not layer.lora_B[0].weight.any()


def test_gaussian_initialization_is_pefts():
    layer = LoRALayer(nn.Linear(400, 50), 8, 1.0, init="gaussian")
    layer.add()
    assert layer.lora_A[0].weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert not layer.lora_B[0].weight.any()


@pytest.mark.parametrize(("alpha", "scaling", "scale"), [
    (None, "standard", 1.0), (8.0, "standard", 4.0), (8.0, "rslora", 8 / math.sqrt(2)), (None, "rslora", math.sqrt(2))])
def test_scale_is_alpha_over_rank_or_its_root(alpha, scaling, scale):
    made = lora(rank=2, alpha=alpha, scaling=scaling).adapted
    assert [layer.scaling for layer in made.values()] == pytest.approx([scale, scale], rel=1e-12)


def test_each_layer_has_the_rank_of_the_first_pattern_that_fits_and_alpha_follows():
    made = adapt(make_model(), AdapterOptions(rank=3, rank_pattern={r"blocks\.1\..*": 5, r"blocks\..*\.body": 2}))
    assert {name: (layer.rank, layer.scaling) for name, layer in made.items()} == {
        "blocks.0.body.1": (3, 1.0), "blocks.1.body": (5, 1.0)}
    scaled = adapt(make_model(), AdapterOptions(rank=3, alpha=6.0, rank_pattern={r"blocks\.1\..*": 4}))
    assert [layer.scaling for layer in scaled.values()] == [2.0, 1.5]
    with pytest.raises(SpecError, match=r"rank_pattern 'blocks\.7' fits no adapted layer; those are blocks\.0"):
        adapt(make_model(), AdapterOptions(rank_pattern={"blocks.7": 1}))


def by_hand(layer, x, adapter):
    """The layer's output by the papers' formulas, in float64."""
    w, s = layer.base_layer.weight.double(), layer.scaling
    a, b = (part[adapter].weight.double() for part in (layer.lora_A, layer.lora_B))
    changed = w + s * (b.flatten(1) @ a.flatten(1)).view_as(w)
    if layer.lora_magnitude_vector is not None:
        rows = changed.flatten(1)
        unit = rows / rows.square().sum(1, keepdim=True).sqrt()
        changed = (layer.lora_magnitude_vector[adapter].double()[:, None] * unit).view_as(w)
    bias = layer.base_layer.bias.double()
    if layer.lora_bias:
        bias = bias + s * layer.lora_B[adapter].bias.double()
    return F.linear(x, changed, bias) if w.dim() == 2 else F.conv2d(x, changed, bias, layer.base_layer.stride)


@pytest.mark.parametrize("base", [nn.Linear(6, 9), nn.Conv2d(3, 8, 3, stride=2)], ids=["linear", "conv"])
@pytest.mark.parametrize("options", [{"dora": True}, {"bias": True}, {"dora": True, "dropout": 0.5}], ids=str)
def test_dora_and_bias_by_the_formula(base, options):
    layer = filled(copy.deepcopy(base), **options).double().eval()
    x = torch.rand(4, 6, dtype=torch.float64) if isinstance(base, nn.Linear) else torch.rand(2, 3, 9, 9).double()
    layer.active = (1,)
    expected = by_hand(layer, x, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    plain = copy.deepcopy(layer.base_layer)
    plain.weight.data, plain.bias.data = layer.merged_weight(1).detach(), layer.merged_bias(1).detach()
    torch.testing.assert_close(plain(x), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_dora_take_the_length_as_a_constant():
    layer = filled(nn.Linear(6, 9, dtype=torch.float64), dora=True)
    layer.active = (0,)
    x, w = torch.rand(4, 6, dtype=torch.float64), layer.base_layer.weight.detach()
    a, b, m = (p.detach().clone().requires_grad_() for p in layer.parameters_of(0).values())
    changed = w + layer.scaling * b @ a
    length = changed.detach().square().sum(1).sqrt()
    F.linear(x, (m / length)[:, None] * changed).square().sum().backward()
    (layer(x) - layer.base_layer.bias).square().sum().backward()
    for ours, theirs in zip(layer.parameters_of(0).values(), (a, b, m), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_pissa_starts_from_the_largest_singular_values_and_changes_nothing_until_it_learns():
    torch.manual_seed(0)
    base = nn.Linear(6, 9)
    layer = LoRALayer(base, 2, 0.5, init="pissa")
    layer.add()
    x = torch.rand(4, 6)
    layer.active = (0,)
    assert torch.equal(layer(x), base(x))  # the same products on both sides, so the rounding is the same
    u, s, v = torch.linalg.svd(base.weight.detach().double(), full_matrices=False)
    start = 0.5 * layer.lora_B[0].weight @ layer.lora_A[0].weight
    torch.testing.assert_close(start.double(), (u[:, :2] * s[:2]) @ v[:2], rtol=1e-5, atol=1e-6)
    layer(x).sum().backward()
    for parameter in layer.parameters_of(0).values():
        assert parameter.grad.abs().sum() > 0  # with B = 0, A would have no gradient
        parameter.data -= 0.1 * parameter.grad
    change = 0.5 * (layer.lora_B[0].weight @ layer.lora_A[0].weight).double() - (u[:, :2] * s[:2]) @ v[:2]
    torch.testing.assert_close(layer(x).double(), F.linear(x.double(), base.weight.double() + change,
                                                           base.bias.double()), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(layer(x), base(x), atol=1e-4)


@pytest.mark.parametrize("scaling", [0.5, 8 / 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_pissa_starts_exactly_from_the_function_of_its_layer(scaling, kind, bias):
    torch.manual_seed(0)
    base = nn.Linear(64, 48)
    layer = LoRALayer(base, 3, scaling, init="pissa", bias=bias)
    layer.add()
    layer.active = (0,)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        x = torch.rand(4, 64)
        assert torch.equal(layer(x), base(x))


def test_pissa_of_a_trained_base_starts_from_the_trained_weights():
    strategy = lora(init="pissa", rank=2)
    learn(strategy, make_task(0))
    for layer in strategy.adapted.values():
        top = torch.linalg.svdvals(layer.base_layer.weight)[:2]
        torch.testing.assert_close(torch.linalg.svdvals(layer.pissa_B @ layer.pissa_A)[:2], top, rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecError, match=r"init = pissa is defined on Linear layers only, and blocks\.0\.body"):
        lora("cnn", init="pissa")


def test_dropout_is_on_in_training_only_though_the_blocks_are_in_eval_mode():
    strategy = lora(base="random", dropout=0.5)
    learn(strategy, make_task(0))
    strategy.train()
    assert not strategy.model.blocks.training
    first, second = strategy(inputs(), 0), strategy(inputs(), 0)
    assert not torch.equal(first, second)
    strategy.eval()
    assert torch.equal(strategy(inputs(), 0), strategy(inputs(), 0))


def test_dropout_scales_what_it_leaves_and_spares_w():
    layer = filled(nn.Linear(6, 9), dropout=0.25)
    layer.active = (0,)
    x = torch.rand(4, 6)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        out = layer.train()(x)
        torch.manual_seed(3)
        kept = (F.dropout(torch.ones_like(x), 0.25) > 0).float()
    low = (x * kept / 0.75) @ layer.lora_A[0].weight.T
    torch.testing.assert_close(out, layer.base_layer(x) + 5 / 3 * low @ layer.lora_B[0].weight.T)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("base", ["task1", "random"])
def test_old_tasks_answer_bitwise_the_same_after_later_tasks(kind, base):
    strategy = lora(kind, base=base)
    answers = []
    for i in range(3):
        learn(strategy, make_task(i))
        answers.append(answer(strategy, i).logits)
    for i, logits in enumerate(answers):
        assert torch.equal(answer(strategy, i).logits, logits)
    assert not torch.equal(answers[0].isfinite(), answers[1].isfinite())


def test_trainable_parameters_by_formula():
    strategy = lora(rank=3, base="random")
    sizes, head = [(64, 12), (12, 12)], 12 * 2 + 2
    adapters = sum(3 * (a + b) for a, b in sizes)
    for i in range(2):
        assert learn(strategy, make_task(i)) == [adapters + head]
    kept = measure(strategy)
    start = sum(p.numel() for p in make_model().parameters())
    assert kept.parameters == {"adapters": 2 * adapters, "base": start, "heads": 2 * head}
    assert kept.bytes == {role: 4 * count for role, count in kept.parameters.items()}


def test_trainable_parameters_of_convolutions_by_formula():
    strategy = lora("cnn", rank=2, base="random")
    adapters = 2 * (1 * 9 + 4) + 2 * (4 * 9 + 8)
    assert learn(strategy, make_task(0)) == [adapters + 8 * 2 * 2 * 2 + 2]


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "proj")})
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        return x + self.mlp(sum(layer(x) for layer in self.attn.values()))


def test_counts_at_the_size_of_a_vision_transformer():
    # Rank 10 on K and V of 12 blocks, 10-class head: B and head alone are the 192,010 that InfLoRA trains per task.
    with torch.device("meta"):
        model = Network([Block(Attention(768), nn.Identity()) for _ in range(12)], nn.Linear(768, 100))
    strategy = LoRA(model, StreamInfo(100, 10, "task", (768,), torch.Generator()),
                    LoRAOptions(rank=10, layers=r".*\.attn\.[kv]", base="random"))
    strategy.before_task(make_task(0, tuple(range(10))))
    trained = {name: p.numel() for name, p in strategy.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 12 * 2 * 10 * (768 + 768) + 7690
    assert sum(count for name, count in trained.items() if "lora_A" not in name) == 192_010


def test_task1_trains_the_base_first_and_then_its_adapters():
    strategy, task = lora(), make_task(0)
    blocks = sum(p.numel() for p in make_model().blocks.parameters())
    head, adapters = 12 * 2 + 2, 4 * (64 + 12 + 12 + 12)
    assert strategy.phases(task) == 2
    begin(strategy, task)
    strategy.before_phase(task, 0)
    assert steps(strategy, task) == blocks + head
    assert not any(layer.lora_B[0].weight.any() for layer in strategy.adapted.values())
    base = copy.deepcopy({name: layer.base_layer.weight for name, layer in strategy.adapted.items()})
    assert not torch.equal(base["blocks.0.body.1"], make_model().blocks[0].body[1].weight)
    unadapted = answer(strategy, 0).logits
    strategy.before_phase(task, 1)
    assert torch.equal(answer(strategy, 0).logits, unadapted)
    assert steps(strategy, task) == adapters + head
    assert all(layer.lora_B[0].weight.any() for layer in strategy.adapted.values())
    assert all(torch.equal(layer.base_layer.weight, base[name]) for name, layer in strategy.adapted.items())
    strategy.after_task(task)
    assert strategy.phases(make_task(1)) == 1
    assert learn(strategy, make_task(1)) == [adapters + head]


def test_base_phase_is_fine_tuning():
    strategy, task = lora(), make_task(0)
    begin(strategy, task)
    plain = make_model()
    head = nn.Linear(12, 2)
    head.load_state_dict(strategy.heads[0].state_dict())
    steps(strategy, task, count=3, lr=0.1)
    reference = nn.Sequential(*plain.blocks, head)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(task.train.x), task.train.y).backward()
        optimizer.step()
    torch.testing.assert_close(answer(strategy, 0).logits[:, :2], reference(inputs()).detach())


@pytest.mark.parametrize("base", ["task1", "random"])
def test_normalization_of_the_frozen_base_does_not_drift(base):
    model = make_model("cnn")
    model.blocks[1].body = nn.Sequential(model.blocks[1].body, nn.BatchNorm2d(8))
    strategy = LoRA(model, make_stream_info(), LoRAOptions(base=base))
    norm = model.blocks[1].body[1]
    fresh = copy.deepcopy(norm.state_dict())
    strategy.train()
    learn(strategy, make_task(0))
    after_first = copy.deepcopy(norm.state_dict())
    drifted = not torch.equal(fresh["running_mean"], after_first["running_mean"])
    assert drifted == (base == "task1")  # its first phase trains the base, normalization included
    strategy.train()
    learn(strategy, make_task(1))
    strategy.train()
    strategy(inputs(), 1)
    assert strategy.training
    assert all(torch.equal(value, after_first[name]) for name, value in norm.state_dict().items())


def test_rank_above_a_layers_width_is_refused():
    with pytest.raises(SpecError, match=r"rank = 13 exceeds the width 12 of blocks\.0\.body\.1 \(weight 12x64\)"):
        lora(rank=13)
    with pytest.raises(SpecError, match=r"width 4 of blocks\.0\.body .*choose rank <= 4"):
        lora("cnn", rank=5)
    assert len(lora("cnn", rank=8, layers="last").adapted) == 1
    assert width(nn.Conv2d(1, 32, 3)) == 9


def test_layers_choose():
    mlp, cnn = make_model(), make_model("cnn")
    assert list(select(mlp, "all")) == ["blocks.0.body.1", "blocks.1.body"]
    assert list(select(cnn, "last")) == ["blocks.1.body"]
    assert list(select(cnn, "last:2")) == ["blocks.0.body", "blocks.1.body"]
    assert list(select(mlp, "last:1")) == ["blocks.1.body"]
    assert list(select(mlp, r"blocks\.0\..*")) == ["blocks.0.body.1"]
    with pytest.raises(SpecError, match=r"layers = blocks fits no layer.*blocks\.0\.body\.1, blocks\.1\.body"):
        select(mlp, "blocks")  # the whole name must fit
    for number in (0, 3):
        with pytest.raises(SpecError, match=f"layers = last:{number}, but .* 2 .* choose from last:1 to last:2"):
            select(mlp, f"last:{number}")
    attention = Network([Block(Attention(4), nn.Identity())], nn.Linear(4, 2))
    assert list(select(attention, "attention")) == [f"blocks.0.body.attn.{n}" for n in ("q", "k", "v", "proj")]
    patches = Network([Block(nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Linear(4, 4)})}), nn.Identity())],
                      nn.Linear(4, 2))
    for model in (mlp, patches):
        with pytest.raises(SpecError, match="layers = attention fits no layer"):
            select(model, "attention")


def test_layers_that_cannot_be_adapted_are_refused_and_the_model_is_left_alone():
    grouped = Network([Block(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())], nn.Linear(144, 6))
    with pytest.raises(SpecError, match=r"blocks\.0\.body is a convolution in 2 groups"):
        LoRA(grouped, make_stream_info(), LoRAOptions())
    assert isinstance(grouped.blocks[0].body, nn.Conv2d)
    torchs = Network([Block(nn.MultiheadAttention(4, 2), nn.Identity())], nn.Linear(4, 6))
    with pytest.raises(SpecError, match=r"blocks\.0\.body\.out_proj is part of torch's nn\.MultiheadAttention"):
        LoRA(torchs, make_stream_info(), LoRAOptions())


def test_pretrained_base_needs_weights_and_is_kept_as_it_is():
    with pytest.raises(SpecError, match="lora: base = pretrained needs a pretrained model; pass --weights"):
        lora(base="pretrained")
    with pytest.raises(SpecError, match="base = random, but the model is pretrained"):
        lora(base="random", pretrained=True)
    strategy = lora(base="pretrained", pretrained=True)
    learn(strategy, make_task(0))
    assert torch.equal(strategy.shared_features(inputs()), make_model().features(inputs()))


@pytest.mark.parametrize(("raw", "message"), [
    ({"rank": 0}, "lora.rank"), ({"alpha": 0}, "lora.alpha"), ({"layers": "(q"}, "is not a regular expression"),
    ({"dora": True, "init": "pissa"}, "dora goes with init = kaiming or gaussian"),
    ({"dora": True, "bias": True}, "dora does not go with bias = true"), ({"dropout": 1}, "lora.dropout"),
    ({"rank_pattern": {"a": 0}}, "the rank of 'a' should be at least 1"),
    ({"rank_pattern": {"(": 1}}, "is not a regular expression"),
    ({"base": "task2"}, "lora.base"), ({"infer": "guess"}, "lora.infer"),
])
def test_bad_options_are_refused(raw, message):
    with pytest.raises(SpecError, match=message):
        validate(LoRAOptions, raw, "lora", "clbench methods")
    assert LoRAOptions.model_validate({"alpha": "none"}).alpha is None


def test_unlearned_tasks_are_answered_by_base_and_original_head():
    strategy = lora()
    assert torch.equal(answer(strategy, 0).logits, make_model()(inputs()))
    learn(strategy, make_task(0))
    later = answer(strategy, 2).logits
    assert torch.isfinite(later).all()
    assert torch.equal(later, strategy.model.head(strategy.shared_features(inputs())))


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype"])
def test_task_is_inferred_where_it_is_not_given(infer):
    strategy = lora(scenario="class", infer=infer)
    for i in range(2):
        learn(strategy, make_task(i))
    prediction = answer(strategy)
    assert set(prediction.task.tolist()) <= {0, 1}
    assert torch.isfinite(prediction.logits).sum(1).tolist() == [2] * 5
    assert measure(strategy).bytes.get("prototypes", 0) == (2 * 2 * 12 * 4 if infer == "prototype" else 0)


def test_a_copy_goes_its_own_way():
    strategy = lora()
    learn(strategy, make_task(0))
    before = answer(strategy, 0).logits
    other = copy.deepcopy(strategy)
    assert all(layer is other.model.get_submodule(name) for name, layer in other.adapted.items())
    learn(other, make_task(1))
    assert len(strategy.heads) == 1
    assert torch.equal(answer(strategy, 0).logits, before)
    assert torch.equal(answer(other, 0).logits, before)


@pytest.mark.parametrize(("kind", "options"), [
    ("mlp", {}), ("cnn", {}), ("mlp", {"dora": True}), ("cnn", {"dora": True}), ("cnn", {"bias": True}),
    ("mlp", {"init": "pissa"}), ("mlp", {"rank_pattern": {r"blocks\.0.*": 2}, "scaling": "rslora"})], ids=str)
def test_two_seeds_stacked_equal_one_by_one(kind, options):
    check_stacking(lambda seed: lora(kind, scenario="class", base="random", seed=seed, **options))


@pytest.mark.parametrize("options", [{"dora": True}, {"bias": True}, {"init": "pissa"}, {"dropout": 0.1}], ids=str)
def test_old_tasks_answer_bitwise_the_same_with_every_option(options):
    strategy = lora(**options)
    learn(strategy, make_task(0))
    logits = answer(strategy, 0).logits
    learn(strategy, make_task(1))
    assert torch.equal(answer(strategy, 0).logits, logits)


def test_base_phase_of_two_seeds_stacked_equals_one_by_one():
    check_stacking(lambda seed: lora(seed=seed), tasks=1)


@pytest.mark.parametrize(("kind", "options", "shared"), [
    ("mlp", {"layers": "last"}, 1), ("cnn", {"layers": "last"}, 1), ("mlp", {}, 0),
    ("vit", {"layers": "attention"}, 1), ("vit", {"layers": "last:2"}, 2)])
def test_blocks_before_the_first_adapter_run_once_for_all_tasks(kind, options, shared):
    b = bench(discover().strategy("lora"), {"rank": 1, **options}, "class", model=kind)
    for index in range(TASKS):
        b.learn(index)
    b.strategy.eval()
    x = b.stream.tests.x[:5]
    one_by_one = torch.stack([b.strategy.forward_task(x, task) for task in range(TASKS)])
    runs = []
    blocks = b.strategy.model.blocks
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: runs.append(number))
    assert torch.equal(b.strategy.learned_logits(x), one_by_one)
    assert [runs.count(number) for number in range(len(blocks))] == [1] * shared + [TASKS] * (len(blocks) - shared)
