"""Avalanche's own strategies as methods: the same as ours where they should be, counted, and honest about the rest."""

import inspect
import types
import typing
from dataclasses import replace

import pytest
import torch
from clbench_avalanche import UNUSABLE, USABLE, load
from clbench_avalanche import options as o
from helpers.training import loop
from torch import nn

from clbench.accounting.count import count
from clbench.accounting.shapes import stream_of_shapes
from clbench.core import options as opt
from clbench.core import seeds
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.avalanche.build import import_avalanche
from clbench.data.prepare import CropFlip
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.testing.checks import CHECKS, check
from clbench.testing.tiny import SAMPLES, TASKS, bench
from clbench.training.costs import measure
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop

NAMES = [options.strategy for options, _ in USABLE]
PARAMETERS, PIXELS = 64 * 12 + 12 + 12 * 12 + 12 + 12 * 6 + 6, 64
# The training arguments, what follows from the model, and whether to show a progress bar.
NOT_OPTIONS = {"self", "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "eval_mb_size", "device",
               "plugins", "evaluator", "eval_every", "peval_mode", "kwargs", "base_kwargs", "cwr_layer_name",
               "feature_extractor", "input_size", "last_layer_name", "verbose"}
AT_ONCE = Recipe(lr=0.02, batch_size=8, epochs=6)
# What ends with Naive's weights after two tasks: SynapticIntelligence and MIR for reasons tested below; in task no
# gradients are in conflict, so AGEM projects none.
NAIVE = {"task": {"Naive", "SynapticIntelligence", "MIR", "AGEM"}, "domain": {"Naive", "SynapticIntelligence", "MIR"}}


@pytest.fixture(scope="module")
def supervised():
    import_avalanche()
    from avalanche.training import supervised

    return supervised


@pytest.fixture(scope="module")
def methods():
    return discover().strategies


def learned(info, scenario, recipe=AT_ONCE, options=None, tasks=TASKS, model="mlp", augment=None):
    """Return a strategy after some tasks, with its accuracy on each right after it was learned, and what was done."""
    b = bench(info, options or {}, scenario, model=model)
    trainer = TrainingLoop([replace(b.replica, stream=replace(b.stream, augment=augment))], recipe)
    right, done = [], []
    for index in range(tasks):
        trained, = trainer.train_task(index)
        done.append(trained)
        right.append(evaluate(b.strategy, b.stream, scenario, index + 1).accuracy[index])
    return b.strategy, right, done


def annotation_fits(own, theirs):
    if theirs is inspect.Parameter.empty:
        return True
    if typing.get_origin(own) is typing.Literal:
        return theirs is str
    allowed = typing.get_args(theirs) if typing.get_origin(theirs) in (typing.Union, types.UnionType) else (theirs,)
    mine = typing.get_args(own) or (own,)
    return set(mine) == {a for a in allowed if typing.get_origin(a) is None}


@pytest.mark.parametrize("options", [*(options for options, _ in USABLE), o.GEMOptions], ids=lambda c: c.strategy)
def test_options_are_those_of_the_constructor(options, supervised):
    constructor = getattr(supervised, options.strategy).__init__
    theirs = {name: p for name, p in inspect.signature(constructor).parameters.items() if name not in NOT_OPTIONS}
    assert set(options.model_fields) == set(theirs)
    for name, field in options.model_fields.items():
        assert annotation_fits(field.annotation, theirs[name].annotation), name
        assert field.description
        if name in options.open:
            assert theirs[name].default is inspect.Parameter.empty
        else:
            assert field.default == theirs[name].default


def test_every_strategy_is_there_or_says_why_not(supervised):
    from avalanche.training.templates.base import BaseTemplate

    theirs = {name for name, value in vars(supervised).items() if inspect.isclass(value)
              and issubclass(value, BaseTemplate)} | {"OnlineNaive"}
    assert {*NAMES, *UNUSABLE} == theirs
    assert not set(NAMES) & set(UNUSABLE)


