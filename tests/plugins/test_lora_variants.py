import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from clbench_lora import InfLoRAOptions, OLoRAOptions, SeqLoRAOptions
from clbench_lora.inflora import InfLoRA, design
from clbench_lora.olora import OLoRA
from clbench_lora.seq import SeqLoRA
from helpers.per_task import (
    IMAGE,
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

from clbench.accounting.count import count
from clbench.accounting.shapes import stream_of_shapes
from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.experiment.trial import Resolved
from clbench.models.network import Block, Network
from clbench.strategy.base import StreamInfo, Task
from clbench.strategy.subspace import grown, packed, rows, unpacked
from clbench.training.building import build_model, build_strategy
from clbench.training.costs import measure
from clbench.training.optimizers import rates_of

VARIANTS = {"seq-lora": (SeqLoRA, SeqLoRAOptions), "o-lora": (OLoRA, OLoRAOptions),
            "inflora": (InfLoRA, InfLoRAOptions)}
ADAPTERS, HEAD = 2 * (64 + 12 + 12 + 12), 12 * 6 + 6  # of rank 2 on the two layers of the mlp; over all classes


def make(method, kind="mlp", scenario="class", pretrained=False, seed=0, dtype=torch.float32, **options):
    cls, own = VARIANTS[method]
    stream_info = dataclasses.replace(make_stream_info(scenario, pretrained=pretrained), prepare=lambda x: x.to(dtype))
    chosen = {"rank": 2, "dropout": 0.0, "base": "random", **options}
    return cls(make_model(kind, seed=seed, dtype=dtype), stream_info, own(**chosen))


def double(task):
    return Task(task.index, task.classes, Samples(task.train.x.double(), task.train.y, task.train.tasks))


def merged_features(strategy, x):
    """Return the features of a plain network whose weights are W + sum s BA."""
    plain = make_model(dtype=x.dtype)
    for name, layer in strategy.adapted.items():
        weight = layer.base_layer.weight + sum(
            layer.scaling * b.weight.flatten(1) @ a.weight.flatten(1)
            for a, b in zip(layer.lora_A, layer.lora_B, strict=True)).view_as(layer.base_layer.weight)
        plain.get_submodule(name).weight.data = weight.detach()
    return plain.features(x)


@pytest.mark.parametrize("method", VARIANTS)
def test_one_network_answers_with_the_sum_of_all_adapters(method):
    strategy = make(method, dtype=torch.float64, alpha=3.0)
    for i in range(3):
        learn(strategy, double(make_task(i)))
    assert {len(layer.lora_A) for layer in strategy.adapted.values()} == {1 if method == "seq-lora" else 3}
    x = inputs(dtype=torch.float64)
    strategy.eval()
    torch.testing.assert_close(strategy.model.features(x), merged_features(strategy, x), rtol=1e-12, atol=1e-12)
    for task in (None, 0, 2):
        assert torch.equal(answer(strategy, task, x).logits, answer(strategy, None, x).logits)
    assert answer(strategy, None, x).task is None
    if method != "inflora":
        torch.testing.assert_close(answer(strategy, None, x).logits,
                                   strategy.model.head(merged_features(strategy, x)).detach())


@pytest.mark.parametrize("method", VARIANTS)
def test_the_base_never_changes_once_it_is_frozen(method):
    for base in ("random", "task1"):
        strategy = make(method, base=base)
        learn(strategy, make_task(0))
        start = {n: p.clone() for n, p in strategy.model.blocks.named_parameters() if "lora_" not in n}
        assert all(torch.equal(p, make_model().blocks.get_parameter(n.replace("base_layer.", ""))) ==
                   (base == "random") for n, p in start.items())
        learn(strategy, make_task(1))
        assert all(torch.equal(strategy.model.blocks.get_parameter(n), p) for n, p in start.items())


@pytest.mark.parametrize(("method", "trained"), [
    ("seq-lora", ADAPTERS + HEAD), ("o-lora", ADAPTERS + HEAD), ("inflora", 2 * (12 + 12) + 12 * 2 + 2)])
def test_trainable_parameters_by_formula(method, trained):
    strategy = make(method)
    assert [learn(strategy, make_task(i)) for i in range(3)] == [[trained]] * 3
    kept = measure(strategy).parameters
    assert kept["adapters"] == ADAPTERS * (1 if method == "seq-lora" else 3)
    blocks = sum(p.numel() for p in make_model().blocks.parameters())
    first = learn(make(method, base="task1"), make_task(0))
    assert first == [blocks + (26 if method == "inflora" else HEAD), trained]


@pytest.mark.parametrize("method", VARIANTS)
def test_task1_trains_the_base_without_adapters_first(method):
    strategy, task = make(method, base="task1"), make_task(0)
    begin(strategy, task)
    strategy.before_phase(task, 0)
    assert steps(strategy, task) > 800
    assert not any(layer.active for layer in strategy.adapted.values())
    assert all(not layer.lora_B[0].weight.any() for layer in strategy.adapted.values())
    before = answer(strategy).logits
    strategy.before_phase(task, 1)
    assert torch.equal(answer(strategy).logits, before)
    steps(strategy, task)
    assert all(layer.lora_B[0].weight.any() for layer in strategy.adapted.values())


@pytest.mark.parametrize("method", VARIANTS)
def test_normalization_of_the_frozen_base_does_not_drift(method):
    model = make_model("cnn")
    model.blocks[1].body = nn.Sequential(model.blocks[1].body, nn.BatchNorm2d(8))
    cls, own = VARIANTS[method]
    strategy = cls(model, make_stream_info(), own(rank=2, base="random"))
    fresh = copy.deepcopy(model.blocks[1].body[1].state_dict())
    learn(strategy, make_task(0))
    strategy.train()
    strategy(inputs(), 0)
    assert all(torch.equal(value, fresh[name]) for name, value in model.blocks[1].body[1].state_dict().items())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", VARIANTS)
def test_two_seeds_stacked_equal_one_by_one(method, kind):
    check_stacking(lambda seed: make(method, kind, seed=seed))
    check_stacking(lambda seed: make(method, kind, seed=seed, base="task1"), tasks=1)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_dora_of_two_seeds_stacked_equals_one_by_one(kind):
    check_stacking(lambda seed: make("seq-lora", kind, seed=seed, dora=True))


@pytest.mark.parametrize("method", VARIANTS)
@pytest.mark.parametrize(("model", "layers"), [
    ("resnet20:width=4", "all"), ("vit-tiny:width=12:depth=2:patch=4", "attention"),
    ("vit-tiny:width=12:depth=2:patch=4", r"blocks\.0\..*")])
def test_variants_train_on_residual_networks_and_transformers(method, model, layers):
    name, _, rest = model.partition(":")
    options = {k: int(v) for k, _, v in (part.partition("=") for part in rest.split(":"))}
    registry = discover()
    network, _ = build_model(Resolved(name=name, options=options), None, IMAGE, 6, registry)
    strategy = build_strategy(Resolved(name=method, options={"rank": 2, "layers": layers, "base": "random"}), network,
                              make_stream_info("class"), registry)
    for i in range(2):
        learn(strategy, make_task(i))
    assert all(layer.lora_B[-1].weight.any() for layer in strategy.adapted.values())
    assert torch.isfinite(answer(strategy).logits).all()


@pytest.mark.parametrize(("method", "model"), [
    ("seq-lora", "mlp:width=12"), ("o-lora", "mlp:width=12"), ("inflora", "mlp:width=12"),
    ("inflora", "cnn:channels=4")])
def test_what_is_counted_without_data_is_what_is_kept(method, model):
    registry = discover()
    planned = plan(build({"methods": [f"{method}:rank=2"], "model": model, "scenario": "class", "seeds": 1,
                          "recipe": {"epochs": 1}}), registry)[0]
    found = count(planned, stream_of_shapes(3, 6, IMAGE, "class", 24), registry)
    assert found.note is None
    strategy = make(method, model.partition(":")[0], base="task1")
    for i in range(3):
        assert max(learn(strategy, make_task(i))) == found.trainable[i]
        assert measure(strategy) == found.kept[i]


@pytest.mark.parametrize(("method", "raw", "message"), [
    ("o-lora", {"lambda_orth": -1}, "o-lora.lambda_orth"), ("o-lora", {"init": "pissa"}, "no option 'init'"),
    ("inflora", {"threshold": 0}, "inflora.threshold"), ("inflora", {"dora": True}, "no option 'dora'"),
    ("inflora", {"threshold": 0.9, "final_threshold": 0.8}, r"final_threshold = 0.8 is below threshold = 0.9"),
    ("seq-lora", {"infer": "entropy"}, "no option 'infer'"), ("seq-lora", {"rank": 0}, "seq-lora.rank"),
])
def test_bad_options_are_refused(method, raw, message):
    with pytest.raises(SpecError, match=message):
        validate(VARIANTS[method][1], raw, method, "clbench methods")


@pytest.mark.parametrize("method", VARIANTS)
def test_what_does_not_fit_is_refused(method):
    with pytest.raises(SpecError, match=f"{method}: base = pretrained needs a pretrained model; pass --weights"):
        make(method, base="pretrained")
    with pytest.raises(SpecError, match=f"{method}: rank = 13 exceeds the width 12"):
        make(method, rank=13)
    make(method, base="pretrained", pretrained=True)
    with pytest.raises(SpecError, match=r"o-lora: rank = 8 exceeds the width 6 .*choose rank <= 6"):
        OLoRA(Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Identity())], nn.Linear(6, 6)),
              make_stream_info(), OLoRAOptions(base="random"))


