"""Schedules of the learning rate by steps and by epochs, and a quarter of a cosine."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import build, change_recipe
from clbench.testing.tiny import bench
from clbench.training.loop import TrainingLoop
from clbench.training.optimizers import make_optimizer, make_schedule


def rates(recipe, steps, epoch):
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.ones(1))])
    schedule = make_schedule(recipe, optimizer, steps, epoch)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_a_quarter_of_a_cosine_by_epochs_has_the_formula_of_coda_prompt():
    recipe = Recipe(lr=1e-3, schedule="quarter-cosine", schedule_by="epoch", epochs=20)
    wanted = [1e-3 * math.cos(99 * math.pi * e / (200 * 19)) for e in range(20)]
    assert rates(recipe, 20 * 4, 4) == pytest.approx([rate for rate in wanted for _ in range(4)], rel=1e-12)
    assert wanted[-1] == pytest.approx(1e-3 * math.sin(math.pi / 200))


def test_a_quarter_of_a_cosine_by_steps_has_a_place_for_each_step():
    recipe = Recipe(lr=0.1, schedule="quarter-cosine", epochs=2)
    wanted = [0.1 * math.cos(99 * math.pi * s / (200 * 9)) for s in range(10)]
    assert rates(recipe, 10, 5) == pytest.approx(wanted, rel=1e-12)
    assert rates(recipe, 1, 1) == [0.1]


@pytest.mark.parametrize(("recipe", "reference"), [
    (Recipe(lr=0.1, schedule="cosine", schedule_by="epoch", epochs=7), lambda o: CosineAnnealingLR(o, 7)),
    (Recipe(lr=0.1, schedule="steps", milestones=[0.9], schedule_by="epoch", epochs=20),
     lambda o: MultiStepLR(o, [18], 0.1))])
def test_a_schedule_by_epochs_is_torchs_with_a_step_per_epoch(recipe, reference):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule, wanted = reference(optimizer), []
    for _ in range(recipe.epochs):
        wanted += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        schedule.step()
    assert rates(recipe, recipe.epochs * 3, 3) == pytest.approx(wanted, rel=1e-9)


def test_a_last_epoch_that_iterations_cut_short_counts_as_one():
    recipe = Recipe(lr=0.1, schedule="quarter-cosine", schedule_by="epoch", iterations=10)
    wanted = [0.1 * math.cos(99 * math.pi * e / (200 * 2)) for e in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)]
    assert rates(recipe, 10, 4) == pytest.approx(wanted, rel=1e-12)


def test_the_loop_changes_the_rate_after_each_pass_over_a_tasks_samples():
    b = bench(discover().strategy("naive"), {}, "class")
    recipe = Recipe(optimizer="sgd", lr=0.1, schedule="quarter-cosine", schedule_by="epoch", epochs=3, batch_size=16)
    trainer, seen = TrainingLoop([b.replica], recipe), []
    samples = len(b.stream.tasks[0].train)
    step = torch.optim.SGD.step

    def noted(optimizer, *args, **kwargs):
        seen.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noted)
        trainer.train_task(0)
    passes = math.ceil(samples / 16)
    assert passes > 1
    assert seen == pytest.approx([0.1 * math.cos(99 * math.pi * e / 400) for e in range(3) for _ in range(passes)])


def test_by_epochs_is_for_schedules_that_change_the_rate_and_a_part_of_the_key_only_then():
    with pytest.raises(ValueError, match="schedule_by = epoch applies only to a schedule"):
        Recipe(schedule_by="epoch")

    def key(**recipe):
        return plan(build({"methods": "naive", "seeds": 1, "recipe": recipe}), discover())[0].trial.key

    assert key(schedule="cosine") == key(schedule="cosine", schedule_by="step")
    assert len({key(schedule="cosine"), key(schedule="cosine", schedule_by="epoch"), key()}) == 3


def test_another_schedule_of_a_method_does_not_inherit_milestones():
    steps = Recipe(schedule="steps", milestones=[0.5], decay=0.2, schedule_by="epoch")
    new, own = change_recipe(steps, {"schedule": "constant"})
    assert new == Recipe() and own == {"schedule": "constant", "milestones": (), "decay": None, "schedule_by": "step"}


def trained_by(method):
    spec = build({"methods": [{"name": method, "recipe": "published"}], "seeds": 1, "model": "vit-tiny",
                  "scenario": "class"})
    return plan(spec, discover())[0].trial.trained_by


def test_published_schedules_and_rates_of_heads_are_those_of_the_authors():
    slca = trained_by("slca")
    assert (slca.milestones, slca.schedule_by, slca.decay, slca.head_decay) == ((0.9,), "epoch", None, "learning")
    assert (trained_by("slca++").schedule, trained_by("slca++").head_decay) == ("cosine", "learning")
    for method, head in (("coda-prompt", None), ("inflora", None), ("lora-sub", 2e-3)):
        recipe = trained_by(method)
        assert (recipe.schedule, recipe.schedule_by, recipe.head_lr) == ("quarter-cosine", "epoch", head)
    assert (trained_by("ewc-lora").head_lr, trained_by("ewc-lora").schedule) == (5e-3, "cosine")
    for method in ("ranpac", "aper", "simplecil"):
        recipe = trained_by(method)
        assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.schedule) == (
            "sgd", 0.01, 0.9, 5e-4, "cosine")
