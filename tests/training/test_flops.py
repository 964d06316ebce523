from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clbench.accounting import callback
from clbench.accounting.callback import FlopsCallback, evaluation_flops
from clbench.accounting.flops import FORMULAS, FlopCount, formula_of, grouped_product
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data import tests as data_tests
from clbench.execution import trial_runner
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import build
from clbench.models.language_model import LanguageModel
from clbench.models.network import Block, Network
from clbench.models.scoring import IGNORED
from clbench.strategy.base import Batch, Strategy, StreamInfo
from clbench.testing.tiny import bench
from clbench.training import precision
from clbench.training.callbacks.interface import Callback
from clbench.training.loop import TrainingLoop

REGISTRY = discover()
RECIPE = {"iterations": 11, "batch_size": 192}  # 800 samples of a task: five batches a pass, the last one of 32
FEW_STEPS = {"iterations": 5, "batch_size": 96}  # of networks that take long


def counted(run):
    """Return the FLOPs of a call as we count them, by torch's counter with our formulas, and by it alone."""
    with FlopCount() as ours:
        run()
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as theirs:
        run()
    with FlopCounterMode(display=False) as bare:
        run()
    return ours.total, theirs.get_total_flops(), bare.get_total_flops()


def test_products_and_convolutions_are_counted_as_torch_counts_them():
    x = torch.randn(5, 4, 8, 8)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 10))
    forward = 2 * 5 * (64 * 6 * 4 * 9 + 6 * 64 * 10)
    weights_and_inner_input = forward + 2 * 5 * 6 * 64 * 10
    assert counted(lambda: network(x).sum().backward()) == (forward + weights_and_inner_input,) * 3
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    products = lambda: (a @ b, torch.baddbmm(torch.zeros(3, 4, 6), a, b), torch.einsum("bij,bjk->bik", a, b))  # noqa: E731
    assert counted(products) == (3 * 2 * 3 * 4 * 5 * 6,) * 3
    with torch.inference_mode():
        assert counted(lambda: network(x))[0] == forward  # torch before 2.6 sees nothing here


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, groups=4),
                                   nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)])
def test_gradients_of_a_grouped_convolution_cost_twice_what_it_does(layer):
    x = torch.randn(5, 4, 8, 8, requires_grad=True)
    positions = 64 if isinstance(layer, nn.ConvTranspose2d) else layer(x)[0, 0].numel()
    ours, _, bare = counted(lambda: layer(x).sum().backward())
    assert ours == 3 * 2 * 5 * positions * layer.weight.numel() < bare


def test_attention_on_a_cpu_costs_what_its_products_do():
    q, k, v = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (7, 9, 9))
    product = 2 * 2 * 3 * 7 * 9 * 4
    attention = lambda: F.scaled_dot_product_attention(q, k, v)  # noqa: E731
    with torch.no_grad():
        assert counted(attention) == (2 * product, 2 * product, 0)
    assert counted(lambda: attention().sum().backward())[0] == (2 + 5) * product


def test_multihead_attention_costs_the_same_by_its_fast_path_and_without():
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(3, 9, 16)
    forward = lambda: layer(x, x, x, need_weights=False)  # noqa: E731
    with torch.no_grad():
        fast = counted(forward)[0]
    assert fast == counted(forward)[0] == 3 * (4 * 2 * 9 * 16 * 16 + 2 * 2 * 9 * 9 * 16)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
def test_a_fused_encoder_layer_costs_what_its_parts_do():
    layer, x = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), torch.randn(3, 9, 16)
    in_parts = counted(lambda: layer(x))[0]
    layer.eval()
    with torch.no_grad():
        assert counted(lambda: layer(x))[0] == in_parts == 3 * 9 * 2 * (4 * 16 * 16 + 2 * 9 * 16 + 2 * 16 * 24)
        encoder, padding = nn.TransformerEncoder(layer, 2).eval(), torch.zeros(3, 9, dtype=torch.bool)
        padding[0, 5:] = True
        with FlopCount() as ours:  # torch's counter does not take the nested tensors
            encoder(x, src_key_padding_mask=padding)
        assert ours.total == 2 * in_parts


def test_products_with_vectors_are_products():
    a, b = torch.randn(4, 5), torch.randn(5)
    assert counted(lambda: (a @ b, b @ b, torch.addmv(torch.zeros(4), a, b)))[0] == 2 * (20 + 5 + 20)
    assert counted(lambda: (a + 1, a.softmax(1), F.layer_norm(a, (5,)), torch.linalg.svd(a)))[0] == 0