def same_weights(one, other):
    weights = [[*strategy.model.parameters()] for strategy in (one, other)]
    return [w.shape for w in weights[0]] == [w.shape for w in weights[1]] and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*weights, strict=True))


@pytest.fixture(scope="module")
def fine_tuned(methods):
    """Naive after two tasks, by scenario."""
    return {scenario: learned(methods["avalanche:Naive"], scenario, tasks=2)[0] for scenario in NAIVE}


@pytest.mark.parametrize("scenario", NAIVE)
@pytest.mark.parametrize("name", NAMES)
def test_learns_and_does_something_else_than_naive(name, scenario, methods, fine_tuned):
    strategy, right, done = learned(methods[f"avalanche:{name}"], scenario, tasks=2)
    assert right[0] >= 0.9, right
    assert done[0].steps == AT_ONCE.epochs * SAMPLES // AT_ONCE.batch_size
    assert strategy.agent.batch_order is None, "the order of the last task is held on to"
    assert same_weights(strategy, fine_tuned[scenario]) == (name in NAIVE[scenario])


@pytest.mark.parametrize("recipe", [
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "epochs": 3, "optimizer_state": "keep"},
    {"lr": 3e-3, "iterations": 11, "schedule": "cosine", "weight_decay": 0.01},
    {"lr": 3e-3, "iterations": 11, "warmup_ratio": 0.5}], ids=["epochs", "iterations", "warm-up"])
@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_naive_is_naive(scenario, recipe, methods):
    recipe = Recipe(batch_size=7, **recipe)
    ours, right, done = learned(methods["naive"], scenario, recipe)
    theirs, their_right, their_done = learned(methods["avalanche:Naive"], scenario, recipe)
    assert right == their_right
    assert done == their_done
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_what_a_task_freezes_at_its_end_was_trained_by_it(methods):
    *_, done = learned(methods["avalanche:LFL"], "task", Recipe(batch_size=8, epochs=1))
    assert [d.trainable for d in done] == [PARAMETERS, *[PARAMETERS - 12 * 6 - 6] * 2]


def test_si_is_naive_on_a_cpu(methods):
    """Avalanche 0.6 keeps views of the weights for copies of them there, so that nothing ever seems to move."""
    ours, *_ = learned(methods["naive"], "task")
    theirs, *_ = learned(methods["avalanche:SynapticIntelligence"], "task", options={"si_lambda": 1e6})
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scenario", "replays"), [("task", True), ("domain", False)])
def test_mir_replays_no_classes_of_the_last_batch(scenario, replays, methods):
    """So the task just learned is not replayed in the next one, and in domain nothing ever is."""
    theirs, naive = (learned(methods[f"avalanche:{name}"], scenario)[0] for name in ("MIR", "Naive"))
    assert same_weights(theirs, naive) != replays


