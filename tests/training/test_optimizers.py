import copy
import json
import math
from typing import get_args

import pytest
import torch
from helpers.stacks import lead
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment import recipe
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.training.budget import steps_of
from clbench.training.optimizers import OPTIMIZERS, SCHEDULES, clip_gradients, make_optimizer, make_schedule
from clbench.training.sampling import BatchSampler


def test_every_name_of_a_recipe_is_there_and_an_unknown_one_is_an_error():
    assert set(OPTIMIZERS) == set(get_args(recipe.Optimizer))
    assert set(SCHEDULES) == set(get_args(recipe.Schedule))
    unknown = Recipe.model_construct(**{**Recipe().__dict__, "optimizer": "adan"})
    with pytest.raises(KeyError, match="adan"):
        make_optimizer(unknown, [nn.Parameter(torch.ones(1))])
    unknown = Recipe.model_construct(**{**Recipe().__dict__, "schedule": "linear"})
    with pytest.raises(KeyError, match="linear"):
        make_schedule(unknown, make_optimizer(Recipe(), [nn.Parameter(torch.ones(1))]), 10)


def test_adamw_decays_weights_apart_from_the_gradient():
    start, gradients = [0.5, -1.0], [[0.2, 0.1], [-0.3, 0.4]]
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make_optimizer(Recipe(optimizer="adamw", lr=0.01, weight_decay=0.1), [parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    wanted = []
    for value, given in zip(start, zip(*gradients, strict=True), strict=True):  # Loshchilov & Hutter 2019, algorithm 2
        m = v = 0.0
        for t, g in enumerate(given, start=1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            value = value * (1 - 0.01 * 0.1) - 0.01 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        wanted.append(value)
    torch.testing.assert_close(parameter.detach(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_momentum_is_for_sgd():
    with pytest.raises(SpecError, match="momentum is an option of sgd, which adamw does not use"):
        build({"methods": "naive", "recipe": {"optimizer": "adamw", "momentum": 0.9}})


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_is_that_of_torch_for_each_member_of_a_stack(limit):
    members = [[nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (4,), (), (4, 3, 2, 2))] for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for member in members:
        for parameter in member:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        member[-1].grad = member[-1].grad.to(memory_format=torch.channels_last)  # as those of convolutions are
    stacked = [torch.stack([p.grad for p in same]) for same in zip(*members, strict=True)]
    clip_gradients([*stacked, None], limit, members=3)
    for position, member in enumerate(members):
        clip_gradients(alone := [p.grad.clone() for p in member], limit)
        torch.nn.utils.clip_grad_norm_(member, limit)
        for theirs, ours, own in zip(member, stacked, alone, strict=True):
            torch.testing.assert_close(ours[position], theirs.grad, rtol=1e-6, atol=0)
            torch.testing.assert_close(own, theirs.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("schedule", "after"), [("constant", lambda s: 1.0),
                                                 ("cosine", lambda s: (1 + math.cos(math.pi * s)) / 2)])
def test_the_rate_rises_to_its_whole_and_then_follows_the_schedule(schedule, after):
    optimizer = make_optimizer(Recipe(lr=0.1, schedule=schedule, warmup_ratio=0.2), [nn.Parameter(torch.ones(1))])
    schedule = make_schedule(Recipe(lr=0.1, schedule=schedule, warmup_ratio=0.2), optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, *(0.1 * after(k / 16) for k in range(16))], rel=1e-12)


def test_a_rate_that_falls_in_steps_is_torchs_by_whole_epochs():
    recipe = Recipe(lr=0.1, schedule="steps", milestones=[0.7, 0.9], decay=0.2, epochs=10)
    ours, theirs = (make_optimizer(recipe, [nn.Parameter(torch.ones(1))]) for _ in range(2))
    schedule, reference = make_schedule(recipe, ours, 10 * 13), MultiStepLR(theirs, [7 * 13, 9 * 13], 0.2)
    for _ in range(10 * 13):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for one, its in ((ours, schedule), (theirs, reference)):
            one.step()
            its.step()
    assert ours.param_groups[0]["lr"] == pytest.approx(0.1 * 0.2**2)


@pytest.mark.parametrize(("recipe", "message"), [
    ({"schedule": "steps"}, "which needs milestones"), ({"milestones": [0.5]}, "which needs milestones"),
    ({"decay": 0.5}, "which needs milestones"), ({"schedule": "steps", "milestones": [0.5, 0.5]}, "milestones must "
                                                                                                  "rise"),
    ({"schedule": "steps", "milestones": [1.0]}, "less than 1"), ({"repeats": 0}, "greater than or equal to 1")])
def test_a_schedule_in_steps_and_its_milestones_go_together(recipe, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**recipe)


def test_repeats_gives_each_batch_so_often_and_its_samples_are_new_once():
    assert steps_of(Recipe(epochs=2, batch_size=4, repeats=3), 10) == 18
    once, thrice = BatchSampler(10, 4, 0, 0), BatchSampler(10, 4, 0, 0, repeats=3)
    fresh = []
    for _ in range(2 * 3):
        rows = once.next_indices(torch.device("cpu"))
        for _ in range(3):
            assert torch.equal(thrice.next_indices(torch.device("cpu")), rows)
            fresh.append(not thrice.is_repeated and thrice.passes == 1)
    assert fresh == [True, False, False] * 3 + [False] * 9


def test_what_came_later_is_written_only_where_it_is_set():
    plain = json.loads(Recipe().model_dump_json())
    assert set(plain) == set(Recipe.model_fields) - set(Recipe.LATER)
    full = Recipe(warmup_ratio=0.1, max_grad_norm=1.0, schedule="steps", milestones=[0.5], decay=0.3, repeats=2,
                  head_lr=0.1)
    assert Recipe.model_validate_json(full.model_dump_json()) == full
    keys = [plan(build({"methods": "naive", "seeds": 1, "recipe": recipe}), discover())[0].trial.key
            for recipe in ({}, {"warmup_ratio": 0.0}, {"warmup_ratio": 0.1}, {"max_grad_norm": 1.0},
                           {"repeats": 2}, {"schedule": "steps", "milestones": [0.5]},
                           {"head_lr": 0.1}, {"repeats": 1})]
    assert keys[0] == keys[1] == keys[-1] and len(set(keys)) == 6


@pytest.mark.parametrize("recipe", [
    Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.1, batch_size=8, epochs=2, optimizer_state="keep"),
    Recipe(optimizer="sgd", lr=0.5, batch_size=8, epochs=2, max_grad_norm=0.1, schedule="cosine", warmup_ratio=0.3),
    Recipe(lr=1e-4, head_lr=1e-2, batch_size=8, epochs=2, max_grad_norm=0.1)])
def test_a_stack_of_seeds_equals_seed_by_seed(recipe):
    info = discover().strategy("ewc")
    ends = {}
    for member, seed in zip(lead(info, {"strength": 10.0}, [0, 1], recipe), (0, 1), strict=True):
        alone, = lead(info, {"strength": 10.0}, [seed], recipe)
        for name, tensor in alone.strategy.state_dict().items():
            torch.testing.assert_close(member.strategy.state_dict()[name], tensor, rtol=1e-3, atol=2e-5)
        ends[seed] = copy.deepcopy(alone.strategy.state_dict())
    plain = recipe.model_copy(update={"max_grad_norm": None, "weight_decay": 0})
    unclipped, = lead(info, {"strength": 10.0}, [0], plain)
    assert any(not torch.equal(ends[0][n], t) for n, t in unclipped.strategy.state_dict().items()), "it does something"


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
@pytest.mark.parametrize(("method", "options"), [("gpm", {"threshold": 0.5}), ("gem", {})])
def test_edited_gradients_of_convolutions_reach_their_own_weights(method, options, seeds, monkeypatch):
    info, plain_recipe = discover().strategy(method), Recipe(lr=0.01, batch_size=24, iterations=2)
    fused = lead(info, options, seeds, plain_recipe, tasks=2, model="cnn")  # its weights are channels-last
    monkeypatch.setitem(OPTIMIZERS, "adam", lambda of, groups: torch.optim.Adam(groups, of.lr, foreach=False))
    for b, expected in zip(fused, lead(info, options, seeds, plain_recipe, tasks=2, model="cnn"), strict=True):
        for name, tensor in expected.strategy.state_dict().items():
            torch.testing.assert_close(b.strategy.state_dict()[name], tensor, rtol=1e-3, atol=2e-5)
