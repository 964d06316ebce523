import dataclasses

import pytest
import torch
from clbench_lora import SDLoRAOptions
from clbench_lora.sdlora import SDLoRA
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
from helpers.per_task import steps as train
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.data.samples import Samples
from clbench.models.network import Block, Network
from clbench.strategy.base import Task
from clbench.training.costs import measure

FORMS = [{}, {"norm": "product"}, {"magnitudes": "layer"}, {"magnitudes": "layer", "norm": "product", "alpha": 3.0}]


def make(kind="mlp", seed=0, scenario="class", model=None, **options):
    stream_info = dataclasses.replace(make_stream_info(scenario), prepare=lambda x: x.double())
    model = make_model(kind, seed=seed, dtype=torch.float64) if model is None else model
    return SDLoRA(model, stream_info, SDLoRAOptions(**{"rank": 2, "base": "random", **options}))


def double(task):
    return Task(task.index, task.classes, Samples(task.train.x.double(), task.train.y, task.train.tasks))


def one_layer(**options):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    return make(model=Network([Block(body, nn.Identity())], nn.Linear(5, 6)).double(), **options)


def factors(layer, i):
    return tuple(part[i].weight.detach().flatten(1) for part in (layer.lora_A, layer.lora_B))


def by_hand(strategy, x):
    """Return the logits of a plain network with W + sum of a_i BA_i / norm_i + a_t s BA_t, written anew."""
    kind = "cnn" if any(isinstance(m, nn.Conv2d) for m in strategy.model.modules()) else "mlp"
    plain = make_model(kind, dtype=x.dtype)
    for number, (name, layer) in enumerate(strategy.adapted.items()):
        weight = layer.base_layer.weight.detach().clone()
        for i, magnitude in enumerate(strategy.magnitudes):
            a, b = factors(layer, i)
            direction = b @ a
            if i + 1 == len(strategy.magnitudes):
                direction = layer.scaling * direction
            elif strategy.options.norm == "product":
                direction = direction / torch.linalg.matrix_norm(direction)
            else:
                direction = direction / (a.square().sum() * b.square().sum()).sqrt()
            weight += magnitude.detach().expand(len(strategy.adapted))[number] * direction.view_as(weight)
        plain.get_submodule(name).weight.data = weight
    return strategy.model.head(plain.features(x)).detach()


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_it_is_the_dense_network_of_its_formula(kind, options):
    strategy, x = make(kind, **options), inputs(dtype=torch.float64)
    for i in range(3):
        learn(strategy, double(make_task(i)))
        torch.testing.assert_close(answer(strategy, None, x).logits, by_hand(strategy, x), rtol=1e-10, atol=1e-12)
    assert torch.equal(answer(strategy, 0, x).logits, answer(strategy, None, x).logits)


@pytest.mark.parametrize("options", FORMS)
def test_earlier_directions_stay_bit_for_bit_while_all_magnitudes_learn(options):
    strategy = make(**options)
    learn(strategy, double(make_task(0)))
    learn(strategy, double(make_task(1)))
    old = [[p.clone() for i in range(2) for p in layer.parameters_of(i).values()]
           for layer in strategy.adapted.values()]
    begin(strategy, double(make_task(2)))
    before = [m.clone() for m in strategy.magnitudes]
    lengths = strategy.lengths.clone()
    train(strategy, double(make_task(2)))
    for layer, kept in zip(strategy.adapted.values(), old, strict=True):
        assert all(torch.equal(p, was) for p, was in zip(
            (p for i in range(2) for p in layer.parameters_of(i).values()), kept, strict=True))
    assert torch.equal(strategy.lengths, lengths) and torch.equal(lengths[2], torch.ones_like(lengths[2]))
    assert all((m != was).all() for m, was in zip(strategy.magnitudes, before, strict=True))


@pytest.mark.parametrize("magnitudes", ["shared", "layer"])
def test_a_task_begins_with_the_network_as_it_was_or_with_all_magnitudes_anew(magnitudes):
    for norm in ("product", "factors"):
        strategy = make(magnitudes=magnitudes, norm=norm)
        x = inputs(dtype=torch.float64)
        for i in range(2):
            learn(strategy, double(make_task(i)))
        before = answer(strategy, None, x).logits
        begin(strategy, double(make_task(2)))
        after = answer(strategy, None, x).logits
        if magnitudes == "layer":
            torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
            assert all(len(m) == 2 for m in strategy.magnitudes) and (strategy.magnitudes[-1] == 0.8).all()
        else:
            assert not torch.allclose(after, before)
            assert [m.tolist() for m in strategy.magnitudes] == [[0.8]] * 3


