"""What methods train, keep and compute, counted before anything is trained.

The models and strategies are those of a run, led through the tasks as a run leads them, but on torch's meta device:
weights and inputs have shapes and no values, so that any size costs nothing. What shapes can depend on - labels, masks,
counters, the draws of a replay memory - has its values, on the CPU. No step is taken: losses leave no trace but in
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from clbench.accounting.flops import FlopCount
from clbench.accounting.leading import lead_phases, observing_flops
from clbench.accounting.rehearsal import on_shapes, phase_flops
from clbench.core import seeds, tokens
from clbench.core.errors import SpecError
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.augmentation import Augmentation
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import PlannedTrial, Resolved
from clbench.models.network import Block, Network
from clbench.strategy.base import Strategy, Task
from clbench.training.building import build_model, build_strategy, check_model, world_of
from clbench.training.costs import Footprint, measure, model_bytes, nbytes
from clbench.training.evaluation import batch_size
from clbench.training.replica import Replica, TaskResult
from clbench.training.stream_loop import in_one_task

DENSE, CONVOLUTION = 2, 4  # dimensions of their weights


@dataclass
class Count:
    """What a method trains and keeps, a list entry for each task, and what a forward pass computes."""

    method: str
    trainable: list[int] = field(default_factory=list)  # parameters, in the phase that has most
    trainable_bytes: list[int] = field(default_factory=list)
    kept: list[Footprint] = field(default_factory=list)  # after the task
    flops: int | None = None  # of predicting one sample, a multiplication and its addition counted as two
    train_flops: list[int] | None = None  # of training on each task, where that is counted too
    steps: list[int] = field(default_factory=list)  # of training on each task, where its FLOPs are counted
    row_flops: list[Fraction] = field(default_factory=list)  # likewise: of predicting one sample after the task
    note: str | None = None  # why lists end early
    remarks: list[str] = field(default_factory=list)  # the strategy's own notes
    model_bytes: int = 0  # of the network before any method touched it
    keeps_less: str = ""  # `Strategy.keeps_less`

    @property
    def parameters(self) -> list[int]:
        """Return all parameters that are held after each task."""
        return [sum(kept.parameters.values()) for kept in self.kept]

    @property
    def bytes(self) -> list[int]:
        """Return all bytes that are held after each task."""
        return [sum(kept.bytes.values()) for kept in self.kept]


def stream_of_shapes(tasks: int, classes: int, input_shape: tuple[int, ...], scenario: Scenario,
                     samples: int, text: bool = False) -> Stream:
    """Return a stream of inputs without values, uint8 as images are stored, and labels that go round the classes.

    Args:
        tasks: T.
        classes: of all tasks together; each task has as many.
        input_shape: of one sample.
        scenario: which outputs the classes have.
        samples: training samples of each task.
        text: whether samples are tokens.

    Raises:
        SpecError: the classes cannot be shared out.
    """
    if classes % tasks:
        raise SpecError(f"{classes} classes cannot be shared out equally among {tasks} tasks; choose a multiple of "
                        f"{tasks} (--classes)")
    own = classes // tasks
    orders = [range(task * own, (task + 1) * own) for task in range(tasks)]
    parts = []
    for index, table in enumerate(scenario_rules(scenario).outputs(orders, "params")):
        labels = torch.tensor(list(table.values())).repeat(-(-samples // own))[:samples]
        x = torch.empty(samples, *input_shape, dtype=tokens.DTYPE if text else torch.uint8, device="meta")
        some = Samples(x, labels, torch.full_like(labels, index))
        parts.append(StreamTask(tuple(table.values()), some, some))
    return Stream(tuple(parts), len({c for part in parts for c in part.classes}), input_shape, Prepare(), "", ())


def count(planned: PlannedTrial, stream: Stream, registry: Registry, pretrained: bool = False) -> Count:
    """Return what a trial's method trains, keeps and computes on a stream of shapes.

    Where a method asks for values that only data can give, the count ends there and its note says so.

    Args:
        planned: its benchmark, recipe and seed do not matter.
        stream: of `stream_of_shapes`.
        registry: what is installed.
        pretrained: whether the model is to be taken for a pretrained one.

    Raises:
        SpecError: model, method and stream do not go together.
    """
    return lead(planned, stream, registry, pretrained, fit, [(len(stream.tasks) - 1, 1)])


def forecast(planned: PlannedTrial, stream: Stream, registry: Registry) -> Count:
    """Return what `count` does, for a trial as it stands, with the FLOPs of its training; `flops` as a record has them.

    Not counted is what consolidation computes from values only (per-sample gradients, decompositions).

    Args:
        planned: the trial.
        stream: its own, without values (`rehearsal.stream_without_values`).
        registry: what is installed.

    Raises:
        SpecError: model, method and stream do not go together.
    """
    spend = partial(rehearse, recipe=planned.trial.trained_by, augment=stream.augment)
    known = [len(task.test) for task in stream.tasks]
    if not scenario_rules(planned.trial.scenario).task_given:
        known = [sum(known)]
    most = batch_size(stream, torch.device("cpu"))  # some of what is computed once for each batch depends on no sample
    tests = [(index, min(most, samples)) for index, samples in enumerate(known)]
    with on_shapes():
        found = lead(planned, stream, registry, planned.trial.weights is not None, spend, tests)
    if found.train_flops is not None and len(found.train_flops) < stream.told_tasks:
        found.train_flops = None
    return found


def lead(planned: PlannedTrial, stream: Stream, registry: Registry, pretrained: bool,
         spend: Callable[[Strategy, Task, Count], tuple[TaskResult, int]], tests: Sequence[tuple[int, int]]) -> Count:
    """Lead a trial's strategy through a stream of shapes and return what is counted on the way.

    Args:
        planned: the trial.
        stream: with inputs on the meta device.
        registry: what is installed.
        pretrained: whether the model is to be taken for a pretrained one.
        spend: takes the place of the training steps on a task, and returns their FLOPs, too.
        tests: task (if the scenario gives it) and number of the samples that are predicted in the end.
    """
    trial = planned.trial
    with torch.device("meta"):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
    check_model(model, trial.model, stream.input_shape, registry)
    found = Count(planned.label, model_bytes=model_bytes(model))
    with seeds.scope(0, "strategy"):
        try:
            strategy = around(model, trial.method, stream, trial.scenario, pretrained, registry)
            found.remarks, found.keeps_less = strategy.notes, strategy.keeps_less
            led = in_one_task(stream) if stream.hidden else stream
            for index in range(len(led.tasks)):
                replica = Replica(strategy, led, seed=0)
                with FlopCount() as before:
                    task = replica.begin(index)
                with replica.training(index):
                    result, flops_of_steps = spend(strategy, task, found)
                with FlopCount() as after:
                    replica.finish(task)
                if found.train_flops is not None:
                    found.train_flops.append(before.total + flops_of_steps + after.total)
                    found.steps.append(result.steps + strategy.extra_steps)
                    found.row_flops.append(flops(strategy, index, tests[min(index, len(tests) - 1)][1]))
                found.kept.append(measure(strategy))
            found.flops = round(mean(flops(strategy, index, size) for index, size in tests))
        except RuntimeError as error:  # what torch raises where a value is asked of a shape
            done = len(found.kept)
            found.note = f"cannot be counted without data after {done} of {stream.told_tasks} tasks ({said(error)})"
    return found


def said(error: Exception) -> str:
    """Return the type of an error and the start of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def around(model: Network, method: Resolved, stream: Stream, scenario: Scenario, pretrained: bool,
           registry: Registry) -> Strategy:
    """Return a method's strategy around a model of shapes."""
    strategy = build_strategy(method, model, world_of(stream, scenario, 0, pretrained), registry)
    valued = [(module, name, buffer) for module in strategy.modules()
              for name, buffer in module.named_buffers(recurse=False) if not buffer.is_floating_point()]
    strategy.to("meta")
    for module, name, buffer in valued:
        setattr(module, name, buffer)
    return strategy


