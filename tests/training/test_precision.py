import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Strategy
from clbench.strategy.regularization import quadratic_penalty
from clbench.training import precision
from clbench.training.precision import FoldedAttention


def test_bf16_rounds_products_and_keeps_weights():
    x, w = torch.rand(8, 64), torch.rand(64, 8)
    with precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu")):
        assert (x @ w).dtype == torch.bfloat16
    with precision.autocast_context(Recipe(), torch.device("cpu")):
        assert (x @ w).dtype == torch.float32


def rounded_once():
    """Return the context that keeps rounded weights, as a large module that is frozen gets it."""
    many = nn.Linear(1024, 1025).requires_grad_(False)
    return precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu"), many)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 1)])
def test_a_frozen_weight_is_rounded_once_to_what_autocast_makes_of_it(layer):
    layer.requires_grad_(False)
    x = torch.rand(3, 6, *[1] * (layer.weight.dim() - 2))
    context = rounded_once()
    for change in (lambda: None, lambda: layer.weight.mul_(2), lambda: setattr(layer.weight, "data", -layer.weight)):
        change()
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
        for _ in range(2):
            with context:
                found = layer(x)
        assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    assert len(context.copies) == 2  # and its bias
    layer.requires_grad_(True)
    with context:
        assert torch.autograd.grad(layer(x).sum(), layer.weight)[0].dtype == torch.float32


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 1)])
def test_a_stack_is_rounded_like_one_alone(layer):
    """Autocast alone leaves convolutions in float32 under vmap, and adds biases in float32."""
    x = torch.rand(4, 3, 6, *[1] * (layer.weight.dim() - 2))
    weights = {n: torch.stack([p.detach() * (k + 1) for k in range(4)]) for n, p in layer.named_parameters()}
    with precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu"), layer, stacked=True):
        found = torch.func.vmap(lambda w, x: torch.func.functional_call(layer, w, (x,)))(weights, x)
    with precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu")):
        expected = torch.stack([torch.func.functional_call(layer, {n: w[k] for n, w in weights.items()}, (x[k],))
                                for k in range(4)])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)])
@pytest.mark.parametrize("training", [True, False])
def test_normalization_is_rounded_in_a_stack_like_alone(kind, training):
    layer = kind(5).train(training)
    x = torch.randn(4, 6, 5, 3, 3).bfloat16()  # as a convolution returns it
    results = []
    for stacked in (True, False):
        state = {n: torch.stack([t.detach() * (k + 1) for k in range(4)]) for n, t in layer.state_dict().items()}
        weight = state["weight"].requires_grad_()
        with precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu"), layer, stacked=stacked):
            def outputs(state, x):
                return torch.func.functional_call(layer, state, (x,))

            out = torch.func.vmap(outputs)(state, x) if stacked else torch.stack(
                [outputs({n: t[k] for n, t in state.items()}, x[k]) for k in range(4)])
        assert out.dtype == torch.bfloat16
        gradient, = torch.autograd.grad(out.float().sin().sum(), weight)
        results.append((out, {n: t.detach() for n, t in state.items()}, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=2**-6, atol=2**-6)


def test_a_penalty_stays_in_float32_in_a_stack():
    """Under vmap, `torch.dot` is a matrix product, which autocast alone would round."""
    importance, shift = torch.rand(3, 50) * 100, torch.randn(3, 50, requires_grad=True)
    with precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu"), stacked=True):
        penalties = torch.func.vmap(lambda f, d: quadratic_penalty(1.0, torch.zeros(()), [(f, d)]))(importance, shift)
    gradient, = torch.autograd.grad(penalties.sum(), shift)
    torch.testing.assert_close(penalties, (importance * shift**2).sum(1) / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, importance * shift, rtol=1e-5, atol=0)


def attended(context, tokens, learns=True, **kwargs):
    """Return the result of attention in a context, and the gradients of its inputs."""
    torch.manual_seed(0)
    inputs = [torch.rand(2, 3, tokens, 8, dtype=torch.bfloat16, requires_grad=learns) for _ in range(3)]
    with context:
        result = F.scaled_dot_product_attention(*inputs, **kwargs)
    return result, *(torch.autograd.grad(result.sum(), inputs) if learns else ())


@pytest.mark.parametrize("masked", [None, torch.bool, torch.bfloat16])
def test_short_attention_with_gradients_is_that_of_float32_rounded(masked):
    mask = {} if masked is None else {"attn_mask": torch.arange(9).remainder(2).eq(0).expand(9, 9).to(masked)}
    torch.manual_seed(0)
    inputs = [torch.rand(2, 3, 9, 8, dtype=torch.bfloat16).double().requires_grad_() for _ in range(3)]
    weights = inputs[0] @ inputs[1].mT / 8**0.5
    if masked is torch.bool:
        weights = weights.masked_fill(~mask["attn_mask"], float("-inf"))
    elif masked is not None:
        weights = weights + mask["attn_mask"]
    exact = weights.softmax(-1) @ inputs[2]
    expected = (exact, *torch.autograd.grad(exact.sum(), inputs))
    found = attended(rounded_once(), 9, **mask)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)  # no more than the last rounding