def test_gradients_of_the_magnitudes_in_closed_form():
    strategy = one_layer(norm="product", magnitude=1.3)
    for i in range(2):
        learn(strategy, double(make_task(i)))
    task = double(make_task(2))
    begin(strategy, task)
    train(strategy, task, count=2)
    layer, = strategy.adapted.values()
    strategy.loss(as_batch(task)).backward()
    x, head = task.train.x.flatten(1), strategy.model.head.weight.detach()
    share = nn.functional.pad(strategy(task.train.x)[:, 4:].detach().softmax(1), (4, 0))  # the task's own classes
    share[torch.arange(len(x)), task.train.y] -= 1
    of_h = share @ head / len(x)
    for i, magnitude in enumerate(strategy.magnitudes):
        a, b = factors(layer, i)
        direction = b @ a if i == 2 else b @ a / (b @ a).square().sum().sqrt()
        torch.testing.assert_close(magnitude.grad, (of_h * (x @ direction.T)).sum()[None])
    newest = layer.parameters_of(-1)
    a, b = factors(layer, 2)
    alpha = strategy.magnitudes[-1].detach()
    torch.testing.assert_close(newest["lora_B.weight"].grad, alpha * of_h.T @ x @ a.T)
    torch.testing.assert_close(newest["lora_A.weight"].grad, alpha * b.T @ of_h.T @ x)
    assert layer.lora_A[0].weight.grad is None


def test_a_shared_magnitude_has_the_sum_of_its_layers_gradients():
    gradients = {}
    for magnitudes in ("shared", "layer"):
        strategy = make(magnitudes=magnitudes)
        learn(strategy, double(make_task(0)))
        with torch.no_grad():  # the same network in both forms
            for parameter in strategy.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).view_as(parameter))
        begin(strategy, double(make_task(1)))
        with torch.no_grad():
            for magnitude in strategy.magnitudes:
                magnitude.fill_(0.8)
            for layer in strategy.adapted.values():
                for parameter in layer.parameters_of(-1).values():
                    parameter.fill_(0.1)
        strategy.loss(as_batch(double(make_task(1)))).backward()
        gradients[magnitudes] = [m.grad for m in strategy.magnitudes]
    for shared, each in zip(gradients["shared"], gradients["layer"], strict=True):
        torch.testing.assert_close(shared, each.sum()[None])
        assert (each != 0).all()


def test_a_direction_that_was_not_learned_does_no_harm():
    strategy = make(norm="product")
    begin(strategy, double(make_task(0)))  # B stays 0
    learn(strategy, double(make_task(1)))
    assert torch.isfinite(answer(strategy, None, inputs(dtype=torch.float64)).logits).all()
    assert torch.equal(strategy.lengths[0], torch.ones_like(strategy.lengths[0]))


def test_ranks_fall_from_a_task_on_and_only_where_they_are_higher():
    strategy = make(rank=5, rank_pattern={r"blocks\.1\..*": 3}, later_ranks={"3": 2, "2": 4})
    for i in range(3):
        learn(strategy, double(make_task(i)))
    found = [[len(a.weight) for a in layer.lora_A] for layer in strategy.adapted.values()]
    assert found == [[5, 4, 2], [3, 3, 2]]
    x = inputs(dtype=torch.float64)
    torch.testing.assert_close(answer(strategy, None, x).logits, by_hand(strategy, x), rtol=1e-10, atol=1e-12)


def test_with_task1_the_base_learns_first_and_without_adapters():
    strategy, task = make(base="task1"), double(make_task(0))
    begin(strategy, task)
    assert not strategy.magnitudes[0].requires_grad
    head = 12 * 6 + 6
    assert train(strategy, task) == head + sum(p.numel() for n, p in strategy.model.blocks.named_parameters()
                                               if "lora_" not in n)
    strategy.before_phase(task, 1)
    assert train(strategy, task) == head + 1 + 2 * (64 + 12 + 12 + 12)
    assert measure(strategy).parameters["magnitudes"] == 1


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("options", FORMS[::2])
def test_two_seeds_stacked_equal_one_by_one(kind, options):
    check_stacking(lambda seed: make_single(kind, seed, **options))


def make_single(kind, seed, **options):
    settings = SDLoRAOptions(rank=2, base="random", **options)
    return SDLoRA(make_model(kind, seed=seed), make_stream_info("class"), settings)


@pytest.mark.parametrize("raw", [{"later_ranks": {"a": 2}}, {"later_ranks": {"2": 0}},
                                 {"later_ranks": {"0": 2}}, {"magnitude": 0}, {"norm": "rows"}, {"magnitudes": "none"}])
def test_bad_options_are_refused(raw):
    with pytest.raises(SpecError, match=f"sd-lora.{next(iter(raw))}"):
        validate(SDLoRAOptions, raw, "sd-lora", "clbench methods")


@pytest.mark.parametrize(("raw", "message"), [
    ({"later_ranks": {"2": 10}}, "rank 10 from task 2 on is not below the earlier rank 10"),
    ({"later_ranks": {"3": 5, "2": 4}}, "rank 5 from task 3 on is not below the earlier rank 4")])
def test_later_ranks_that_do_not_fall_are_refused(raw, message):
    with pytest.raises(SpecError, match=f"sd-lora.later_ranks: {message}; choose lower ranks"):
        validate(SDLoRAOptions, raw, "sd-lora", "clbench methods")
    assert validate(SDLoRAOptions, {**raw, "rank_pattern": {"x": 11}, "later_ranks": {"2": 10}}, "sd-lora", "")


def test_ranks_of_tasks_that_there_are_not_are_refused():
    with pytest.raises(SpecError, match="later_ranks has a rank from task 4 on, and there are 3 tasks; leave it out"):
        make(rank=5, later_ranks={"2": 4, "4": 2})