def fit(strategy: Strategy, task: Task, found: Count) -> tuple[TaskResult, int]:
    """Lead a strategy through the phases of a task, one pass over its samples each, and count what it trains."""
    require_steps(strategy)
    most, steps = (0, 0), 0
    for led in lead_phases(strategy, task, Recipe()):
        most = max(most, learning(strategy))
        steps += led.one_pass(strategy)
    found.trainable.append(most[0])
    found.trainable_bytes.append(most[1])
    return TaskResult(steps, most[0]), 0


def rehearse(strategy: Strategy, task: Task, found: Count, recipe: Recipe, augment: Augmentation | None
             ) -> tuple[TaskResult, int]:
    """Do what `fit` does by a recipe of its own, and count what its steps compute.

    Where a loss asks for values, their FLOPs are not counted from there on, and a remark says so.
    """
    require_steps(strategy)
    if task.index == 0:
        found.train_flops = []
    most, total, steps = (0, 0), observing_flops(strategy, task, recipe), 0
    for led in lead_phases(strategy, task, recipe, augment):
        most = max(most, learning(strategy))
        steps += led.phase.steps
        try:
            if found.train_flops is not None:
                total += led.flops + phase_flops(strategy, task, led.samples, led.order, led.phase.steps, recipe,
                                                 augment)
                continue
        except (RuntimeError, TypeError) as error:  # what torch raises where a value is asked of a shape
            found.train_flops = None
            found.remarks.append(f"FLOPs of its training cannot be counted without data ({said(error)})")
        led.one_pass(strategy, led.phase.steps)
    found.trainable.append(most[0])
    found.trainable_bytes.append(most[1])
    return TaskResult(steps, most[0]), total