def test_products_of_three_factors_cost_what_the_product_with_the_weight_does():
    layer, a, b = nn.Bilinear(6, 7, 5), torch.randn(3, 6), torch.randn(3, 7)
    assert counted(lambda: layer(a, b).sum().backward())[0] == 2 * 2 * 3 * 5 * 6 * 7  # and the gradient of the weight


@pytest.mark.parametrize(("a", "b", "flops"), [((8, 16), (2, 16, 24), 2 * 8 * 16 * 24),
                                               ((16, 8), (8, 24), 2 * 16 * 8 * 24),
                                               ((2, 4, 16), (16, 8), 2 * 4 * 16 * 8),
                                               ((2, 4, 16), (2, 16, 24), 2 * 2 * 4 * 16 * 24)])
def test_products_of_experts_cost_what_their_rows_do(a, b, flops):
    assert grouped_product(a, b) == flops
    if hasattr(torch.ops.aten, "_grouped_mm"):
        assert formula_of(torch.ops.aten._grouped_mm.default)([torch.empty(a), torch.empty(b)], {}, None) == flops


def tasks_of(model):
    return 5 if model.startswith("mlp") else 2  # others take long


def planned(method, model="mlp:width=16", scenario="class", seeds=1, **recipe):
    return plan(build({"methods": method, "model": model, "scenario": scenario, "seeds": seeds,
                       "recipe": {**(FEW_STEPS if model.startswith("resnet") else RECIPE), **recipe},
                       "benchmark": f"split-mnist-5k:tasks={tasks_of(model)}"}), REGISTRY)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def runner(data):
    return TrialRunner(ExecutionSettings(data=data), "cpu", "a test", REGISTRY)


class OverTokens(nn.Module):
    """A layer on each token; the mean of its outputs if it is not the body of a language model."""

    def __init__(self, mean):
        super().__init__()
        self.layer, self.mean = nn.Linear(1, 4), mean

    def forward(self, x):
        out = self.layer(x.unsqueeze(-1).float())
        return out.mean(1) if self.mean else out


@pytest.mark.parametrize("objective", ["classification", "causal-lm"])
def test_texts_count_with_the_padding_of_their_batches(objective):
    """The first two texts are short, and have fewer scored tokens than the others."""
    is_lm = objective == "causal-lm"
    x = torch.full((70, 64), -1, dtype=torch.int32)
    for row in range(70):
        x[row, :4 if row < 32 else 40 + row % 8] = row
    y = x.masked_fill(x < 0, IGNORED) if is_lm else torch.zeros(70, dtype=torch.long)
    tests = data_tests.Tests(x, y, torch.zeros(70, dtype=torch.long), (70,), None, token_labels=is_lm)
    info = StreamInfo(70, 1, "class", (64,), torch.Generator(), is_text=True, objective=objective)
    stream = SimpleNamespace(tests=tests, input_shape=(2**15,), is_text=True, predicts_tokens=is_lm)  # batches of 32
    network = LanguageModel if is_lm else Network
    strategy = Strategy(network([Block(OverTokens(not is_lm), nn.Identity())], nn.Linear(4, 70)), info)
    with torch.no_grad(), FlopCount() as count:
        for texts, labels, _ in tests.batches(32):
            strategy.objective.scores(strategy, strategy.predict(texts).logits, labels)
    assert evaluation_flops(strategy, stream, None) * 70 == count.total


class EveryStep(FlopsCallback):
    """Counts every step and every draw of replay, by torch's counter."""

    @contextmanager
    def _every(self, replica):
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as count:
            yield
        self.totals[replica] += count.get_total_flops()

    def around_prepare(self, replica, batch=None):
        return super().around_prepare(replica) if batch is None else self._every(replica)

    def around_step(self, training, batches):
        replica, = training.replicas
        return self._every(replica)


SLOW = pytest.mark.slow
METHODS = [
    ("er:capacity=150", "mlp:width=16", "class"), ("pnn", "cnn:channels=4:depth=1", "task"),
    *(pytest.param(method, "mlp:width=16", "class", marks=SLOW) for method in (
        "ewc", "icarl:capacity=60", "a-gem", "er:update=task", "o-lora:dropout=0")),
    pytest.param("lora:layers=attention", "vit-tiny:width=12:depth=2:patch=7", "task", marks=SLOW),
    pytest.param("er:capacity=60", "resnet20:width=2", "class", marks=SLOW),
]