# seq-lora


def test_seq_lora_with_pissa_and_dora_starts_from_the_base():
    for options in ({"init": "pissa"}, {"dora": True}, {"bias": True}):
        strategy = make("seq-lora", dtype=torch.float64, **options)
        x = inputs(dtype=torch.float64)
        begin(strategy, make_task(0))
        torch.testing.assert_close(answer(strategy, None, x).logits, make_model(dtype=torch.float64)(x).detach())


def test_seq_lora_step_by_hand():
    model = Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), nn.Identity())], nn.Linear(5, 6)).double()
    strategy = SeqLoRA(model, make_stream_info("class"), SeqLoRAOptions(rank=2, alpha=6.0, base="random"))
    learn(strategy, double(make_task(0)))
    layer, task = strategy.adapted["blocks.0.body.1"], double(make_task(1))
    w, a, b, head = (t.detach().clone() for t in (layer.base_layer.weight, layer.lora_A[0].weight,
                                                  layer.lora_B[0].weight, model.head.weight))
    x = task.train.x.flatten(1)
    logits = (x @ (w + 3 * b @ a).T + layer.base_layer.bias.detach()) @ head.T + model.head.bias.detach()
    begin(strategy, task)
    strategy.class_mask[:2, :4] = True  # as the harness does in scenario class
    share = logits[:, :4].softmax(1)
    share[torch.arange(len(x)), task.train.y] -= 1
    delta = nn.functional.pad(share, (0, 2)) @ head / len(x)
    steps(strategy, task, count=1, lr=0.1)
    torch.testing.assert_close(layer.lora_A[0].weight, a - 0.1 * 3 * b.T @ delta.T @ x)
    torch.testing.assert_close(layer.lora_B[0].weight, b - 0.1 * 3 * delta.T @ x @ a.T)
    assert torch.equal(layer.base_layer.weight, w)


