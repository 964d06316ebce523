"""`recipe.group_by_length`: batches of items of similar lengths, for language models."""

import numpy as np
import pytest
import torch
from helpers.language_runs import LanguageRuns

from clbench.core import seeds
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import build
from clbench.training.sampling import BatchSampler, item_lengths

SAMPLES, BATCH = 70, 4
LENGTHS = torch.randint(5, 200, (SAMPLES,), generator=torch.Generator().manual_seed(0))


def batches(passes=1, seed=0, lengths=LENGTHS):
    sampler = BatchSampler(SAMPLES, BATCH, seed, 0, lengths=lengths)
    return [sampler.next_indices(torch.device("cpu")) for _ in range(passes * -(-SAMPLES // BATCH))]


def padding(drawn):
    return sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in drawn)


def test_each_pass_has_every_item_once_in_another_order_and_needs_less_padding():
    drawn = batches(2)
    first, second = drawn[:18], drawn[18:]
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(SAMPLES))
    assert [len(batch) for batch in first] == [4] * 17 + [2] and not torch.equal(first[0], second[0])
    assert [b.tolist() for b in batches()] == [b.tolist() for b in first]  # the same seed gives the same order
    assert padding(first) < padding(batches(lengths=None)) / 2


def test_a_batch_has_neighbors_of_the_sorted_items_of_a_span():
    """Sorted by numpy: a span is a quarter of all batches, here 4 of 17, of the usual random order."""
    order = torch.randperm(SAMPLES, generator=seeds.generator(0, "data", 0)).numpy()
    spans = [order[begin:begin + 16] for begin in range(0, SAMPLES, 16)]
    longest_first = np.concatenate([span[np.argsort(-LENGTHS.numpy()[span], kind="stable")] for span in spans])
    expected = {tuple(longest_first[begin:begin + BATCH]) for begin in range(0, SAMPLES, BATCH)}
    drawn = [tuple(batch.tolist()) for batch in batches()]
    assert set(drawn) == expected and drawn != sorted(drawn, key=lambda b: list(longest_first).index(b[0]))


def test_classifiers_refuse_it_and_the_key_without_it_stays():
    registry = discover()
    for values in ({"recipe": {"group_by_length": True}}, {"methods": "naive:recipe.group_by_length=true"}):
        with pytest.raises(SpecError, match="group_by_length needs items of tokens"):
            plan(build({"methods": "naive", "recipe": {}, **values}), registry)
    keys = {plan(build({"methods": "naive", "recipe": recipe}), registry)[0].trial.key
            for recipe in ({}, {"group_by_length": False})}
    assert len(keys) == 1


@pytest.mark.extra("lm")
def test_a_stack_of_language_models_draws_what_each_draws_alone(tmp_path):
    runs = LanguageRuns.make(tmp_path)
    planned = runs.planned("seq-lora:rank=2", seeds=2, group_by_length=True)
    stacked = runs.runner.run_stack(planned)
    usual = runs.runner.run(runs.planned("seq-lora:rank=2")[0])
    assert [record.status for record in stacked] == ["done", "done"] and usual.R != stacked[0].R
    for one, record in zip(planned, stacked, strict=True):
        alone = runs.runner.run(one)
        assert np.allclose(alone.R, record.R, atol=1e-5)
    train = runs.runner.stream(planned[0].trial).tasks[0].train
    lengths = item_lengths(train, planned[0].trial.trained_by)
    assert lengths.tolist() == [int((row >= 0).sum()) for row in train.x]
    assert item_lengths(train, Recipe()) is None
