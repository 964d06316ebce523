import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_er import EROptions
from clbench_er.strategy import ER

from clbench.core.errors import SpecError
from clbench.core.options import label, validate
from clbench.data.samples import Samples
from clbench.models.builtin import MLPOptions
from clbench.models.small import mlp
from clbench.strategy.base import Batch, StreamInfo, Task
from clbench.training.costs import measure


def make(seed=0, **options):
    torch.manual_seed(0)
    stream_info = StreamInfo(4, 2, "task", (1, 2, 2), torch.Generator().manual_seed(seed))
    strategy = ER(mlp(MLPOptions(width=5), (1, 2, 2), 4), stream_info, EROptions(**options))
    strategy.class_mask[0, :2] = True
    strategy.class_mask[1, 2:] = True
    return strategy


def batch(n, task=0, first_pass=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 1, 2, 2), generator=g, dtype=torch.uint8)
    return Batch(x, torch.randint(0, 2, (n,), generator=g) + 2 * task, torch.full((n,), task), task, first_pass)


def test_first_batch_is_left_as_it_is_and_remembered():
    strategy, b = make(), batch(6)
    out = strategy.prepare_batch(b)
    assert out is b
    assert torch.equal(strategy.memory_x, b.x) and len(strategy.memory_y) == 6


def test_replay_is_as_large_as_the_batch_where_the_memory_has_as_many():
    strategy = make(capacity=10)
    sizes = []
    for step, n in enumerate([6, 6, 6, 4, 16]):
        held = len(strategy.memory_y)
        out = strategy.prepare_batch(batch(n, seed=step))
        assert len(out.y) == len(out.tasks) == len(out.x) == n + min(n, held)
        sizes.append((len(out.y), len(strategy.memory_y)))
    assert sizes == [(6, 6), (12, 10), (12, 10), (8, 10), (26, 10)]


def test_replay_comes_from_before_the_batch_and_keeps_its_task():
    strategy = make(capacity=50)
    old, new = batch(8, 0, seed=1), batch(8, 1, seed=2)
    strategy.prepare_batch(old)
    out = strategy.prepare_batch(new)
    assert torch.equal(out.x[:8], new.x) and torch.equal(out.y[:8], new.y) and out.task == 1
    rows = {tuple(r) for r in old.x.flatten(1).tolist()}
    assert {tuple(r) for r in out.x[8:].flatten(1).tolist()} == rows
    assert out.tasks.tolist() == [1] * 8 + [0] * 8 and out.y[8:].max() < 2 and out.x.dtype == torch.uint8


def test_later_passes_replay_but_are_not_remembered():
    strategy = make(capacity=100)
    strategy.prepare_batch(batch(6))
    memory, seen = strategy.memory_x.clone(), strategy.memory_seen.clone()
    out = strategy.prepare_batch(batch(6, first_pass=False, seed=1))
    assert len(out.y) == 12
    assert torch.equal(strategy.memory_x, memory) and torch.equal(strategy.memory_seen, seen)
    assert len(make().prepare_batch(batch(6, first_pass=False)).y) == 6


def test_the_memory_may_wait_for_the_end_of_the_task():
    strategy, b = make(capacity=4, update="task"), batch(6)
    assert strategy.prepare_batch(b) is b and len(strategy.memory_y) == 0
    strategy.after_task(Task(0, (0, 1), Samples(b.x, b.y, b.tasks)))
    assert len(strategy.memory_y) == 4 and int(strategy.memory_seen.sum()) == 6
    assert strategy.prepare_batch(batch(6, 1)).tasks.tolist() == [1] * 6 + [0] * 4
    by_step = make(capacity=4)
    by_step.prepare_batch(b)
    by_step.after_task(Task(0, (0, 1), Samples(b.x, b.y, b.tasks)))
    assert int(by_step.memory_seen.sum()) == 6