def test_ewc_keeps_squares_of_mean_gradients_and_anchors(methods):
    strategy, *_ = learned(methods["avalanche:EWC"], "domain", tasks=1)
    kept = {n: b for n, b in strategy.named_buffers() if n.startswith("kept__")}
    train = bench(methods["naive"], {}, "domain").stream.tasks[0].train
    model = strategy.model.double()
    parameters = dict(model.named_parameters())
    squares = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for part in train.chunks(AT_ONCE.batch_size):
        loss = nn.functional.cross_entropy(model(part.x.double() / 255), part.y)
        for name, gradient in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
            squares[name] += gradient**2 / 3
    for name, parameter in parameters.items():
        importance, = (b for n, b in kept.items() if "importances" in n and n.endswith(
            f"{name.replace('.', '_')}__data"))
        anchor, = (b for n, b in kept.items() if "saved_params" in n and n.endswith(f"{name.replace('.', '_')}__data"))
        torch.testing.assert_close(importance.double(), squares[name], rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(anchor.double(), parameter.detach())


def test_what_is_kept_is_counted_once(methods):
    def found(name, **options):
        strategy, *_ = learned(methods[f"avalanche:{name}"], "task", Recipe(batch_size=8, epochs=1), options)
        return measure(strategy)

    sample = PIXELS + 2 * 8  # a gray byte per pixel, the label and the task as int64, as clbench's er keeps them
    weights = 4 * PARAMETERS
    assert found("Naive").bytes == {"base": weights}
    replay = found("Replay", mem_size=10)
    assert (replay.replay_samples, replay.bytes["replay"]) == (10, 10 * sample)
    assert replay.bytes["counters"] == 10 * 4  # the draws of the reservoir
    assert found("AGEM", patterns_per_exp=5).bytes == {"base": weights, "replay": TASKS * 5 * sample}
    assert found("DER", mem_size=12).bytes["replay"] == 12 * (sample + 6 * 4)
    assert found("GDumb", mem_size=12).replay_samples == 12
    assert found("Cumulative").bytes["replay"] == found("JointTraining").bytes["replay"] == TASKS * SAMPLES * sample
    assert found("EWC").bytes["importance"] == 2 * TASKS * weights
    assert found("EWC", mode="online", decay_factor=0.5).bytes["importance"] == 2 * weights
    assert found("MAS").bytes["importance"] == 2 * weights
    assert found("LwF").parameters == {"base": PARAMETERS, "old network": PARAMETERS}


def test_progressive_columns(methods):
    strategy, right, _ = learned(methods["avalanche:PNNStrategy"], "task")
    stream = bench(methods["naive"], {}, "task").stream
    assert evaluate(strategy, stream, "task", TASKS).accuracy == right, "old columns forgot"
    before = bench(methods["naive"], {}, "task").strategy.model
    fresh = bench(methods["avalanche:PNNStrategy"], {}, "task").strategy.model
    linear = [m for m in before.modules() if isinstance(m, nn.Linear)]
    for layer, own in zip(linear, fresh.layers, strict=False):
        assert torch.equal(layer.weight, own.columns[0].itoh.weight)
    with pytest.raises(SpecError, match="take the model mlp"):
        bench(methods["avalanche:PNNStrategy"], {}, "task", model="cnn")


def test_memories_keep_augmented_samples_as_they_are_stored(methods):
    b = bench(methods["avalanche:Replay"], {"mem_size": 6}, "task", model="cnn")
    trainer = loop([b.strategy], Recipe(batch_size=8, epochs=2), [0], CropFlip())
    assert trainer.take_task_steps([b.replica.begin(0)])[0].steps == 6
    kept = b.strategy.get_buffer("replay__x")
    assert all(any(torch.equal(x, raw) for raw in b.stream.tasks[0].train.x) for x in kept), "kept as they are stored"


class Noted(CropFlip):
    """Notes how many samples it draws for, by the seed of what they are drawn from."""

    def __init__(self):
        self.drawn = {}

    def draw(self, count, generator):
        self.drawn.setdefault(generator.initial_seed(), []).append(count)
        return super().draw(count, generator)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_new_samples_are_augmented_as_every_methods_are(scenario, methods):
    recipe = Recipe(batch_size=7, epochs=2)
    ours, *_ = learned(methods["naive"], scenario, recipe, model="cnn", augment=CropFlip())
    theirs, *_ = learned(methods["avalanche:Naive"], scenario, recipe, model="cnn", augment=CropFlip())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_what_is_replayed_is_augmented_by_draws_of_its_own(methods):
    """ER_ACE's memory has samples of the task at hand, too."""
    noted = Noted()
    learned(methods["avalanche:ER_ACE"], "task", Recipe(batch_size=8, epochs=2), tasks=2, augment=noted)
    for task in range(2):
        assert noted.drawn.pop(seeds.generator(0, "augmentation", task).initial_seed()) == [8] * 6
    assert noted.drawn and all({*counts} == {1} for counts in noted.drawn.values())


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("method", ["GDumb", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "EWC", "JointTraining", "PNNStrategy"))])
def test_keeps_the_rules(method, name):
    check(f"avalanche:{method}", name)