def require_steps(strategy: Strategy) -> None:
    """Raise RuntimeError for a strategy whose steps are its own."""
    if strategy.owns_loop:
        raise RuntimeError("it trains by a loop of its own; its records say what it trained and kept")


def learning(strategy: Strategy) -> tuple[int, int]:
    """Return how many numbers the current phase can change, and the bytes they take."""
    count, size = trained(strategy)
    return strategy.trainable(), size * strategy.trainable() // max(count, 1)


def trained(module: nn.Module) -> tuple[int, int]:
    """Return the parameters that require a gradient, and the bytes they take."""
    learn = [p for p in module.parameters() if p.requires_grad]
    return sum(p.numel() for p in learn), sum(map(nbytes, learn))


def flops(strategy: Strategy, task: int, samples: int) -> Fraction:
    """Return the FLOPs of predicting a sample among some: of a task in scenario `task`, else of an unknown one."""
    strategy.eval()
    kind = tokens.DTYPE if strategy.world.is_text else torch.float32
    x = torch.empty(samples, *strategy.world.input_shape, dtype=kind, device="meta")
    with torch.no_grad(), FlopCount() as counted:
        strategy.predict(x, task if strategy.world.task_given else None)
    return Fraction(counted.total, samples)


def count_layer(shape: Sequence[int], methods: Sequence[tuple[str, Resolved]], registry: Registry) -> list[Count]:
    """Return what methods train and hold of a model that is one layer (without bias), its head left out.

    Args:
        shape: of the weight: [outputs, inputs] of a Linear, [out, in, height, width] of a Conv2d.
        methods: label and method of each; the model counts as pretrained.
        registry: what is installed.

    Raises:
        SpecError: a layer has no such shape, or a method does not fit it.
    """
    stream = stream_of_shapes(1, 1, (1,), "task", 1)
    counts = []
    for label, method in methods:
        with torch.device("meta"):
            model = Network([Block(layer(shape), nn.Identity())], nn.Linear(1, 1))
        strategy = around(model, method, stream, "task", True, registry)
        known = stream.tasks[0]
        strategy.before_task(Task(0, known.classes, known.train))
        held: list[Tensor] = list(strategy.model.blocks.parameters())
        learn, size = trained(strategy.model.blocks)
        kept = Footprint({"layer": sum(p.numel() for p in held)}, {"layer": sum(map(nbytes, held))}, 0)
        counts.append(Count(label, [learn], [size], [kept]))
    return counts


def layer(shape: Sequence[int]) -> nn.Module:
    """Return the layer whose weight has a shape, without bias."""
    if len(shape) == DENSE:
        return nn.Linear(shape[1], shape[0], bias=False)
    if len(shape) == CONVOLUTION:
        return nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), bias=False)
    raise SpecError(f"no layer has a weight with {len(shape)} dimensions; give OUTxIN (Linear) or OUTxINxHxW (Conv2d)")
