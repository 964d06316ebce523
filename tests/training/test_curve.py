"""Accuracy while tasks are learned: training does not notice, stacks are as one, the numbers are those by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.methods import METHODS

from clbench.core import seeds
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.tiny import SAMPLES, TASKS, bench, tiny_stream
from clbench.training.callbacks import curve as curve_module
from clbench.training.callbacks.curve import CurveCallback, describe_evaluation_cost, points, some_tests
from clbench.training.loop import TrainingLoop

REGISTRY = discover()
RECIPE = Recipe(lr=0.01, batch_size=8, epochs=3)  # 9 steps a task
OTHERS = [(name, {}) for name in sorted({*REGISTRY.strategies} - {*dict(METHODS)}) if not name.startswith("avalanche:")]
EACH_TIME = ("naive", "er", "ewc", "der++", "a-gem", "icarl", "lora", "pnn", "ranpac", "l2p")  # all: slow tests
POINTS = [0, 1, 2, 3, 6, 9]


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """After two steps of a task only some have a point."""
    monkeypatch.setattr(curve_module, "FIRST", 2)


def lead(info, options, scenario="class", members=(0,), watch=True, model=None, samples=SAMPLES, recipe=RECIPE):
    """Train members together as a run does; return them, their curves, and what training told and left to be drawn."""
    benches = [bench(info, options, scenario, seed, model) for seed in members]
    curve = CurveCallback(3, samples)
    trainer = TrainingLoop([b.replica for b in benches], recipe, [curve] if watch else [])
    told = []
    with seeds.scope(0, "test"):
        for index in range(TASKS):
            told.append(trainer.train_task(index))
            if watch:
                curve.on_task(trainer, index)
        told.append(seeds.state())
    return benches, [replica.curve for replica in trainer.replicas], told


def assert_same(one, other):
    """Check that two strategies are alike: tensors, own draws, modes, and what is drawn globally after them."""
    tensors, tensors_2 = ({**dict(s.named_parameters()), **dict(s.named_buffers())} for s in (one, other))
    assert tensors.keys() == tensors_2.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, tensors_2[name])] == []
    assert torch.equal(one.stream_info.generator.get_state(), other.stream_info.generator.get_state())
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]


def watched_and_not(*args, **kwargs):
    """Train twice, check that nothing but the curve differs, and return the curves."""
    plain, _, told = lead(*args, watch=False, **kwargs)
    seen, curves, told_2 = lead(*args, **kwargs)
    for one, other in zip(plain, seen, strict=True):
        assert_same(one.strategy, other.strategy)
    assert told == told_2  # steps, trainable parameters, FLOPs, losses, the global generators
    return curves


@pytest.mark.parametrize(("name", "options"), [
    *(pytest.param(*one, marks=[] if one[0] in EACH_TIME else pytest.mark.slow) for one in METHODS),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS),
    ("avalanche:Naive", {})])  # which stands for all strategies of Avalanche: they have points at boundaries only
def test_training_is_the_same_bit_for_bit(name, options):
    curve, = watched_and_not(REGISTRY.strategy(name), options)
    boundaries_only = name.startswith("avalanche:")
    assert curve.steps[0] == ([0] if boundaries_only else points(curve.steps[0][-1], 3))
    assert [len(after) for after in curve.after] == [1, 2, 3]


@pytest.mark.parametrize(("name", "options", "model"), [
    ("er", {"capacity": 10}, "resnet20"), ("lora", {"rank": 2, "dropout": 0.5}, "vit")])
def test_neither_running_statistics_nor_dropout_notice(name, options, model):
    watched_and_not(REGISTRY.strategy(name), options, "task", model=model)


@pytest.mark.parametrize(("name", "options"), [
    ("er", {"capacity": 10}), ("icarl", {}), ("pnn", {})])
def test_a_stack_is_the_same_and_predicts_as_its_members_do(name, options, monkeypatch):
    info = REGISTRY.strategy(name)
    together = watched_and_not(info, options, members=(0, 1))
    monkeypatch.setattr(CurveCallback, "_count_as_stack", lambda *_: None)
    assert together == lead(info, options, members=(0, 1))[1]


class Stateful(Strategy):
    """Answers by what it keeps in a plain attribute, which a stack does not see."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.turn = int(torch.randint(0, stream_info.classes, (1,), generator=stream_info.generator))

    def predict(self, x, task=None):
        return Prediction(torch.roll(self(x), self.turn, 1))