def test_errors_say_what_to_do(methods):
    registry = discover()
    for name, reason in UNUSABLE.items():
        if f"avalanche:{name}" not in methods:
            with pytest.raises(SpecError, match=f"^method 'avalanche:{name}' cannot be run: "):
                registry.strategy(f"avalanche:{name}")
        assert not reason.endswith(".")
    assert "quadprog" in UNUSABLE["GEM"]
    with pytest.raises(SpecError, match="did you mean 'avalanche:EWC'"):
        registry.strategy("avalanche:EWCC")
    for raw, said in (({"mode": "online"}, "needs a decay_factor"), ({"decay_factor": 0.5}, "needs a decay_factor"),
                      ({"keep_importance_data": True}, "has an effect only with mode = online"),
                      ({"ewc_lambda": -1}, "greater than or equal to 0"), ({"lambda": 1}, "no option 'lambda'")):
        with pytest.raises(SpecError, match=said):
            opt.validate(methods["avalanche:EWC"].options, raw, "avalanche:EWC", "clbench methods")


def test_does_not_stack_and_says_so(tmp_path):
    planned = plan(build({"benchmark": "helpers.tiny_benchmarks:shifting", "scenario": "domain", "seeds": 2,
                          "methods": ["avalanche:EWC:ewc_lambda=100"], "model": "mlp:width=20:depth=2",
                          "recipe": {"epochs": 1, "batch_size": 32}}), discover())
    assert [p.label for p in planned] == ["avalanche:EWC:ewc_lambda=100"] * 2
    records = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "").run_stack(planned)
    assert [r.status for r in records] == ["done", "done"], records[0].failure
    assert "ran alone" in records[0].notes[-1] and "a loop of its own" in records[0].notes[-1]
    assert records[0].costs.steps == [5, 5, 5] and len(set(records[0].costs.trainable)) == 1


def test_counting_without_training_says_why_not():
    registry = discover()
    planned, = plan(build({"methods": ["avalanche:EWC"], "scenario": "task", "seeds": 1}), registry)
    found = count(planned, stream_of_shapes(2, 4, (1, 8, 8), "task", 10), registry)
    assert not found.kept and "a loop of its own" in found.note


def test_divergence_is_noticed(methods):
    b = bench(methods["avalanche:Naive"], {}, "domain")
    trained, = loop([b.strategy], Recipe(optimizer="sgd", lr=1e30, epochs=1, batch_size=8), [0]).take_task_steps(
        [b.replica.begin(0)])
    assert trained.diverged is not None and trained.steps == 3


def test_only_the_adapter_can_be_loaded():
    with pytest.raises(AttributeError):
        load.__getattr__("Anything")


@pytest.mark.parametrize(("name", "options", "batch_size"), [
    ("ER_AML", {"mem_size": 47}, 8), ("ER_AML", {"mem_size": 1000}, 16),  # a class has 12 samples
    ("FeatureReplay", {"mem_size": 5}, 8), ("FeatureReplay", {"batch_size_mem": 256}, 8)], ids=str)
def test_a_memory_that_cannot_fill_a_batch_is_an_error_and_no_endless_wait(name, options, batch_size, methods):
    import_avalanche()
    from avalanche.training.supervised import er_aml, feature_replay
    from avalanche.training.utils import cycle

    with pytest.raises(SpecError, match=f"^avalanche:{name}: its memory cannot fill a batch .* a larger mem_size"):
        learned(methods[f"avalanche:{name}"], "task", Recipe(batch_size=batch_size, epochs=1), options)
    assert er_aml.cycle is feature_replay.cycle is cycle