def test_loss_is_the_mean_over_new_and_replayed_samples_each_over_its_own_outputs():
    strategy = make(capacity=50).double()
    strategy.prepare_batch(batch(8, 0, seed=1))
    out = strategy.prepare_batch(batch(4, 1, seed=2))
    x = out.x.double()
    got = strategy.loss(Batch(x, out.y, out.tasks, 1))
    logits = strategy(x)
    losses = [F.cross_entropy(row[2 * t:2 * t + 2][None], y[None] - 2 * t)
              for row, y, t in zip(logits, out.y, out.tasks.tolist(), strict=True)]
    torch.testing.assert_close(got, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_global_randomness_is_left_alone_and_seeds_decide():
    a, b, c = make(1), make(1), make(2)
    before = torch.get_rng_state()
    outs = [[s.prepare_batch(batch(40, seed=i)).x for i in range(8)][-1] for s in (a, b, c)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_state_dict_and_deep_copy_round_trip():
    strategy, other = make(capacity=10, balance="class"), make(capacity=10, balance="class")
    for i in range(5):
        strategy.prepare_batch(batch(7, i % 2, seed=i))
    other.load_state_dict(strategy.state_dict())
    other.stream_info.generator.set_state(strategy.stream_info.generator.get_state())
    twin = copy.deepcopy(strategy)
    outs = [s.prepare_batch(batch(7, 1, seed=9)) for s in (strategy, other, twin)]
    assert all(torch.equal(outs[0].x, o.x) and torch.equal(outs[0].y, o.y) for o in outs)
    assert torch.equal(strategy.memory_x, twin.memory_x) and torch.equal(strategy.memory_x, other.memory_x)


def test_the_footprint_counts_what_is_stored():
    strategy = make(capacity=3)  # fewer than there are classes
    assert measure(strategy).replay_samples == 0
    strategy.prepare_batch(batch(2))
    assert measure(strategy).replay_samples == 2
    strategy.prepare_batch(batch(7))
    found = measure(strategy)
    assert found.replay_samples == 3
    assert found.bytes["replay"] == 3 * (4 + 8 + 8)  # four pixels, the label, the task
    assert found.bytes["counters"] == 4 * 8 + 4


def test_options():
    assert label("er", EROptions(capacity=50, balance="class")) == "er:capacity=50:balance=class"
    for wrong, message in (({"capacity": 0}, "er.capacity"), ({"balance": "task"}, "er.balance")):
        with pytest.raises(SpecError, match=message):
            validate(EROptions, wrong, "er", "clbench methods")


@pytest.mark.parametrize("share", [0.05, 0.29, 0.5, 1.0, 1.7])
def test_a_share_is_replayed_in_addition_to_the_new_samples(share):
    strategy, hundredths = make(capacity=40, share=share), round(100 * share)
    for step in range(60):
        held = len(strategy.memory_y)
        out = strategy.prepare_batch(batch(8, seed=step))
        wanted = (hundredths * 8 * (step + 1)) // 100 - (hundredths * 8 * step) // 100
        assert out.replayed == len(out.y) - 8 == min(wanted, held)
    assert strategy.joined == 480


def test_a_share_counts_new_samples_where_batches_differ_in_size():
    strategy = make(capacity=40, share=0.25, update="task")
    strategy.after_task(Task(0, (0, 1), Samples(*(getattr(batch(20), part) for part in ("x", "y", "tasks")))))
    sizes = [3, 3, 3, 1, 7, 2, 5]
    counts = [strategy.prepare_batch(batch(n, 1)).replayed for n in sizes]
    assert counts == [0, 1, 1, 0, 2, 0, 2]  # floor of 0.75, 1.5, 2.25, 2.5, 4.25, 4.75, 6, one less the other


def test_without_a_share_nothing_changes_and_keys_stay():
    plain, whole = make(capacity=10), make(capacity=10, share=1.0)
    for step in range(6):
        outs = [s.prepare_batch(batch(6, seed=step)) for s in (plain, whole)]
        assert torch.equal(outs[0].x, outs[1].x)
    assert "share" not in EROptions().model_dump() and EROptions(share=0.5).model_dump()["share"] == 0.5
    assert label("er", EROptions(share=0.05)) == "er:share=0.05"


@pytest.mark.parametrize("index", [0, 1, 3])
def test_losses_of_new_and_replayed_samples_are_weighted_by_task(index):
    """1/t and 1 - 1/t, each times a mean, in numpy."""
    import numpy as np

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    stream_info = StreamInfo(8, 4, "class", (1, 2, 2), generator, prepare=lambda x: x.double() / 255)
    strategy = ER(mlp(MLPOptions(width=5), (1, 2, 2), 8), stream_info, EROptions(weights="by-task")).double()
    strategy.class_mask[:] = True
    strategy.prepare_batch(batch(4, 0, seed=1))
    out = strategy.prepare_batch(Batch(batch(6, index, seed=2).x, batch(6, index, seed=2).y,
                                       torch.full((6,), index), index))
    assert out.replayed == 4
    prepared = Batch(stream_info.prepare(out.x), out.y, out.tasks, index, replayed=4)
    logits = strategy.model(prepared.x).detach().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(p[np.arange(10), out.y.numpy()])
    t = index + 1
    assert strategy.loss(prepared).item() == pytest.approx(losses[:6].mean() / t + (1 - 1 / t) * losses[6:].mean())
    new = prepared.part(0, 6)
    assert strategy.loss(new).item() == pytest.approx(losses[:6].mean())  # no weight without replayed samples
    assert "count the tasks" in EROptions(weights="by-task").needs_boundaries.replace("counts", "count")


def test_declarations_of_er_stay_but_for_weighted_losses():
    from clbench.strategy.base import declares

    plain, weighted = make(), make(weights="by-task")
    assert declares(plain, "inputs_only_through_model") and declares(plain, "loss_is_mean")
    assert declares(weighted, "inputs_only_through_model") and not declares(weighted, "loss_is_mean")