class Looks(Strategy):
    """Looks at values, which a stack cannot do."""

    def predict(self, x, task=None):
        logits = self(x)
        return Prediction(-logits if float(logits.sum()) > 0 else logits)


class Attends(Strategy):
    """Uses attention, for which vmap has no rule."""

    def forward(self, x, task=None):
        tokens = self.model.features(x).view(len(x), 1, 3, -1)
        return self.model.head(F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1))


@pytest.mark.parametrize(("cls", "as_one"), [(Strategy, True), (Attends, True), (Stateful, False), (Looks, False)])
def test_members_that_do_not_predict_as_one_are_asked_one_by_one(cls, as_one, monkeypatch):
    asked = []
    inner = CurveCallback.measure
    monkeypatch.setattr(CurveCallback, "measure", lambda *args: asked.append(1) or inner(*args))
    info = StrategyInfo("x", cls, "")
    together = lead(info, {}, members=(0, 1))[1]
    assert len(asked) == (0 if as_one else 2 * 3 * len(POINTS)) + 2 * TASKS  # once more when it is consolidated
    assert together == [lead(info, {}, members=(seed,))[1][0] for seed in (0, 1)]


def test_the_numbers_are_those_of_training_so_many_steps():
    """A run of as many steps as there are before a point ends where the point is."""
    (_,), (curve,), _ = lead(REGISTRY.strategy("naive"), {}, "task")
    for steps in (1, 3, 6):
        b = bench(REGISTRY.strategy("naive"), {}, "task")
        trainer = TrainingLoop([b.replica], Recipe(lr=0.01, batch_size=8, iterations=steps))
        trainer.train_task(0)
        part = b.stream.tasks[0].test
        logits = b.strategy.eval()(b.stream.prepare(part.x))[:, :2]
        assert curve.right[0][0][POINTS.index(steps)] == int((logits.argmax(1) == part.y).sum())


def test_classes_so_far_compete_before_the_first_step_of_their_task():
    (_,), (curve,), _ = lead(REGISTRY.strategy("naive"), {}, "class")
    b = bench(REGISTRY.strategy("naive"), {}, "class")
    TrainingLoop([b.replica], RECIPE).train_task(0)
    part = b.stream.tasks[0].test
    logits = b.strategy.eval()(b.stream.prepare(part.x))
    assert curve.after[0][0] == int((logits[:, :2].argmax(1) == part.y).sum())
    assert curve.right[1][0][0] == int((logits[:, :4].argmax(1) == part.y).sum())


def test_the_chosen_samples_are_the_same_for_all_and_nested():
    stream = tiny_stream("class")
    few, more = some_tests(stream, 5), some_tests(stream, 9)
    assert few.sizes == (5, 5, 5) and some_tests(stream, 10**6).sizes == (SAMPLES,) * 3
    assert torch.equal(few.x, some_tests(tiny_stream("class"), 5).x)
    rows = {tuple(x.flatten().tolist()) for x in more.x}
    assert len(rows) == 27 and {tuple(x.flatten().tolist()) for x in few.x} < rows
    assert few.tasks.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_points_and_their_cost(monkeypatch):
    monkeypatch.setattr(curve_module, "FIRST", 50)
    assert points(60, 1) == list(range(61)) and points(7, 100) == list(range(8))
    assert points(235, 100) == [*range(51), 100, 200, 235]
    stream = tiny_stream("class")
    told = describe_evaluation_cost(Recipe(iterations=235, batch_size=8), stream, 100, 10)
    # 55 looks a task, and at the first, second and third at 10, 20 and 30 samples; a step is three predictions of 8
    assert "165 times on 10 test samples" in told and f"{55 * 60:,} predictions" in told
    assert f"about {100 * 55 * 60 / (3 * 8 * 235 * 3):.0f}% of" in told
    *tasks, last = stream.tasks
    few = replace(last.test, x=last.test.x[:4], y=last.test.y[:4], tasks=last.test.tasks[:4])
    unequal = replace(stream, tasks=(*tasks, replace(last, test=few)))
    assert "on 4 to 10 test samples" in describe_evaluation_cost(Recipe(epochs=1, batch_size=8), unequal, 1, 10)
    assert "3.3 times the FLOPs" in describe_evaluation_cost(Recipe(epochs=1, batch_size=8), stream, 1, 1000)