# o-lora


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_o_lora_penalty_by_hand(kind):
    strategy = make("o-lora", kind, dtype=torch.float64, lambda_orth=0.7)
    for i in range(2):
        learn(strategy, double(make_task(i)))
    task = double(make_task(2))
    begin(strategy, task)
    expected = 0.0
    for layer in strategy.adapted.values():
        first, second, newest = (a.weight.detach().numpy().reshape(2, -1) for a in layer.lora_A)
        expected += np.abs(first @ newest.T).sum() + np.abs(second @ newest.T).sum()
    assert strategy.overlap().item() == pytest.approx(expected, rel=1e-12)
    strategy.class_mask[2] = True
    plain = nn.functional.cross_entropy(strategy(task.train.x), task.train.y)
    assert strategy.loss(as_batch(task)).item() == pytest.approx(plain.item() + 0.7 * expected, rel=1e-12)
    strategy.overlap().backward()
    for layer in strategy.adapted.values():
        first, second, newest = (a.weight.detach().numpy().reshape(2, -1) for a in layer.lora_A)
        gradient = np.sign(newest @ first.T) @ first + np.sign(newest @ second.T) @ second
        np.testing.assert_allclose(layer.lora_A[2].weight.grad.numpy().reshape(2, -1), gradient, rtol=1e-10)
        assert layer.lora_A[0].weight.grad is None