@pytest.mark.parametrize(("method", "model", "scenario"), METHODS)
def test_the_record_has_what_counting_every_step_gives(runner, monkeypatch, method, model, scenario):
    one, = planned(method, model, scenario)
    record = runner.run(one)
    assert record.status == "done", record.failure
    monkeypatch.setattr(trial_runner, "FlopsCallback", EveryStep)
    every = runner.run(one)
    assert record.costs.train_flops == every.costs.train_flops
    assert len(record.costs.train_flops) == len(record.costs.inference_flops) == tasks_of(model)
    assert min(record.costs.train_flops) > 0 < min(record.costs.inference_flops)
    monkeypatch.setattr(trial_runner, "FlopsCallback", Callback)
    bare = runner.run(one)
    assert not bare.costs.train_flops
    assert record.R == every.R == bare.R  # to count changes nothing


@pytest.mark.parametrize(("method", "model", "scenario"), [
    *((method, "mlp:width=16", "class") for method in ("ewc", "lora")),
    pytest.param("pnn", "mlp:width=16", "class", marks=SLOW),
    pytest.param("l2p", "vit-tiny:width=12:depth=2:patch=7", "task", marks=SLOW),
    pytest.param("er:capacity=60", "resnet20:width=2", "class", marks=SLOW),
    pytest.param("lora:layers=attention", "vit-tiny:width=12:depth=2:patch=7", "task", marks=SLOW)])
def test_a_stack_counts_what_each_member_would_compute_alone(runner, method, model, scenario):
    group = planned(method, model, scenario, seeds=2)
    stack, alone = runner.run_stack(group), [runner.run(one) for one in group]
    assert [r.costs.train_flops for r in stack] == [r.costs.train_flops for r in alone]
    assert [r.costs.inference_flops for r in stack] == [r.costs.inference_flops for r in alone]
    assert not stack[0].notes


@pytest.mark.slow
def test_parts_of_a_batch_are_counted_each(runner, monkeypatch):
    group = planned("o-lora:rank=2:dropout=0", seeds=2, accumulate=3)  # its penalty is computed in each part
    stack, alone = runner.run_stack(group), [runner.run(one) for one in group]
    whole = runner.run(planned("o-lora:rank=2:dropout=0")[0])
    assert [r.costs.train_flops for r in stack] == [r.costs.train_flops for r in alone] and not stack[0].notes
    assert alone[0].costs.train_flops[1] > whole.costs.train_flops[1]
    monkeypatch.setattr(trial_runner, "FlopsCallback", EveryStep)
    assert runner.run(group[0]).costs.train_flops == alone[0].costs.train_flops


def test_an_mlp_costs_what_its_layers_do(runner):
    record = runner.run(planned("naive")[0])
    layers = [784 * 16, 16 * 16, 16 * 10]
    forward, backward = 2 * sum(layers), 2 * (2 * sum(layers) - layers[0])  # nobody needs the gradient of the images
    assert record.costs.train_flops == [(2 * 800 + 192) * (forward + backward)] * 5
    assert record.costs.inference_flops == [forward] * 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.parametrize("method", ["lora", pytest.param("a-gem", marks=SLOW)])
def test_a_compiled_loss_counts_as_the_uncompiled_one(runner, data, monkeypatch, method):
    # What its graphs are run by makes no difference, and to compile them to code would take most of a minute.
    monkeypatch.setattr("clbench.execution.trial_runner.Compiler", partial(precision.Compiler, backend="eager"))
    one, = planned(method)
    compiled = TrialRunner(ExecutionSettings(data=data, compile=True), "cpu", "a test", REGISTRY)
    found = compiled.run(one)
    assert not found.notes
    assert found.costs.train_flops == runner.run(one).costs.train_flops


@pytest.mark.parametrize("method", ["Replay", "GEM", "JointTraining"])
def test_a_loop_of_its_own_is_counted_as_torch_counts_it(runner, monkeypatch, method):
    if f"avalanche:{method}" not in REGISTRY.strategies:
        pytest.skip(f"avalanche:{method} needs a solver that is not installed")
    one, = planned(f"avalanche:{method}")
    record = runner.run(one)
    assert record.status == "done", record.failure
    monkeypatch.setattr(EveryStep, "around_prepare", lambda self, replica, batch=None: self._every(replica))
    monkeypatch.setattr(trial_runner, "FlopsCallback", EveryStep)
    every = runner.run(one)
    monkeypatch.setattr(trial_runner, "FlopsCallback", Callback)
    bare = runner.run(one)
    assert record.costs.train_flops == every.costs.train_flops
    assert min(record.costs.train_flops) > 0
    assert record.R == every.R == bare.R  # to count changes nothing


