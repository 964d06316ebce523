"""Gradients of a batch that are added up from its parts are those of the whole batch."""

import pytest
import torch
from helpers.methods import METHODS
from helpers.stacks import lead

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Batch, declares
from clbench.testing.tiny import bench
from clbench.training.members import Unstackable
from clbench.training.sampling import divide_batches, division_notes

REGISTRY = discover()
RECIPE = Recipe(optimizer="sgd", lr=0.02, batch_size=10, epochs=1)  # 24 samples: batches of two sizes
NO = {"der", "der++", "acl", "er-ace", "lucir", "lora-sub", "cls-er", "fetril",
      "generative-replay", "mos"}  # their loss is no mean over samples
SOME = ("naive", "ewc", "er", "lwf", "lora", "pnn", "seq-lora", "l2p", "icarl", "a-gem")
PARAMETERS = [pytest.param(name, options, marks=() if name in SOME or name in NO else pytest.mark.slow)
              for name, options in METHODS if not name.startswith("avalanche")]


@pytest.mark.parametrize(("name", "options"), PARAMETERS)
def test_three_parts_of_each_batch_train_as_the_whole_does(name, options):
    info = REGISTRY.strategy(name)
    strategy = bench(info, options, "task", 0).strategy
    options = {**options, **({"dropout": 0.0} if "dropout" in type(strategy.options).model_fields else {})}
    in_parts = RECIPE.model_copy(update={"accumulate": 3})
    if name in NO or strategy.owns_loop:
        with pytest.raises(SpecError, match="accumulate"):
            lead(info, options, [0], in_parts, tasks=2)
        return
    assert declares(strategy, "loss_is_mean")
    for seeds in ([0], [0, 1]) if name in ("naive", "lora") else ([0],):
        whole, parts = (lead(info, options, seeds, recipe, tasks=2, double=True) for recipe in (RECIPE, in_parts))
        for one, other in zip(whole, parts, strict=True):
            for parameter, in_parts_too in zip(one.strategy.parameters(), other.strategy.parameters(), strict=True):
                torch.testing.assert_close(parameter, in_parts_too, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("model", "count"), [("mlp", 0), ("resnet20", 1)])
def test_a_note_says_that_batch_normalization_uses_each_part(model, count):
    b, = lead(REGISTRY.strategy("naive"), {}, [0], RECIPE.model_copy(update={"accumulate": 3}), tasks=1, model=model)
    assert len(division_notes(b.strategy, RECIPE.model_copy(update={"accumulate": 3}))) == count
    assert division_notes(b.strategy, RECIPE) == []


def test_parts_have_all_rows_and_know_which_are_replayed():
    rows = torch.arange(10)
    batch = Batch(rows[:, None].float(), rows, rows, 1, replayed=4, frozen={"a": rows + 1})
    parts = [(share, part) for share, (part,) in divide_batches([batch], 4)]
    assert [len(part.y) for _, part in parts] == [3, 3, 3, 1] and [part.replayed for _, part in parts] == [0, 0, 3, 1]
    assert sum(share for share, _ in parts) == pytest.approx(1)
    assert torch.equal(torch.cat([part.frozen["a"] for _, part in parts]), rows + 1)
    assert [len(part.y) for _, (part,) in divide_batches([batch], 99)] == [1] * 10


def test_batches_of_a_stack_that_replay_different_numbers_of_samples_are_not_divided():
    batches = [Batch(torch.rand(n, 1), torch.zeros(n), torch.zeros(n), 1, replayed=n - 10) for n in (12, 14)]
    with pytest.raises(Unstackable, match="its batches differ in their number of replayed samples"):
        list(divide_batches(batches, 2))


def test_a_key_has_the_parts_only_if_there_are_several():
    def key(**recipe):
        return plan(build({"methods": "naive", "benchmark": "split-mnist-5k", "model": "mlp", "seeds": 1,
                           "recipe": recipe}), discover())[0].trial.key

    assert key() == key(accumulate=1) != key(accumulate=2)
