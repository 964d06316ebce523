"""Sequential LoRA: what it replays, and adapters that are merged after each task."""

import copy
import math

import pytest
import torch
from clbench_lora import SeqLoRAOptions
from clbench_lora.seq import ReplayedSeqLoRA, SeqLoRA
from helpers.per_task import (
    CLASSES,
    TASKS,
    answer,
    as_batch,
    begin,
    learn,
    make_model,
    make_stream_info,
    make_task,
    steps,
)

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import label, validate
from clbench.core.registry import discover
from clbench.strategy.base import Batch
from clbench.training.costs import measure

OPTIONS = [{}, {"alpha": 5.0}, {"scaling": "rslora", "rank": 3}, {"bias": True, "alpha": 5.0}, {"dora": True},
           {"init": "pissa", "rank": 2}, {"init": "pissa", "rank": 2, "bias": True}]


def make(model="mlp", scenario="task", seed=0, **options):
    options = {"rank": 2, "base": "random", **options}
    return SeqLoRA(make_model(model, seed=seed), make_stream_info(scenario), SeqLoRAOptions(**options))


def test_keys_are_those_of_before():
    written = SeqLoRAOptions().model_dump()
    assert not {"merge", "replay", "capacity"} & written.keys()
    assert SeqLoRAOptions(replay=0.1).model_dump().keys() - written.keys() == {"replay"}
    assert label("seq-lora", SeqLoRAOptions(replay=0.1, capacity=50, merge=True)) == (
        "seq-lora:merge=true:replay=0.1:capacity=50")


@pytest.mark.parametrize("share", [0.05, 0.29, 0.5, 1.0, 1.7])
def test_each_step_replays_its_share_of_earlier_tasks(share):
    strategy = make(replay=share, capacity=20)
    learn(strategy, make_task(0))
    assert strategy.joined == 0 and len(strategy.memory) == 20  # `learn` draws no batches
    begin(strategy, make_task(1))
    new = as_batch(make_task(1))
    part = Batch(new.x[:7], new.y[:7], new.tasks[:7], 1)
    for step in range(30):
        batch = strategy.prepare_batch(part)
        exact = [math.floor(round(100 * share) * 7 * i / 100) for i in (step, step + 1)]
        assert batch.replayed == len(batch.y) - 7 == exact[1] - exact[0]
        assert torch.equal(batch.x[:7], part.x) and set(batch.tasks[7:].tolist()) <= {0}
    assert len(strategy.memory) == 20


def test_nothing_is_replayed_in_the_first_task_and_the_memory_is_a_reservoir_of_all():
    strategy = make(replay=0.5, capacity=4)
    begin(strategy, make_task(0))
    batch = as_batch(make_task(0))
    assert strategy.prepare_batch(batch) is batch and len(strategy.memory) == 0
    for index in range(TASKS):
        learn(strategy, make_task(index)) if index else strategy.after_task(make_task(0))
    assert len(strategy.memory) == 4 and int(strategy.memory_seen.sum()) == 24 * TASKS
    assert measure(strategy).replay_samples == 4


def test_a_memory_is_stored_only_if_it_is_read():
    plain, replayed = make(), make(replay=0.1)
    assert type(plain) is SeqLoRA and type(replayed) is ReplayedSeqLoRA
    assert "replay" not in measure(plain).bytes and not [n for n, _ in plain.named_buffers() if "memory" in n]
    assert isinstance(copy.deepcopy(replayed), ReplayedSeqLoRA)
    with pytest.raises(SpecError, match="capacity has an effect only with replay above 0; add that, or leave"):
        validate(SeqLoRAOptions, {"capacity": 7}, "seq-lora", "clbench methods")


def test_the_loss_is_the_mean_over_new_and_replayed_samples():
    strategy = make(replay=0.5)
    learn(strategy, make_task(0))
    begin(strategy, make_task(1))
    batch = strategy.prepare_batch(as_batch(make_task(1)))
    assert batch.replayed == 12
    parts = [Batch(batch.x[rows], batch.y[rows], batch.tasks[rows], 1) for rows in (slice(24), slice(24, None))]
    losses = [strategy.loss(part) for part in parts]
    torch.testing.assert_close(strategy.loss(batch), (24 * losses[0] + 12 * losses[1]) / 36)


@pytest.mark.parametrize(("model", "options"), [
    *(("mlp", o) for o in OPTIONS), *(("cnn", o) for o in OPTIONS if "init" not in o)], ids=str)
def test_merging_changes_no_answer_and_a_new_adapter_starts(model, options):
    strategy = make(model, merge=True, **options)
    whole = {name: layer.base_layer.weight.clone() for name, layer in strategy.adapted.items()}
    for index in range(2):
        task = make_task(index)
        begin(strategy, task)
        steps(strategy, task, count=8)
        before = answer(strategy, index).logits
        expected = {name: layer.merged_weight(0) for name, layer in strategy.adapted.items()}
        strategy.after_task(task)
        torch.testing.assert_close(answer(strategy, index).logits, before, rtol=1e-5, atol=1e-5)
        for name, layer in strategy.adapted.items():
            assert len(layer.lora_A) == 1
            torch.testing.assert_close(layer.base_layer.weight, expected[name])
            assert (layer.base_layer.weight - whole[name]).abs().max() > 1e-3
            assert layer.delta_weight(0).abs().max() < 1e-6  # the new one
            assert layer.base_layer.weight.requires_grad is False
            whole[name] = layer.base_layer.weight.clone()
    assert measure(strategy).parameters["adapters"] == measure(make(model, **options)).parameters.get("adapters", 0) + (
        sum(p.numel() for layer in strategy.adapted.values() for p in layer.parameters_of(0).values()))


def test_all_changes_together_may_exceed_the_rank():
    strategy = make(rank=1, merge=True)
    layer = next(iter(strategy.adapted.values()))
    first = layer.base_layer.weight.clone()
    for index in range(TASKS):
        learn(strategy, make_task(index))
    assert int(torch.linalg.matrix_rank(layer.base_layer.weight - first, atol=1e-5)) == TASKS


def test_a_bias_that_w_lacks_is_not_merged():
    model = make_model("mlp")
    for module in model.blocks.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias = None
    with pytest.raises(SpecError, match=r"adds the adapter's bias to that of blocks\.\d\.body.*, which has none"):
        SeqLoRA(model, make_stream_info(), SeqLoRAOptions(merge=True, bias=True, base="random"))


def test_merging_needs_to_know_where_tasks_end():
    assert "merges the adapter after each task" in SeqLoRAOptions(merge=True, base="random").needs_boundaries
    assert not SeqLoRAOptions(replay=0.1, base="random").in_scenario("class", False).needs_boundaries


def test_the_declared_class_is_one_of_the_interface():
    info = discover().strategy("seq-lora")
    assert isinstance(info, StrategyInfo) and info.task_free
    assert make().model.head.out_features == CLASSES


def test_the_memory_and_the_aligned_head_keep_apart():
    strategy = make(scenario="class", replay=0.5, capacity=10, align=True, outputs="own")
    for index in range(2):
        task = make_task(index)
        strategy.class_mask[:, :2 * index + 2] = True
        learn(strategy, task)
    assert strategy.aligns and len(strategy.memory) == 10 and strategy.met == [0, 1, 2, 3]
    assert (strategy.model.head.weight[:4] - strategy.unaligned_weight).abs().max() > 1e-3
    batch = strategy.prepare_batch(as_batch(make_task(1)))
    assert batch.replayed == 12 - 2  # no more than there are