class Grows(Strategy):
    """Looks at as many of its samples as a counter says, through modules and without."""

    looks = 0

    def prepare_batch(self, batch):
        self.looks += 1
        with torch.no_grad():
            self.model(self.stream_info.prepare(batch.x[:self.looks % 5 + 1]))
            torch.ones(3, 3) @ torch.ones(3, 3)
        return batch


def test_draws_of_replay_are_counted_by_what_they_run():
    one = bench(StrategyInfo("grows", Grows, ""), {}, "class")
    batch = one.batch(0)
    sample = sum(2 * p.numel() for p in one.strategy.model.parameters() if p.dim() == 2)
    flops, runs = FlopsCallback(), []
    for _ in range(12):
        with flops.count_draw(one.strategy, batch) as count:
            assert isinstance(one.strategy.prepare_batch(batch), Batch)
        runs.append(count.total)
    assert runs == [sample * (look % 5 + 1) + 2 * 27 for look in range(1, 13)]
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


class ReplaysInItsLoss(Strategy):
    """Replays the previous batch; there is none in the first step."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.register_buffer("latest_x", torch.empty(0))
        self.register_buffer("memory_x", torch.empty(0))

    def prepare_batch(self, batch):
        self.memory_x, self.latest_x = self.latest_x, batch.x
        return batch

    def loss(self, batch):
        loss = super().loss(batch)
        return loss + self(self.stream_info.prepare(self.memory_x)).square().mean() if len(self.memory_x) else loss


class ReplaysFromAModule(Strategy):
    """Replays the previous batch, which a module of its own stores; there is none in the first step."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.memory = nn.Module()
        self.memory.register_buffer("latest", torch.empty(0))
        self.memory.register_buffer("previous", torch.empty(0))

    def prepare_batch(self, batch):
        self.memory.previous, self.memory.latest = self.memory.latest, batch.x
        return batch

    def loss(self, batch):
        x, loss = self.memory.previous, super().loss(batch)
        return loss + self(self.stream_info.prepare(x)).square().mean() if len(x) else loss


@pytest.mark.parametrize("cls", [ReplaysInItsLoss, ReplaysFromAModule])
def test_a_loss_over_a_buffer_is_counted_again_when_the_buffer_grows(cls):
    totals = []
    for counting in (FlopsCallback, EveryStep):
        one = bench(StrategyInfo("replays", cls, ""), {}, "class")
        loop = TrainingLoop([one.replica], Recipe(batch_size=8, epochs=2), [counting()])
        replica, = loop.replicas
        loop.train_task(0)
        totals.append(replica.costs.train_flops)
    assert totals[0] == totals[1] != [0]


def test_counted_edits_leave_no_trace():
    one = bench(StrategyInfo("naive", Strategy, ""), {}, "class")
    with callback.counted_edits([one.strategy]) as counts:
        one.strategy.edit_gradients({"a": torch.ones(2)})
    assert counts[0].total == 0
    assert "edit_gradients" not in vars(one.strategy)


def test_processor_seconds_stand_beside_those_of_the_clock(runner):
    for record in runner.run_stack(planned("naive", seeds=2)):
        times = record.timings
        for wall, cpu in ((times.train, times.train_cpu), (times.consolidate, times.consolidate_cpu),
                          (times.evaluate, times.evaluate_cpu)):
            assert len(wall) == len(cpu) and min(cpu) >= 0
        assert 0 < sum(times.train_cpu) < 1.5 * sum(times.train)  # of one thread and a little


@pytest.mark.parametrize("name", ["before_task", "training_samples", "before_phase", "phase_samples", "after_task"])
def test_what_a_strategy_computes_between_steps_is_counted(name):
    def compute(self, *args):
        with torch.no_grad():
            self.model(torch.zeros(100, 1, 8, 8))
        return getattr(Strategy, name)(self, *args)

    flops = []
    for cls in (Strategy, type("Computes", (Strategy,), {name: compute})):
        replica = bench(StrategyInfo("computes", cls, ""), {}, "class").replica
        TrainingLoop([replica], Recipe(batch_size=8, epochs=1), [FlopsCallback()]).train_task(0)
        flops.append(replica.costs.train_flops[0])
    with FlopCount() as count, torch.no_grad():
        replica.strategy.model(torch.zeros(100, 1, 8, 8))
    assert flops[1] == flops[0] + count.total