def test_o_lora_holds_subspaces_apart_and_has_no_penalty_in_the_first_task():
    ends = {}
    for strength in (0.0, 5.0):
        strategy = make("o-lora", dtype=torch.float64, lambda_orth=strength)
        begin(strategy, make_task(0))
        assert strategy.overlap().item() == 0
        strategy.before_phase(make_task(0), 0)
        steps(strategy, double(make_task(0)), lr=0.05)
        earlier = [layer.lora_A[0].weight.clone() for layer in strategy.adapted.values()]
        begin(strategy, make_task(1))
        before = strategy.overlap().item()
        steps(strategy, double(make_task(1)), count=200, lr=1e-3)
        ends[strength] = strategy.overlap().item() / before
        assert all(torch.equal(layer.lora_A[0].weight, a)
                   for layer, a in zip(strategy.adapted.values(), earlier, strict=True))
    assert ends[5.0] < 0.1 < ends[0.0]


# inflora: subspaces


def data(count, size, rank, seed=0):
    """Return inputs [count, size] in a subspace, with energies that fall off."""
    generator = np.random.default_rng(seed)
    scales = 2.0 ** -np.arange(rank)
    return generator.normal(size=(count, rank)) * scales @ generator.normal(size=(rank, size))


def moment(x):
    return torch.from_numpy(x.T @ x)


def projector(basis):
    return torch.from_numpy(basis @ basis.T)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 1.0])
def test_the_first_subspace_is_the_fewest_singular_vectors_that_hold_the_threshold(threshold):
    x = data(40, 12, 7)
    _, s, v = np.linalg.svd(x, full_matrices=False)
    shares = np.cumsum(s**2) / (s**2).sum()
    wanted = next(k for k in range(1, 13) if shares[k - 1] >= threshold - 1e-12)
    found = grown(moment(x), torch.zeros(12, 12, dtype=torch.float64), threshold)
    np.testing.assert_allclose(found.numpy(), v[:wanted].T @ v[:wanted], atol=1e-9)


@pytest.mark.parametrize("threshold", [0.6, 0.95])
def test_a_subspace_grows_by_what_it_does_not_hold(threshold):
    old, x = data(40, 12, 2, seed=1), data(40, 12, 9, seed=2)
    basis = np.linalg.svd(old, full_matrices=False)[2][:2].T
    outside = x - x @ basis @ basis.T
    _, s, v = np.linalg.svd(outside, full_matrices=False)
    held = ((x @ basis)**2).sum() + np.concatenate([[0], np.cumsum(s**2)])
    wanted = int(np.argmax(held >= threshold * (x**2).sum()))
    found = grown(moment(x), projector(basis), threshold).numpy()
    np.testing.assert_allclose(found, basis @ basis.T + v[:wanted].T @ v[:wanted], atol=1e-9)
    assert wanted > 0
    np.testing.assert_allclose(found @ found, found, atol=1e-9)
    assert np.allclose(grown(moment(x), torch.from_numpy(found), threshold), found)  # it holds enough already


