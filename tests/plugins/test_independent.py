import copy
import math

import pytest
import torch
from clbench_independent import IndependentOptions
from clbench_independent.strategy import Independent
from clbench_lora import LoRAOptions
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
from safetensors.torch import load_file
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved
from clbench.training.building import build_model, build_strategy
from clbench.training.costs import measure

BLOCKS, HEAD = 64 * 12 + 12 + 12 * 12 + 12, 12 * 2 + 2


def independent(kind="mlp", scenario="task", pretrained=False, seed=0, **options):
    return Independent(make_model(kind, seed=seed), make_stream_info(scenario, pretrained=pretrained),
                       IndependentOptions(**options))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("base", ["task1", "random"])
def test_old_tasks_answer_bitwise_the_same_after_later_tasks(kind, base):
    strategy = independent(kind, base=base)
    answers = []
    for i in range(3):
        learn(strategy, make_task(i))
        answers.append(answer(strategy, i).logits)
    assert all(torch.equal(answer(strategy, i).logits, logits) for i, logits in enumerate(answers))


def test_each_task_is_fine_tuning_of_the_starting_network():
    strategy = independent(base="random")
    for i in range(2):
        task = make_task(i)
        assert learn(strategy, task) == [BLOCKS + HEAD]
        with torch.random.fork_rng():
            torch.manual_seed(task.index)  # as the helper draws the head
            head = nn.Linear(12, 2)
        plain = nn.Sequential(*make_model().blocks, head)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(task.train.x), task.train.y - 2 * i).backward()
            optimizer.step()
        torch.testing.assert_close(answer(strategy, i).logits[:, 2 * i:2 * i + 2], plain(inputs()).detach())
    assert torch.equal(strategy.shared_features(inputs()), make_model().features(inputs()))
    kept = measure(strategy)
    assert kept.parameters == {"base": BLOCKS + 12 * 6 + 6, "copies": 2 * BLOCKS, "heads": 2 * HEAD}
    assert kept.bytes["copies"] == 4 * 2 * BLOCKS


def test_the_base_of_task1_is_that_of_lora_and_copies_start_from_it():
    strategy, task = independent(), make_task(0)
    begin(strategy, task)
    strategy.before_phase(task, 0)
    assert steps(strategy, task) == BLOCKS + HEAD
    before = answer(strategy, 0).logits
    strategy.before_phase(task, 1)
    assert torch.equal(answer(strategy, 0).logits, before)
    strategy.after_task(task)
    lora = LoRA(make_model(), make_stream_info(), LoRAOptions(rank=2))
    learn(lora, task)
    learn(ours := independent(), task)
    assert torch.equal(ours.shared_features(inputs()), lora.shared_features(inputs()))
    begin(ours, make_task(1))
    assert all(torch.equal(p, q) for p, q in zip(ours.copies[1].parameters(), ours.model.blocks.parameters(),
                                                 strict=True))


def test_normalization_of_a_learned_copy_does_not_drift():
    model = make_model("cnn")
    model.blocks[1].body = nn.Sequential(model.blocks[1].body, nn.BatchNorm2d(8))
    strategy = Independent(model, make_stream_info(), IndependentOptions(base="random"))
    fresh = copy.deepcopy(model.blocks[1].body[1].state_dict())
    learn(strategy, make_task(0))
    learned = copy.deepcopy(strategy.copies[0].state_dict())
    assert learned["1.body.1.num_batches_tracked"] == 4
    strategy.train()
    strategy(inputs(), 0)
    learn(strategy, make_task(1))
    assert all(torch.equal(value, learned[name]) for name, value in strategy.copies[0].state_dict().items())
    assert all(torch.equal(value, fresh[name]) for name, value in model.blocks[1].body[1].state_dict().items())


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype"])
def test_task_is_inferred_where_it_is_not_given(infer):
    strategy = independent(scenario="class", infer=infer)
    for i in range(2):
        learn(strategy, make_task(i))
    prediction = answer(strategy)
    assert set(prediction.task.tolist()) <= {0, 1}
    assert torch.isfinite(prediction.logits).sum(1).tolist() == [2] * 5


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_exported_networks_answer_as_the_strategy_does(kind, tmp_path):
    strategy = independent(kind)
    for i, classes in enumerate([(4, 1), (0, 5)]):
        learn(strategy, make_task(i, classes))
        strategy.export(tmp_path, make_task(i, classes))
    plain = make_model(kind, seed=5)
    plain.load_state_dict(load_file(tmp_path / "base.safetensors"))
    assert torch.equal(plain.features(inputs()), strategy.shared_features(inputs()))
    for i, classes in enumerate([(4, 1), (0, 5)]):
        plain.load_state_dict(load_file(tmp_path / f"task{i}" / "model.safetensors"))
        logits = plain(inputs()).detach()
        torch.testing.assert_close(logits, answer(strategy, i).logits)
        assert [c for c in range(6) if logits[0, c] > -math.inf] == sorted(classes)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("model", [
    Resolved(name="resnet20", options={"width": 4}),
    Resolved(name="vit-tiny", options={"width": 12, "depth": 2, "patch": 4})], ids=lambda m: m.name)
def test_it_runs_on_residual_networks_and_transformers(model, tmp_path):
    registry = discover()
    network, _ = build_model(model, None, (1, 8, 8), 6, registry)
    strategy = build_strategy(Resolved(name="independent", options={}), network, make_stream_info("task"), registry)
    for i in range(2):
        learn(strategy, make_task(i))
        strategy.export(tmp_path, make_task(i))
    again, _ = build_model(model, None, (1, 8, 8), 6, registry)
    again.load_state_dict(load_file(tmp_path / "task0" / "model.safetensors"))
    again.eval()
    torch.testing.assert_close(again(inputs()).detach(), answer(strategy, 0).logits, rtol=1e-4, atol=1e-5)


def test_refusals_name_the_method_and_it_is_a_reference():
    with pytest.raises(SpecError, match="independent: base = pretrained needs a pretrained model"):
        independent(base="pretrained")
    assert discover().strategy("independent").reference


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_two_seeds_stacked_equal_one_by_one(kind):
    check_stacking(lambda seed: independent(kind, seed=seed))
    check_stacking(lambda seed: independent(kind, seed=seed), tasks=1)
