"""Orthogonal subspace fine-tuning, by hand and against PEFT's."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from clbench_osf import OSFOptions
from clbench_osf.layers import LOW, DividedConv2d, DividedLinear
from clbench_osf.strategy import OSF
from helpers.language_models import load, quiet
from helpers.language_runs import LanguageRuns, as_batch, as_transformers, learn, logits, task_batches
from helpers.per_task import TASKS, answer, begin, make_model, make_stream_info, make_task, steps
from helpers.stacks import lead
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.models.network import Block, Network
from clbench.strategy.base import Batch
from clbench.testing.tiny import MODELS
from clbench.training.costs import measure

LM = pytest.mark.extra("lm")


def make(model="mlp", dtype=torch.float64, **options):
    return OSF(make_model(model, dtype=dtype), make_stream_info(), OSFOptions(**{"base": "random", **options}))


def task_of(index):
    task = make_task(index)
    object.__setattr__(task.train, "x", task.train.x.double())
    return task


def whole(strategy):
    """Return the weights with all their parts, by layer."""
    return {name: (layer.base_layer.weight if layer.u_low is None else layer.base_layer.weight + layer.low().view_as(
        layer.base_layer.weight)).detach()
            for name, layer in strategy.divided.items()}


def test_a_divided_layer_is_the_layer():
    layer = DividedLinear(nn.Linear(7, 5).double())
    weight, x = layer.base_layer.weight.detach().clone(), torch.randn(3, 7).double()
    before = layer(x)
    layer.divide(0.45)  # 2 of 5 are fixed
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert [getattr(layer, name).shape for name in LOW] == [(5, 3), (3,), (3, 7)]
    torch.testing.assert_close(layer(x), before)
    # timm's ConViT and XCiT read the weight of a layer and do not call it.
    torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), before)
    torch.testing.assert_close(layer.base_layer.weight, (u[:, :2] * s[:2]) @ v[:2])
    torch.testing.assert_close(layer.u_high @ layer.u_high.T, u[:, :2] @ u[:, :2].T)
    layer.join()
    torch.testing.assert_close(layer.base_layer.weight, weight)
    assert not any(getattr(layer, name) is not None for name in (*LOW, "u_high", "v_high"))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_divided_convolution_is_the_convolution(padding_mode):
    torch.manual_seed(0)
    layer = DividedConv2d(nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, padding_mode=padding_mode).double())
    assert (layer.kernel_size, layer.stride) == ((3, 2), (2, 2))  # timm's DaViT reads them to pad its input
    weight, x = layer.base_layer.weight.detach().clone(), torch.randn(4, 3, 7, 6).double()
    before = layer(x)
    layer.divide(0.45)  # 2 of 5 are fixed
    u, s, v = torch.linalg.svd(weight.reshape(5, 18), full_matrices=False)
    assert [getattr(layer, name).shape for name in LOW] == [(5, 3), (3,), (3, 18)]
    torch.testing.assert_close(layer.base_layer.weight, ((u[:, :2] * s[:2]) @ v[:2]).view(5, 3, 3, 2))
    torch.testing.assert_close(layer(x), before)
    with torch.no_grad():
        layer.s_low.mul_(2)  # the small directions count twice
    moved = ((u * (s * torch.tensor([1, 1, 2, 2, 2]).double())) @ v).view(5, 3, 3, 2)
    whole = nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, padding_mode=padding_mode).double()
    whole.load_state_dict({"weight": moved, "bias": layer.base_layer.bias})
    torch.testing.assert_close(layer(x), whole(x))
    layer.join()
    torch.testing.assert_close(layer.base_layer.weight, moved)
    torch.testing.assert_close(layer(x), whole(x))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_steps_of_sgd_change_nothing_within_the_large_directions(model):
    strategy = make(model, preserved=0.5)
    for index in range(2):
        task = task_of(index)
        begin(strategy, task)
        before = whole(strategy)
        learning = {name for name, p in strategy.named_parameters() if p.requires_grad}
        assert learning == {f"model.{name}.{part}" for name in strategy.divided for part in LOW} | {
            "model.head.weight", "model.head.bias"}
        for _ in range(5):
            parameters = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
            loss = strategy.loss(batch_of(task))
            gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            for name, gradient in strategy.edit_gradients(gradients).items():
                parameters[name].data -= 0.5 * gradient
        for name, layer in strategy.divided.items():
            change = (whole(strategy)[name] - before[name]).flatten(1)
            assert change.norm() > 1e-3
            assert (layer.u_high.T @ change).abs().max() < 1e-12
            assert (change @ layer.v_high.T).abs().max() < 1e-12
        answers = answer(strategy, index, x=task.train.x).logits
        strategy.after_task(task)
        torch.testing.assert_close(answer(strategy, index, x=task.train.x).logits, answers)
    assert measure(strategy).parameters == {"base": sum(p.numel() for p in make_model(model).parameters())}


def batch_of(task):
    return Batch(task.train.x, task.train.y, task.train.tasks, task.index)


@pytest.mark.parametrize(("options", "shares"), [
    ({}, [0.5, 0.5, 0.5]), ({"preserved": 0.2}, [0.2, 0.2, 0.2]),
    ({"preserved": 0.0, "final_preserved": 2 / 3}, [0, 1 / 3, 2 / 3]),
    ({"preserved": 0.6, "final_preserved": 0.2}, [0.6, 0.4, 0.2])])
def test_the_share_may_change_from_task_to_task(options, shares):
    strategy = make(**options)
    for index, share in enumerate(shares):
        begin(strategy, task_of(index))
        for layer in strategy.divided.values():
            small = min(layer.in_features, layer.out_features)
            assert len(layer.s_low) == small - int(small * OSFOptions(**options).share(index, TASKS))
            assert OSFOptions(**options).share(index, TASKS) == pytest.approx(share)
        strategy.after_task(task_of(index))


def test_a_state_between_tasks_goes_into_a_strategy_that_has_begun_one():
    strategy, other = make(dtype=torch.float32), make(dtype=torch.float32)
    begin(strategy, make_task(0))
    steps(strategy, make_task(0))
    strategy.after_task(make_task(0))
    begin(other, make_task(0))  # as when a trial is resumed
    other.load_state_dict(strategy.state_dict())
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in strategy.named_parameters()]
    assert torch.equal(answer(other, 0).logits, answer(strategy, 0).logits)


def test_the_base_is_trained_first_if_nothing_else_has_trained_it():
    strategy = make(base="task1", dtype=torch.float32)
    task = make_task(0)
    begin(strategy, task)
    assert strategy.phases(task) == 2 and all(p.requires_grad for p in strategy.model.parameters())
    strategy.base_learned(task)
    assert {n.rpartition(".")[2] for n, p in strategy.named_parameters() if p.requires_grad} == {
        *LOW, "weight", "bias"}
    assert not strategy.model.blocks[0].training


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_stack_of_seeds_learns_as_each_alone(model):
    info, recipe = discover().strategy("osf"), Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)
    options = {"preserved": 0.2, "final_preserved": 0.6}
    for seed, member in enumerate(lead(info, options, [0, 1], recipe, model=model, double=True)):
        alone = lead(info, options, [seed], recipe, model=model, double=True)[0].strategy.state_dict()
        for name, ours in member.strategy.state_dict().items():
            torch.testing.assert_close(ours, alone[name], rtol=1e-8, atol=1e-9)


def test_layers_and_what_is_refused():
    strategy = make(layers="last")
    assert len(strategy.divided) == 1
    for options, first in (({}, "blocks.1."), ({"convolutions": True}, "blocks.0.")):
        strategy = OSF(MODELS["vit"]((1, 8, 8), 6), make_stream_info(), OSFOptions(base="random", **options))
        assert next(iter(strategy.divided)).startswith(first)
    blocks = [Block(nn.Conv2d(1, 4, 3), nn.ReLU()), Block(nn.Conv2d(4, 4, 1, groups=4), nn.Flatten())]
    grouped = OSF(Network(blocks, nn.Linear(144, 6)), make_stream_info(), OSFOptions(base="random"))
    assert any(note.startswith("layers = all leaves out what cannot be divided: blocks.1.body is a convolution in 4 ")
               for note in grouped.notes)
    with pytest.raises(SpecError, match="osf: convolutions = false, and layers = all has no Linear layer in it"):
        OSF(MODELS["resnet20"]((1, 8, 8), 6), make_stream_info(), OSFOptions(base="random", convolutions=False))
    with pytest.raises(SpecError, match="is not a regular expression"):
        validate(OSFOptions, {"layers": "("}, "osf", "clbench methods")
    for wrong in ({"preserved": 1.0}, {"final_preserved": -0.1}):
        with pytest.raises(SpecError, match="should be"):
            validate(OSFOptions, wrong, "osf", "clbench methods")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return LanguageRuns.make(tmp_path_factory.mktemp("language"))


def by_peft(model, share):
    _, peft = quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.OSFConfig(task_type="CAUSAL_LM", target_modules="all-linear",
                                                         effective_rank=share)).train()


@LM
def test_gradients_are_those_of_peft_on_the_same_tensors(runs):
    replica = runs.replica("osf:preserved=0.25")
    strategy, samples = replica.strategy, replica.stream.tasks[0].train
    replica.begin(0)
    theirs = by_peft(load(runs.model), 0.25)
    theirs(**as_transformers(samples)).loss.backward()
    parameters = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    loss = strategy.loss(as_batch(strategy, samples, 0))
    gradients = strategy.edit_gradients(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())),
                                                 strict=True)))
    assert len(gradients) == 3 * 14
    for name, layer in strategy.divided.items():
        other = theirs.base_model.model.get_submodule(strategy.model.published_name(name)).osf_svd_params["default"]
        for part, part_there in zip(LOW, ("U_low", "S_low", "V_low"), strict=True):
            assert torch.equal(getattr(layer, part), other[part_there])
            torch.testing.assert_close(gradients[f"model.{name}.{part}"], other[part_there].grad, rtol=1e-3, atol=1e-5)
    trainable = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert strategy.trainable() == trainable


@LM
def test_two_tasks_end_where_peft_s_do_if_it_merges(runs):
    replica = runs.replica("osf:preserved=0.25:final_preserved=0.75", lr=0.1)  # three tasks: 0.25, 0.5, 0.75
    learn([replica], 2)
    model = load(runs.model)
    for index, share in enumerate((0.25, 0.5)):
        theirs = by_peft(model, share)
        optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
        for samples in task_batches(replica.stream.tasks[index].train, 0, index):
            optimizer.zero_grad()
            theirs(**as_transformers(samples)).loss.backward()
            optimizer.step()
        model = theirs.merge_and_unload()
    test = replica.stream.tasks[0].test
    there = test.x >= 0
    with torch.no_grad():
        expected = model.eval()(**as_transformers(test)).logits[there]
        start = load(runs.model)(**as_transformers(test)).logits[there]
    torch.testing.assert_close(logits(replica.strategy, test, 0)[there], expected, rtol=1e-3, atol=1e-4)
    assert (expected - start).abs().max() > 1e-2


@LM
def test_peft_s_unload_discards_what_was_learned(runs):
    """The docstring of the strategy says so."""
    theirs = by_peft(load(runs.model), 0.25)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "S_low" in name:
                parameter.mul_(2)
    weights, start = theirs.unload().state_dict(), load(runs.model).state_dict()
    assert weights.keys() == start.keys() and all(torch.equal(weights[name], start[name]) for name in start)
