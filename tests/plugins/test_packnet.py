import copy
import itertools

import numpy as np
import pytest
import torch
from clbench_packnet import PackNetOptions
from clbench_packnet.strategy import FREE, PackNet, free
from helpers.per_task import answer, as_batch, begin, learn, make_model, make_stream_info, make_task
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import StreamInfo
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.costs import measure

HARSH = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.1, batch_size=8, epochs=4,
               optimizer_state="keep")


def led(model, tasks, options=None, recipe=None, monkeypatch=None):
    """Return the strategy after each task, trained as the harness does."""
    if recipe is not None:
        monkeypatch.setattr(tiny, "RECIPE", recipe)
    b = bench(discover().strategy("packnet"), options or {}, "task", model=model)
    states = []
    for index in range(tasks):
        b.learn(index)
        states.append(copy.deepcopy(b.strategy).eval())
    return b, states


def logits(b, strategy, task):
    with torch.no_grad():
        return strategy(b.stream.prepare(b.stream.tasks[task].test.x), task)


@pytest.mark.parametrize("model", ["mlp", "resnet20", "vit"])
def test_what_a_task_answers_never_changes_again(model, monkeypatch):
    b, after = led(model, 3, {"prune": 0.6}, HARSH, monkeypatch)
    for task in range(2):
        for later in after[task + 1:]:
            assert torch.equal(logits(b, later, task), logits(b, after[task], task))


def test_the_weights_of_a_task_and_all_that_is_not_packed_stay_what_they_were(monkeypatch):
    _, after = led("resnet20", 3, {"prune": 0.6}, HARSH, monkeypatch)
    for earlier, later in itertools.pairwise(after):
        task = len(earlier.heads) - 1
        old, new = earlier.model.blocks.state_dict(), later.model.blocks.state_dict()
        packed = earlier.packed()
        moved = False
        for name, value in old.items():
            if f"blocks.{name}" not in packed:
                assert torch.equal(new[name], value), name  # biases, normalization and its statistics
                continue
            owner = later._part("owner", f"blocks.{name}")
            assert torch.equal(new[name][owner <= task], value[owner <= task])
            assert value[owner > task].eq(0).all() and new[name][owner == FREE].eq(0).all()
            moved |= bool(new[name][owner == task + 1].ne(0).any())
        assert moved


@pytest.mark.parametrize("prune", [0.25, 0.5, 0.75])
def test_each_task_owns_the_share_that_pruning_leaves_it(prune):
    _, after = led("mlp", 3, {"prune": prune})
    for name, weight in after[-1].packed().items():
        owner = after[-1]._part("owner", name)
        counts = [int((owner == t).sum()) for t in (0, 1, 2, FREE)]
        left = weight.numel()
        for task in range(3):
            left, before = round(prune * left), left
            assert counts[task] == before - left
        assert counts[3] == left == free(weight.numel(), 3, prune)
        assert counts[0] / weight.numel() == pytest.approx(1 - prune, abs=0.01)


def test_the_smallest_of_each_layer_are_pruned_and_the_rest_is_trained_again():
    strategy = PackNet(make_model("cnn"), make_stream_info("task"), PackNetOptions(prune=0.7))
    learn(strategy, make_task(0))
    task = make_task(1)
    begin(strategy, task)
    strategy.before_phase(task, 0)
    g = torch.Generator().manual_seed(5)
    for weight in strategy.packed().values():
        weight.data += torch.randn(weight.shape, generator=g)
    before = {name: weight.detach().clone() for name, weight in strategy.packed().items()}
    was_free = {name: strategy._part("owner", name) == FREE for name in before}
    strategy.before_phase(task, 1)
    for name, weight in before.items():
        sizes = weight.abs()[was_free[name]].numpy()
        kept = len(sizes) - round(0.7 * len(sizes))
        owner = strategy._part("owner", name)
        assert int((owner == 1).sum()) == kept
        assert np.allclose(np.sort(weight.abs()[owner == 1].numpy()), np.sort(sizes)[-kept:])
        used = strategy._weights(1)[name]
        assert used[owner == FREE].eq(0).all() and torch.equal(used[owner == 1], weight[owner == 1])
    loss = strategy.loss(as_batch(task))
    loss.backward()
    for name, weight in strategy.packed().items():
        owner = strategy._part("owner", name)
        assert weight.grad[owner != 1].eq(0).all() and weight.grad[owner == 1].ne(0).any()


def test_a_task_is_a_plain_network_with_the_weights_of_the_tasks_up_to_it():
    strategy = PackNet(make_model(), make_stream_info("task"), PackNetOptions(prune=0.5))
    for index in range(3):
        learn(strategy, make_task(index))
    for task in range(3):
        plain = copy.deepcopy(strategy.model)
        for name in strategy.packed():
            plain.get_parameter(name).data[strategy._part("owner", name) > task] = 0
        x = make_task(task).train.x
        own = strategy.heads[task]
        expected = nn.functional.linear(plain.features(x), own.weight, own.bias)
        torch.testing.assert_close(answer(strategy, task, x).logits[:, 2 * task:2 * task + 2], expected)


def test_what_learns_is_counted_and_not_what_lies_beside_it():
    strategy = PackNet(make_model(), make_stream_info("task"), PackNetOptions(prune=0.75))
    sizes = [64 * 12, 12 * 12]
    head, biases = 2 * 13, 24
    found = []
    for index in range(2):
        begin(strategy, make_task(index))
        for phase in range(2):
            strategy.before_phase(make_task(index), phase)
            found.append(strategy.trainable())
        strategy.after_task(make_task(index))
    left = [[free(s, t, 0.75) for s in sizes] for t in range(3)]
    assert found == [sum(sizes) + biases + head, sum(sizes) - sum(left[1]) + biases + head,
                     sum(left[1]) + head, sum(left[1]) - sum(left[2]) + head]


def test_a_byte_is_kept_for_each_weight_and_nothing_else():
    strategy = PackNet(make_model(), make_stream_info("task"), PackNetOptions())
    learn(strategy, make_task(0))
    kept = measure(strategy)
    weights = sum(w.numel() for w in strategy.packed().values())
    assert kept.bytes["masks"] == weights == 64 * 12 + 12 * 12
    assert set(kept.bytes) == {"masks", "base", "heads"}
    assert strategy.learning__blocks__1__body__weight is None and strategy.fixed__blocks__1__body__weight is None


def test_an_unknown_task_is_inferred_as_with_other_parts_per_task():
    strategy = PackNet(make_model(), make_stream_info("class"), PackNetOptions(infer="prototype"))
    learn(strategy, make_task(0))
    first = strategy.shared_features(make_task(0).train.x)
    learn(strategy, make_task(1))
    assert torch.equal(strategy.shared_features(make_task(0).train.x), first)
    assert set(answer(strategy).task.tolist()) <= {0, 1}


def test_there_are_at_most_as_many_tasks_as_a_byte_names():
    stream_info = StreamInfo(512, 256, "task", (1, 8, 8), torch.Generator())
    with pytest.raises(SpecError, match="at most 255 tasks, and there are 256"):
        PackNet(make_model(classes=512), stream_info)
