"""Count the trainable parameters, the storage and the FLOPs of methods in a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from statistics import mean

import torch
from torch import nn

from clbench.accounting.callback import head_flops, prediction_flops
from clbench.accounting.dry_run import DryRun, strategy_of_shapes, with_gradient
from clbench.accounting.shapes import on_shapes, stream_of_shapes
from clbench.core import seeds, tokens
from clbench.core.errors import SpecError, typed_message
from clbench.core.registry import Registry
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.experiment.trial import PlannedTrial, Resolved
from clbench.models.network import Block, Network
from clbench.report.formatting import describe_by_task
from clbench.strategy.base import Strategy, Task
from clbench.training.building import build_model, check_model
from clbench.training.costs import Footprint, measure, model_bytes, nbytes
from clbench.training.evaluation import batch_size, given_tasks


@dataclass
class Count:
    """The costs of a method. Each list has an entry for each task."""

    method: str
    trainable: list[int] = field(default_factory=list)  # parameters, in the phase with the most
    trainable_bytes: list[int] = field(default_factory=list)
    kept: list[Footprint] = field(default_factory=list)  # storage after the task
    flops: int | None = None  # of predicting one sample, a multiplication and its addition counted as two
    train_flops: list[int] | None = None  # of training on each task, if counted
    steps: list[int] = field(default_factory=list)  # of training on each task
    sample_flops: list[Fraction] = field(default_factory=list)  # of predicting one sample after each task, if counted
    note: str | None = None  # why lists end early
    remarks: list[str] = field(default_factory=list)  # the strategy's own notes
    model_bytes: int = 0  # of the network before the method changes it
    keeps_less: str = ""  # `Strategy.keeps_less`

    @property
    def parameters(self) -> list[int]:
        """Return the number of parameters that are stored after each task."""
        return [sum(footprint.parameters.values()) for footprint in self.kept]

    @property
    def bytes(self) -> list[int]:
        """Return the number of bytes that are stored after each task."""
        return [sum(footprint.bytes.values()) for footprint in self.kept]

    @property
    def notes(self) -> list[str]:
        """Return notes on the method that the figures of the last task do not show, without the method's name."""
        varying = [f"trains {describe_by_task(self.trainable)}"] if len(set(self.trainable)) > 1 else []
        remarks = [remark.removeprefix(f"{self.method.partition(':')[0]}: ") for remark in self.remarks]
        return [*varying, *remarks, *([self.note] if self.note else [])]


def count(planned: PlannedTrial, stream: Stream, registry: Registry, pretrained: bool | None = None,
          training: bool = False, cache_bytes: int | None = None) -> Count:
    """Return what a trial's method trains, stores and computes on a stream without values.

    If the method needs values that only data can give, the count ends there, and its note says so.

    Args:
        planned: the trial; its benchmark and seed do not matter.
        stream: a stream with inputs on the meta device.
        registry: the installed plugins.
        pretrained: whether the model counts as pretrained; None: if the trial has weights.
        training: whether to count the FLOPs of training by the trial's recipe. Predictions are then counted as in
            records: in batches as on a CPU and, if the task ID is given, as the mean over tasks. Otherwise one sample
            of the last task is predicted. Operations of consolidation that need values (per-sample gradients,
            decompositions) are not counted.
        cache_bytes: most bytes that a phase may cache, so that they are computed once; None for the default.

    Raises:
        SpecError: model, method and stream do not fit together.
    """
    trial = planned.trial
    if pretrained is None:
        pretrained = trial.weights is not None
    with torch.device("meta"):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
    check_model(model, trial.model, stream, registry)
    result = Count(planned.label, model_bytes=model_bytes(model))
    task_ids = given_tasks(trial.scenario, len(stream.tasks))
    batch = batch_size(stream, torch.device("cpu")) if training else 1
    run: DryRun | None = None
    with on_shapes(), seeds.scope(0, "strategy"):
        try:
            strategy = strategy_of_shapes(model, trial.method, stream, trial.scenario, pretrained, registry)
            result.remarks, result.keeps_less = strategy.notes, strategy.keeps_less
            run = DryRun(strategy, stream, trial.trained_by if training else Recipe(), training, cache_bytes)
            for index in range(stream.tasks_for_strategy):
                run.train_task(index)
                result.kept.append(measure(strategy))
                if training and not run.uncounted:
                    task = task_ids[min(index, len(task_ids) - 1)]
                    result.sample_flops.append(sample_flops(strategy, stream, task, batch))
            tested = task_ids if training else task_ids[-1:]
            result.flops = round(mean(sample_flops(strategy, stream, task, batch) for task in tested))
        except RuntimeError as error:  # torch raises it if the value of a meta tensor is needed
            progress = f"{len(result.kept)} of {stream.tasks_for_strategy} tasks"
            result.note = f"cannot be counted without data after {progress} ({typed_message(error, 200)})"
    if run is None:
        return result
    result.trainable = [parameters for parameters, _ in run.trainable]
    result.trainable_bytes = [size for _, size in run.trainable]
    result.steps = run.costs.steps
    if run.uncounted:
        result.remarks.append(f"FLOPs of its training cannot be counted without data ({run.uncounted})")
    elif training and len(run.costs.train_flops) >= stream.tasks_for_strategy:
        result.train_flops = run.costs.train_flops
    return result