@pytest.mark.parametrize(("tokens", "learns"), [(precision.SHORT + 1, True), (9, False)])
def test_other_attention_is_left_as_it_is(tokens, learns):
    for one, other in zip(attended(rounded_once(), tokens, learns),
                          attended(torch.autocast("cpu", torch.bfloat16), tokens, learns), strict=True):
        assert torch.equal(one, other)


def test_short_attention_in_a_stack_is_that_of_its_members():
    inputs = [torch.rand(4, 2, 3, 9, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    autocast = precision.autocast_context(Recipe(precision="bf16"), torch.device("cpu"), stacked=True)
    with autocast, FoldedAttention() as folding:
        found = torch.func.vmap(F.scaled_dot_product_attention)(*inputs)
    with rounded_once():
        expected = torch.stack([F.scaled_dot_product_attention(*(t[k] for t in inputs)) for k in range(4)])
    assert folding.calls == 1
    pairs = zip(*(torch.autograd.grad(result.sum(), inputs) for result in (found, expected)), strict=True)
    assert torch.equal(found, expected) and all(torch.equal(one, other) for one, other in pairs)


def test_products_by_keyword_and_where_autocast_is_off():
    layer, x = torch.nn.Linear(8, 3).requires_grad_(False), torch.rand(2, 8)
    with rounded_once():
        assert F.linear(input=x, weight=layer.weight, bias=layer.bias).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == F.linear(x, layer.weight.clone().requires_grad_()).dtype == torch.float32


def test_tf32_is_switched_on_inside_only():
    before = torch.get_float32_matmul_precision()
    with precision.allow_tf32(Recipe(precision="tf32")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_only_losses_and_predictions_are_rounded(tmp_path_factory):
    rounded = {}

    def noting(name):
        def call(self, *args):
            rounded.setdefault(name, set()).add(torch.is_autocast_enabled("cpu"))
            return getattr(Strategy, name)(self, *args)
        return call

    names = ("before_task", "prepare_batch", "loss", "edit_gradients", "after_task", "predict")
    cls = type("Notes", (Strategy,), {name: noting(name) for name in names})
    plugin = types.ModuleType("notes")
    plugin.clbench_strategies = hookimpl(specname="clbench_strategies")(lambda: [StrategyInfo("notes", cls, "")])
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "precision"), "cpu", "a test",
                         discover([plugin]))
    one = plan(build({"methods": "notes", "model": "mlp:width=8", "seeds": 1,
                      "recipe": {"precision": "bf16", "iterations": 2}}), runner.registry)[0]
    assert runner.run(one).status == "done"
    assert rounded == {name: {name in ("loss", "predict")} for name in names}


@pytest.mark.parametrize("method", ["ewc", "lora", *(pytest.param(method, marks=pytest.mark.slow) for method in (
    "er", "pnn", "shared-private"))])
def test_every_method_learns_in_bf16_alone_and_stacked(method, tmp_path_factory):
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "precision"), "cpu", "a test")
    group = plan(build({"methods": method, "seeds": 2, "model": "mlp:width=32", "scenario": "class",
                        "recipe": {"precision": "bf16", "iterations": 12, "lr": 0.01}}), runner.registry)
    alone = runner.run(group[0])
    stacked = runner.run_stack(group)
    assert [r.status for r in (alone, *stacked)] == ["done"] * 3
    assert not stacked[0].notes
    assert alone.R[1][0] > 0.8 and abs(alone.R[1][0] - stacked[0].R[1][0]) < 0.1
    assert alone.costs.bytes == stacked[0].costs.bytes