def by_the_reference(c, basis, threshold):
    """Return the basis [d, k] that InfLoRA's code keeps, by its rule: from the second moment C [d, d], not from C^2."""
    total = (np.linalg.svd(c, compute_uv=False)**2).sum()
    if basis is None:
        u, s, _ = np.linalg.svd(c)
        return u[:, :max(int((np.cumsum(s**2) / total < threshold).sum()), 1)]
    u, s, _ = np.linalg.svd(c - basis @ basis.T @ c)
    count, held = 0, 1 - (s**2).sum() / total
    while held < threshold:
        held += s[count]**2 / total
        count += 1
    return np.hstack([basis, u[:, :count]])


@pytest.mark.parametrize(("thresholds", "counts"), [
    ((0.5, 0.5), (1, 2)), ((0.95, 0.96, 0.99), (1, 2, 4)), ((0.999, 0.999, 0.999), (2, 4, 7))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_are_kept_by_the_criterion_of_the_reference_code(thresholds, counts, dtype):
    basis, kept = None, torch.zeros(12, 12, dtype=dtype)
    for seed, (threshold, wanted) in enumerate(zip(thresholds, counts, strict=True)):
        x = data(40, 12, 9, seed=seed)
        basis = by_the_reference(x.T @ x / len(x), basis, threshold)
        kept = grown(moment(x).to(dtype) / len(x), kept, threshold, "moment").to(dtype)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(kept.numpy(), basis @ basis.T, atol=tolerance)
        assert basis.shape[1] == wanted


def test_the_criterion_of_the_moment_keeps_no_rounding_errors():
    x = data(40, 12, 7)
    for dtype in (torch.float64, torch.float32):
        one = grown(moment(x).to(dtype), torch.zeros(12, 12, dtype=dtype), 0.5, "moment").to(dtype)
        assert grown(moment(x).to(dtype), one, 1.0, "moment").trace().item() == pytest.approx(7, abs=1e-4)
        nothing = torch.zeros(12, 12, dtype=dtype)
        assert not grown(nothing, nothing, 0.9, "moment").any()


def test_old_records_of_inflora_were_made_by_the_criterion_of_the_inputs():
    assert InfLoRAOptions.stored({"rank": 2}).criterion == "inputs"
    assert InfLoRAOptions().criterion == "moment" == InfLoRAOptions().model_dump()["criterion"]
    assert "criterion" not in InfLoRAOptions(criterion="inputs").model_dump()


def test_o_lora_has_the_adapters_of_its_reference_code_by_default():
    strategy = OLoRA(make_model(), make_stream_info(), OLoRAOptions(base="random"))
    for layer in strategy.adapted.values():
        assert (layer.rank, layer.scaling, layer.lora_dropout.p) == (8, 4.0, 0.1)


def test_designed_rows_are_the_singular_vectors_outside_the_subspace():
    x, basis = data(50, 10, 8), np.linalg.qr(np.random.default_rng(3).normal(size=(10, 4)))[0]
    a = design(moment(x), projector(basis), 3).numpy()
    v = np.linalg.svd(x - x @ basis @ basis.T, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(a @ v.T), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(a @ basis, 0, atol=1e-12)
    assert (np.take_along_axis(a, np.abs(a).argmax(1)[:, None], 1) > 0).all()


def test_there_is_nothing_to_design_where_the_subspace_holds_all():
    x = data(50, 10, 5)
    whole = grown(moment(x), torch.zeros(10, 10, dtype=torch.float64), 1.0)
    assert not design(moment(x), whole, 3).any()
    a = design(moment(x + 0.1 * data(50, 10, 1, seed=8)), whole, 3)
    assert (a.norm(dim=1) > 0.5).tolist() == [True, False, False]
    torch.testing.assert_close(a @ whole, torch.zeros_like(a), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [1, 6, 7])
def test_half_of_a_projector_is_kept(size):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0][:, :size // 2]
    numbers = packed(projector(basis))
    assert numbers.shape == (size * (size + 1) // 2,)
    torch.testing.assert_close(unpacked(numbers, size), projector(basis))


@pytest.mark.parametrize("geometry", [
    {}, {"stride": 2, "padding": 1}, {"stride": (1, 2), "padding": (2, 0), "dilation": 2},
    {"padding": "same", "padding_mode": "circular"}, {"padding": 1, "padding_mode": "reflect"}])
def test_rows_are_what_a_layer_multiplies_its_weight_with(geometry):
    conv = nn.Conv2d(3, 8, 3, bias=False, **geometry).double()
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    out = rows(conv, x) @ conv.weight.flatten(1).T
    torch.testing.assert_close(out.unflatten(0, (2, -1)).transpose(1, 2), conv(x).flatten(2))
    linear, tokens = nn.Linear(5, 2, bias=False), torch.rand(2, 3, 5)
    torch.testing.assert_close(rows(linear, tokens) @ linear.weight.T, linear(tokens).flatten(0, 1))


# inflora: the strategy


def low_rank_task(index, rank, seed):
    task = make_task(index)
    x = torch.from_numpy(data(24, 64, rank, seed)).view(24, *IMAGE)
    return Task(index, task.classes, Samples(x, task.train.y, task.train.tasks))


def test_inflora_designs_a_outside_what_is_kept_and_trains_b_only():
    strategy = make("inflora", dtype=torch.float64)
    learn(strategy, double(make_task(0)))
    kept = {name: strategy.stored_projector(name).clone() for name in strategy.adapted}
    assert all(p.trace() > 0 for p in kept.values())
    task = double(make_task(1))
    begin(strategy, task)
    strategy.before_phase(task, 0)
    designed = {name: layer.lora_A[1].weight.clone() for name, layer in strategy.adapted.items()}
    for name, a in designed.items():
        torch.testing.assert_close(a @ kept[name], torch.zeros_like(a), atol=1e-10, rtol=0)
        torch.testing.assert_close(a @ a.T, torch.eye(2, dtype=torch.float64))
    x = task.train.x.flatten(1).numpy()
    p = kept["blocks.0.body.1"].numpy()
    v = np.linalg.svd(x - x @ p)[2][:2]
    np.testing.assert_allclose(np.abs(designed["blocks.0.body.1"].numpy() @ v.T), np.eye(2), atol=1e-8)
    steps(strategy, task)
    for name, layer in strategy.adapted.items():
        assert torch.equal(layer.lora_A[1].weight, designed[name])
        assert layer.lora_B[1].weight.any()


def test_a_design_from_second_moments_is_the_authors_singular_vectors():
    strategy = make("inflora", dtype=torch.float64, design="moment")
    learn(strategy, double(make_task(0)))
    kept = strategy.stored_projector("blocks.0.body.1").numpy().copy()
    task = double(make_task(1))
    begin(strategy, task)
    strategy.before_phase(task, 0)
    a = strategy.adapted["blocks.0.body.1"].lora_A[1].weight.numpy()
    x = task.train.x.flatten(1).numpy()
    moment = x.T @ x / len(x)
    theirs = np.linalg.svd(moment - kept @ moment)[0][:, :2].T  # methods/inflora.py: U of cur_matrix - P cur_matrix
    np.testing.assert_allclose(np.abs(a @ theirs.T), np.eye(2), atol=1e-7)
    inputs = np.linalg.svd(x - x @ kept)[2][:2]
    assert np.abs(np.abs(theirs @ inputs.T) - np.eye(2)).max() > 1e-3, "the two designs should differ here"


def test_by_default_the_output_of_inflora_is_scaled_as_the_authors_rows_of_a_are():
    strategy = make("inflora", dtype=torch.float64)
    task = double(make_task(0))
    begin(strategy, task)
    strategy.before_phase(task, 0)
    layer = strategy.adapted["blocks.0.body.1"]
    a, b = layer.lora_A[0].weight, layer.lora_B[0].weight
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    theirs = x @ (a / np.sqrt(3)).T @ b.T
    torch.testing.assert_close(layer(x) - layer.base_layer(x), theirs)


def test_the_scale_of_inflora_is_settled_in_the_plan_and_none_is_what_records_have():
    def alpha(method):
        return plan(build({"methods": [method], "scenario": "class", "seeds": 1}), discover())[0].trial.method.options

    options = alpha("inflora")
    assert options["alpha"] == pytest.approx(10 / np.sqrt(3)) and options["rank"] == 10 and "design" not in options
    assert alpha("inflora:rank=6:alpha=auto")["alpha"] == pytest.approx(6 / np.sqrt(3))
    assert alpha("inflora:rank=6:scaling=rslora")["alpha"] == pytest.approx(np.sqrt(6 / 3))
    with pytest.raises(ValueError, match="alpha = auto is for one rank; with rank_pattern, choose alpha"):
        InfLoRAOptions(rank_pattern={"a": 2})
    assert alpha("inflora:alpha=none")["alpha"] is None and alpha("inflora:alpha=2")["alpha"] == 2
    assert alpha("inflora:design=moment")["design"] == "moment"
    for wrong in ("0", "-1", "true", "most"):
        with pytest.raises(SpecError, match=r"inflora\.alpha"):
            alpha(f"inflora:alpha={wrong}")


def test_what_is_kept_whole_answers_as_before():
    strategy = make("inflora", dtype=torch.float64, threshold=1.0, criterion="inputs")
    first, second = low_rank_task(0, 3, seed=1), low_rank_task(1, 20, seed=2)
    learn(strategy, first)
    before = [answer(strategy, None, task.train.x).logits for task in (first, second)]
    learn(strategy, second)
    old, new = (answer(strategy, None, task.train.x).logits for task in (first, second))
    torch.testing.assert_close(old[:, :2], before[0][:, :2], rtol=1e-9, atol=1e-9)
    assert (new[:, :2] - before[1][:, :2]).abs().max() > 1e-3


def test_what_is_kept_whole_answers_as_before_behind_convolutions():
    model = Network([Block(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()))],
                    nn.Linear(16, 6)).double()
    stream_info = StreamInfo(6, 3, "class", (3, 8, 8), torch.Generator(), prepare=torch.Tensor.double)
    strategy = InfLoRA(model, stream_info, InfLoRAOptions(rank=2, base="random", threshold=1.0,
                                                          criterion="inputs"))
    first, second = (Task(i, (2 * i, 2 * i + 1), Samples(torch.rand(24, 3, 8, 8, dtype=torch.float64),
                                                         torch.arange(24) % 2 + 2 * i, torch.full((24,), i)))
                     for i in range(2))
    first.train.x[:, 1:] = 0  # so that its patches are in 9 of 27 dimensions
    learn(strategy, first)
    assert strategy.stored_projector("blocks.0.body").trace().item() == pytest.approx(9)
    before = [answer(strategy, None, task.train.x).logits for task in (first, second)]
    learn(strategy, second)
    old, new = (answer(strategy, None, task.train.x).logits for task in (first, second))
    torch.testing.assert_close(old[:, :2], before[0][:, :2], rtol=1e-9, atol=1e-9)
    assert (new[:, :2] - before[1][:, :2]).abs().max() > 1e-3


def test_what_is_not_kept_changes():
    strategy = make("inflora", dtype=torch.float64, threshold=0.3, final_threshold=0.3)
    first = low_rank_task(0, 6, seed=1)
    learn(strategy, first)
    before = answer(strategy, None, first.train.x).logits
    learn(strategy, low_rank_task(1, 20, seed=2))
    assert (answer(strategy, None, first.train.x).logits[:, :2] - before[:, :2]).abs().max() > 1e-3


@pytest.mark.parametrize("criterion", ["inputs", "moment"])
def test_the_threshold_rises_from_task_to_task(criterion):
    strategy = make("inflora", dtype=torch.float64, threshold=0.7, final_threshold=1.0, criterion=criterion)
    for i in range(3):
        task = double(make_task(i))
        before = strategy.stored_projector("blocks.0.body.1").clone()
        learn(strategy, task)
        expected = grown(moment(task.train.x.flatten(1).numpy()), before, 0.7 + 0.3 * i / 3, criterion)
        torch.testing.assert_close(strategy.stored_projector("blocks.0.body.1"), expected, atol=1e-9, rtol=0)


def test_heads_answer_together_and_are_trained_on_their_own_classes():
    strategy = make("inflora")
    assert torch.equal(answer(strategy).logits, make_model()(inputs()))
    for i in range(2):
        learn(strategy, make_task(i))
    logits, features = answer(strategy).logits, strategy.model.features(inputs())
    together = torch.cat([features @ h.weight.T + h.bias for h in strategy.heads], 1)
    torch.testing.assert_close(logits[:, :4], together.detach())
    torch.testing.assert_close(logits[:, 4:], strategy.model.head(features)[:, 4:].detach())
    task = make_task(2)
    begin(strategy, task)  # which lets the task's own classes compete, as the harness does by default
    head = strategy.heads[2]
    own = strategy.model.features(task.train.x) @ head.weight.T + head.bias
    torch.testing.assert_close(strategy.loss(as_batch(task)),
                               nn.functional.cross_entropy(own, task.train.y - 4))


def test_classes_that_come_back_keep_their_head():
    strategy = make("inflora", scenario="domain")
    for i in range(3):
        assert learn(strategy, make_task(i, classes=(0, 1))) == [2 * (12 + 12) + 12 * 2 + 2]
    assert len(strategy.heads) == 1
    learned = make("inflora")
    learn(learned, make_task(0, classes=(0, 1)))
    learn(learned, make_task(1, classes=(1, 2)))
    assert measure(learned).bytes["subspaces"] == 4 * (64 * 65 // 2 + 12 * 13 // 2)
    assert learned.classes == [(0, 1), (2,)] and learned.current == [0, 1]


def test_the_published_setting_trains_192_010_parameters_per_task():
    # ViT-B/16, rank 10 on k and v of its 12 blocks, heads of 10 classes: 2 * 12 * 10 * 768 + 10 * 768 + 10.
    registry = discover()
    with torch.device("meta"):
        model, _ = build_model(Resolved(name="vit-b16", options=registry.model("vit-b16").options().model_dump()), None,
                               (3, 224, 224), 100, registry)
        none = torch.empty(2, 3, 224, 224)
    stream_info = StreamInfo(100, 10, "class", (3, 224, 224), torch.Generator(), pretrained=True)
    method = Resolved(name="inflora", options={"rank": 10, "layers": r".*\.attention\.[kv]", "base": "pretrained"})
    strategy = build_strategy(method, model, stream_info, registry)
    for index in range(2):
        classes = tuple(range(10 * index, 10 * index + 10))
        task = Task(index, classes, Samples(none, torch.tensor(classes[:2]), torch.full((2,), index)))
        strategy.before_task(task)
        trained = {n: p.numel() for n, p in strategy.named_parameters() if p.requires_grad}
        assert sum(trained.values()) == 2 * 12 * 10 * 768 + 10 * 768 + 10 == 192_010
        assert len(trained) == 24 + 2
        assert {math.prod(layer.lora_A[-1].weight.shape) for layer in strategy.adapted.values()} == {7680}
        strategy.after_task(task)


@pytest.mark.parametrize("method", VARIANTS)
def test_the_head_has_a_rate_of_its_own(method):
    strategy = make(method, head_rate=10.0)
    strategy.before_task(make_task(0))
    rates = rates_of(strategy, [name for name, p in strategy.named_parameters() if p.requires_grad], Recipe())
    heads = {name for name in rates if "head" in name}
    assert {rates[name] for name in heads} == {10.0} and len(heads) == 2
    assert {rates[name] for name in rates.keys() - heads} == {1.0} and rates.keys() - heads
    assert make(method).learning_rates() == {}