def sample_flops(strategy: Strategy, stream: Stream, task: int | None, batch: int) -> Fraction:
    """Return the FLOPs of predicting a test sample, of the given task or of all, in batches of at most `batch`."""
    tested_tasks = stream.tested_tasks if task is None else stream.tasks[task:task + 1]
    kind = tokens.DTYPE if stream.is_text else torch.float32
    x = torch.empty(2, *stream.input_shape, dtype=kind, device="meta")
    flops = prediction_flops(strategy, x, task, min(batch, sum(len(tested.test) for tested in tested_tasks)))
    if stream.predicts_tokens:
        flops += head_flops(strategy, x, torch.cat([tested.test.y for tested in tested_tasks]), task)
    return flops


def count_layer(shape: Sequence[int], methods: Sequence[tuple[str, Resolved]], registry: Registry) -> list[Count]:
    """Return what methods train and store for a model of one layer without bias; its head does not count.

    Args:
        shape: the shape of the weight, [outputs, inputs] for a Linear, [out, in, height, width] for a Conv2d.
        methods: pairs of label and method; the model counts as pretrained.
        registry: the installed plugins.

    Raises:
        SpecError: no layer has such a shape, or a method does not fit the layer.
    """
    stream = stream_of_shapes(1, 1, (1,), "task", 1)
    counts = []
    for label, method in methods:
        with torch.device("meta"):
            model = Network([Block(layer(shape), nn.Identity())], nn.Linear(1, 1))
        strategy = strategy_of_shapes(model, method, stream, "task", True, registry)
        stream_task = stream.tasks[0]
        strategy.before_task(Task(0, stream_task.classes, stream_task.train))
        stored = list(strategy.model.blocks.parameters())
        trainable, size = with_gradient(strategy.model.blocks)
        footprint = Footprint({"layer": sum(p.numel() for p in stored)}, {"layer": sum(map(nbytes, stored))}, 0)
        counts.append(Count(label, [trainable], [size], [footprint]))
    return counts


def layer(shape: Sequence[int]) -> nn.Module:
    """Return a layer without bias whose weight has the given shape."""
    match shape:
        case outputs, inputs:
            return nn.Linear(inputs, outputs, bias=False)
        case outputs, inputs, height, width:
            return nn.Conv2d(inputs, outputs, (height, width), bias=False)
    raise SpecError(f"no layer has a weight with {len(shape)} dimensions; give OUTxIN (Linear) or OUTxINxHxW (Conv2d)")
