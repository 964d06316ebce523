import copy
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.streams import stochastic

from clbench.accounting.callback import FlopsCallback
from clbench.core.errors import PluginError, SpecError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.data.prepare import CropFlip
from clbench.data.samples import UNSEEN, StochasticSamples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.persistence import callbacks
from clbench.persistence.callbacks import optimizer_state, restore_optimizer_state
from clbench.results.store import STATE
from clbench.strategy.base import Strategy, Task
from clbench.strategy.per_task import PerTaskStrategy
from clbench.testing.rules import divide_tasks
from clbench.testing.tiny import bench, snapshot, tiny_stream
from clbench.training.building import require_parts_fit
from clbench.training.evaluation import evaluate
from clbench.training.members import Unstackable
from clbench.training.sampling import BatchSampler, StreamSampler
from clbench.training.stream_loop import StreamLoop

RECIPE = Recipe(lr=0.01, batch_size=7, epochs=1)
UNEVEN = (30, 31, 11)  # no multiples of the batch


class Notes(Strategy):
    """Keeps what it is told."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.calls, self.seen, self.outputs_at = [], [], []

    def before_task(self, task):
        self.calls.append(("before", task.index, task.classes))

    def after_task(self, task):
        self.calls.append(("after", task.index, task.classes))

    def before_phase(self, task, phase):
        self.calls.append(("phase", phase, phase.steps))

    def observe(self, batch):
        assert batch.task == 0 and not batch.tasks.any() and batch.first_pass
        self.seen.append(batch.y.tolist())
        self.outputs_at.append(self.class_mask[0].nonzero()[:, 0].tolist())


NOTES = StrategyInfo("notes", Notes, "keeps what it is told", task_free=True)


def hidden(sizes=UNEVEN, scenario="class", seed=0):
    return divide_tasks(tiny_stream(scenario), sizes, seed)


def train(info, stream, options=None, seed=0, scenario="class", recipe=RECIPE, until=None):
    b = bench(info, options or {}, scenario, seed, stream=stream)
    trainer = StreamLoop([b.replica], recipe, [FlopsCallback()])
    done = [trainer.train_task(index)[0] for index in range(until or len(stream.tasks))]
    return b, done, trainer


def method(name):
    return discover().strategy(name)


def test_a_strategy_gets_one_task_in_batches_that_run_across_boundaries():
    stream = hidden()
    b, done, _ = train(NOTES, stream)
    assert b.strategy.calls == [("before", 0, tuple(range(6))), ("phase", 0, 11), ("after", 0, tuple(range(6)))]
    assert [len(y) for y in b.strategy.seen] == [7] * 10 + [2]
    assert [r.steps for r in done] == [5, 4, 2]  # 35 samples for a task of 30, 63 for 61, 72 for 72
    order = StreamSampler([t.train for t in stream.tasks], 1, 0)
    assert [y for batch in b.strategy.seen for y in batch] == order.y.tolist()


def test_samples_of_a_task_come_before_those_of_the_next_in_the_order_of_its_first_pass():
    stream = tiny_stream("class")
    flow = StreamSampler([t.train for t in stream.tasks], 24, 5)
    for index, task in enumerate(stream.tasks):
        usual = BatchSampler(24, 24, 5, index).next_batch(task.train)
        assert torch.equal(flow.next_batch(task.train).x, usual.x)


def test_an_output_becomes_active_with_its_first_sample():
    b, *_ = train(NOTES, hidden())
    passed = set()
    for labels, outputs in zip(b.strategy.seen, b.strategy.outputs_at, strict=True):
        passed |= set(labels)
        assert set(outputs) == passed
    b, *_ = train(NOTES, hidden(scenario="domain"), scenario="domain")
    assert b.strategy.outputs_at[0] == [0, 1]  # which all tasks share


def test_plain_training_on_the_same_batches_gives_the_same_weights():
    stream = hidden()
    b, *_ = train(method("naive"), stream)
    other = bench(method("naive"), {}, "class", stream=stream).strategy
    flow = StreamSampler([t.train for t in stream.tasks], 7, 0)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    met = torch.zeros(6, dtype=torch.bool)
    for _ in range(11):
        batch = flow.next_batch(stream.tasks[0].train)
        met[batch.y] = True
        optimizer.zero_grad()
        F.cross_entropy(other.model(stream.prepare(batch.x)).masked_fill(~met, -torch.inf), batch.y).backward()
        optimizer.step()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(b.strategy.state_dict()[name], value, msg=name)


def test_the_rate_falls_over_the_whole_stream():
    recipe = RECIPE.model_copy(update={"schedule": "cosine"})
    whole, *_ = train(method("naive"), divide_tasks(tiny_stream("class"), (72,), 0), recipe=recipe)
    parts, *_ = train(method("naive"), hidden(), recipe=recipe)
    constant, *_ = train(method("naive"), hidden())
    assert all(torch.equal(a, b) for a, b in zip(whole.strategy.parameters(), parts.strategy.parameters(), strict=True))
    assert not torch.equal(next(iter(parts.strategy.parameters())), next(iter(constant.strategy.parameters())))


@pytest.mark.parametrize("name", ["ncm", "simplecil", "slda"])
def test_what_is_learned_as_it_passes_is_what_is_learned_at_once(name):
    """Sums do not depend on batches: the rule in the end is that of given boundaries."""
    passing, done, loop = train(method(name), hidden(), {"base": "random"})
    given = bench(method(name), {"base": "random"}, "class")
    for index in range(3):
        given.learn(index)
    torch.testing.assert_close(passing.strategy.weight, given.strategy.weight, rtol=1e-6, atol=1e-6)
    assert torch.equal(passing.strategy.counts, given.strategy.counts)
    assert [r.steps for r in done] == [0, 0, 0] and loop.replicas[0].costs.train_flops[0] > 0
    rows = [evaluate(b.strategy, b.stream, "class", 3).accuracy for b in (passing, given)]
    assert sum(rows[0]) / 3 == pytest.approx(sum(rows[1]) / 3)


def test_slda_can_be_asked_in_the_middle():
    eights = RECIPE.model_copy(update={"batch_size": 8})
    b, *_ = train(method("slda"), hidden((24, 24, 24)), {"base": "random"}, recipe=eights, until=1)
    given = bench(method("slda"), {"base": "random"}, "class")
    given.learn(0)
    x = b.stream.prepare(b.stream.tasks[0].test.x)
    torch.testing.assert_close(b.strategy(x)[:, :2], given.strategy(x)[:, :2])


def test_a_memory_is_filled_as_samples_pass():
    naive, *_ = train(method("naive"), hidden())
    for name in ("a-gem", "mir"):
        b, *_ = train(method(name), hidden(), {"capacity": 20})
        assert len(b.strategy.memory_y) == 20 and int(b.strategy.memory_seen.sum()) == 72
        assert not torch.equal(next(b.strategy.parameters()), next(naive.strategy.parameters())), name
    assert "boundaries are hidden" in b.strategy.notes[0]


def test_the_reference_of_a_gem_is_drawn_before_the_batch_is_offered():
    b, *_ = train(method("a-gem"), hidden(), {"capacity": 20}, until=1)
    strategy = b.strategy
    before = [strategy.memory_x.clone(), strategy.memory_y.clone()]
    batch = StreamSampler([b.stream.tasks[1].train], 7, 0).next_batch(b.stream.tasks[1].train)
    strategy.observe(batch)
    assert len(strategy.drawn_y) == 20
    rows = {x.numpy().tobytes() for x in before[0]}
    assert all(x.numpy().tobytes() in rows for x in strategy.drawn_x)
    assert int(strategy.memory_seen.sum()) == 35 + 7


def test_the_samples_of_the_stream_cannot_be_had_at_once():
    class Peeks(Strategy):
        def after_task(self, task):
            len(task.train)

    with pytest.raises(SpecError, match=r"Task\.train is not available"):
        train(StrategyInfo("peeks", Peeks, "", task_free=True), hidden())

    class Phases(Strategy):
        def phases(self, task):
            return 2

    with pytest.raises(SpecError, match="Phases has phases"):
        train(StrategyInfo("phases", Phases, "", task_free=True), hidden())


def test_it_goes_on_in_the_middle_as_if_nothing_had_happened():
    recipe = RECIPE.model_copy(update={"schedule": "cosine", "warmup_ratio": 0.2})
    stream = replace(hidden(), augment=CropFlip())
    whole, *_ = train(method("er"), stream, {"capacity": 20}, recipe=recipe)
    half, _, trainer = train(method("er"), stream, {"capacity": 20}, recipe=recipe, until=1)
    moments = optimizer_state(trainer, 0)
    fresh = bench(method("er"), {"capacity": 20}, "class", stream=stream)
    fresh.replica.retrace(1, recipe)
    fresh.strategy.load_state_dict(copy.deepcopy(half.strategy.state_dict()))
    fresh.strategy.stream_info.generator.set_state(half.strategy.stream_info.generator.get_state())
    on = StreamLoop([fresh.replica], recipe, learned=1)
    on.train_step = restore_optimizer_state([fresh.strategy], recipe, [moments])
    for index in (1, 2):
        on.train_task(index)
    for name, value in snapshot(whole.strategy).items():
        assert torch.equal(value, fresh.strategy.state_dict()[name]), name


@pytest.mark.parametrize("name", ["er", "a-gem", "der++"])
def test_a_stack_trains_as_its_members_do(name):
    streams = [hidden(seed=s) for s in (0, 1)]
    alone = [train(method(name), stream, {"capacity": 20}, s)[0] for s, stream in enumerate(streams)]
    benches = [bench(method(name), {"capacity": 20}, "class", s, stream=stream) for s, stream in enumerate(streams)]
    trainer = StreamLoop([b.replica for b in benches], RECIPE)
    for index in range(3):
        trainer.train_task(index)
        for b in benches:  # in the middle, too
            evaluate(b.strategy, b.stream, "class", index + 1)
    for one, b in zip(alone, benches, strict=True):
        for n, p in one.strategy.named_parameters():
            torch.testing.assert_close(dict(b.strategy.named_parameters())[n], p, rtol=1e-3, atol=1e-4)
        assert torch.equal(one.strategy.memory_y, b.strategy.memory_y)
    with pytest.raises(Unstackable, match="other numbers of samples"):
        StreamLoop([replace(b.replica, stream=stream) for b, stream in zip(
            benches, (hidden(), hidden((24, 24, 24))), strict=True)], RECIPE)


def test_seeds_with_other_phases_do_not_train_as_a_stack():
    class Passes(Strategy):
        passive = False

        def phases(self, task):
            return int(not self.passive)

    info = StrategyInfo("passes", Passes, "", task_free=True)
    benches = [bench(info, {}, "class", s, stream=hidden(seed=s)) for s in (0, 1)]
    benches[1].strategy.passive = True
    with pytest.raises(Unstackable, match="its phases differ between the trials"):
        StreamLoop([b.replica for b in benches], RECIPE).train_task(0)


def test_random_transforms_are_drawn_from_the_seed():
    parts = stochastic("class").tasks
    stream = replace(tiny_stream("class"), tasks=parts, hidden=True)
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        ends.append(snapshot(train(method("naive"), stream)[0].strategy))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(("name", "options"), [("slda", {"base": "random"}), ("naive", {})])
def test_random_transforms_do_not_show_where_tasks_end(name, options):
    """Two streams of the same samples in the same order, with other boundaries; samples are drawn from torch."""
    ends = []
    for sizes in (UNEVEN, (24, 24, 24)):
        stream = hidden(sizes)
        parts = [replace(t, train=StochasticSamples(t.train.x, t.train.y, t.train.tasks, partial(add_noise, t.train.x)))
                 for t in stream.tasks]
        ends.append(snapshot(train(method(name), replace(stream, tasks=tuple(parts)), options)[0].strategy))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def add_noise(x, index):
    return x[index] + torch.randint(0, 20, x.shape[1:], dtype=torch.uint8)


class PreparesPhase(Strategy):
    """Draws and computes in `before_phase`."""

    follows = False

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("noise", torch.zeros(2))
        self.register_buffer("copy", torch.zeros(6))

    def before_phase(self, task, phase):
        self.noise = torch.rand(2)
        with torch.no_grad():
            self.model(torch.zeros(100, 1, 8, 8))
        if self.follows:
            self.copy = self.model.head.bias.detach()


def test_what_a_strategy_does_before_the_only_phase_is_the_same_in_a_stack_and_counted_and_checked():
    info = StrategyInfo("prepares", PreparesPhase, "", task_free=True)
    streams = [hidden(seed=s) for s in (0, 1)]
    alone = [train(info, stream, seed=s, until=1)[0] for s, stream in enumerate(streams)]
    benches = [bench(info, {}, "class", s, stream=stream) for s, stream in enumerate(streams)]
    StreamLoop([b.replica for b in benches], RECIPE).train_task(0)
    assert [b.strategy.noise.tolist() for b in benches] == [b.strategy.noise.tolist() for b in alone]
    flops = [train(one, streams[0], until=1)[2].replicas[0].costs.train_flops[0] for one in (info, method("naive"))]
    assert flops[0] > flops[1]
    follows = bench(info, {}, "class", stream=streams[0])
    follows.strategy.follows = True
    with pytest.raises(PluginError, match="the buffer copy of PreparesPhase"):
        StreamLoop([follows.replica], RECIPE).train_task(0)


@hookimpl
def clbench_strategies():
    return [NOTES]


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    plugin = types.ModuleType("notes_plugin")
    plugin.clbench_strategies = clbench_strategies
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", discover([plugin]))


def planned(runner, methods, **values):
    return plan(build({"seeds": 1, "model": "mlp:width=16", "benchmark": "helpers.tiny_benchmarks:flat",
                       "scenario": "class", "methods": methods, **values}), runner.registry)


def test_a_task_with_hidden_boundaries_can_be_printed():
    assert "train=UnseenSamples()" in str(Task(0, (0, 1), UNSEEN))


HIDDEN = {"arrival": {"boundaries": "hidden", "blur": 0.25}, "recipe": {"batch_size": 9}}


def test_a_record_says_how_samples_arrived(runner):
    record = runner.run(planned(runner, "er", **HIDDEN)[0])
    assert record.status == "done" and len(record.R) == 3 and record.costs.steps == [5, 4]
    assert record.stream.arrivals == [[15, 15, 5, 5], [5, 5, 15, 15]] and record.stream.train_samples == [40, 40]
    assert record.stream.classes == [[0, 1], [2, 3]]
    assert type(record).model_validate_json(record.model_dump_json(by_alias=True)) == record
    plain = runner.run(planned(runner, "er")[0])
    assert "arrivals" not in plain.model_dump_json() and "arrival" not in plain.trial.model_dump_json()
    assert "9 optimizer steps" in runner.prepare(planned(runner, "er", **HIDDEN)[0].trial)[0]


def test_seeds_have_streams_of_their_own_and_methods_share_them(runner):
    first, second = (planned(runner, "naive", seeds=2, **HIDDEN)[i].trial for i in (0, 1))
    prints = [runner.stream(t).fingerprint for t in (first, second, planned(runner, "er", **HIDDEN)[0].trial)]
    assert prints[0] == prints[2] != prints[1]


def test_a_run_goes_on_from_a_checkpoint_at_a_true_boundary(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    one = planned(runner, "a-gem", **HIDDEN)[0]
    whole = runner.run(one)
    resumable = TrialRunner(runner.settings, "cpu", "a test", runner.registry, checkpoints=tmp_path)

    write = callbacks.write

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        resumable.run(one)
    monkeypatch.setattr(callbacks, "write", write)
    assert (tmp_path / one.trial.key / STATE).exists()
    again = resumable.run(one)
    assert not any("started over" in note for note in again.notes)
    assert again.facts() == whole.facts()


def test_a_part_for_each_task_that_no_declaration_tells_of_is_refused(runner):
    class Parts(PerTaskStrategy):
        def forward_task(self, x, task):
            return self.model(x)

        def shared_features(self, x):
            return self.model.features(x)

    trial = planned(runner, "naive", arrival={"blur": 0.1})[0].trial
    with pytest.raises(SpecError, match="has a part for each task"):
        b = bench(StrategyInfo("parts", Parts, "", method("lora").options), {}, "task")
        require_parts_fit(trial, b.strategy, b.stream)
