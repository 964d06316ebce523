"""Pretrain a backbone: train a model on all tasks of a benchmark together and save its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clbench.core.artifacts import save_tensors
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.registry import Registry
from clbench.data.samples import Samples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Trial
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica


@dataclass(frozen=True)
class Pretrained:
    """The extent of the pretraining, and the accuracy on test samples of the same classes."""

    classes: int
    samples: int
    steps: int
    accuracy: float


def pretrain(trial: Trial, out: Path, settings: ExecutionSettings, device: str, registry: Registry) -> Pretrained:
    """Train a trial's model on all classes of its benchmark together and save its weights as safetensors.

    The head is not saved, because a stream that starts from these weights has other classes.

    Raises:
        ClbenchError: the data are missing, the model does not fit them, or training diverged; nothing is written then.
    """
    runner = TrialRunner(settings, device, "clbench pretrain", registry)
    stream = runner.stream(trial)
    strategy, _ = runner.build(trial, stream)
    if not strategy.model.has_body:
        raise SpecError(f"model {trial.model} is a head alone: nothing before it could be kept; choose another")
    tasks = stream.tasks
    every = Samples.concat(*(task.train for task in tasks)) if len(tasks) > 1 else tasks[0].train
    every = Samples(every.x, every.y, torch.zeros_like(every.tasks))
    whole = replace(stream, tasks=(replace(tasks[0], classes=tuple(range(stream.classes)), train=every,
                                           class_names=()),))
    loop = TrainingLoop([Replica(strategy, whole, trial.seed)], trial.recipe, cache_bytes=settings.cache_bytes)
    trained, = loop.train_task(0)
    if trained.diverged is not None:
        raise ClbenchError(f"{trained.diverged}; choose a smaller learning rate")
    row = evaluate(strategy, stream, "class", len(tasks))
    sizes = [len(task.test) for task in tasks]
    accuracy = sum(a * n for a, n in zip(row.accuracy, sizes, strict=True)) / sum(sizes)
    body = {strategy.model.published_name(n): t for n, t in strategy.model.state_dict().items()
            if not n.startswith("head.")}
    save_tensors(out, body, {"benchmark": str(trial.benchmark), "model": str(trial.model), "seed": str(trial.seed),
                             "recipe": trial.recipe.model_dump_json(), "accuracy": f"{accuracy:.4f}"})
    return Pretrained(stream.classes, len(every), trained.steps, accuracy)
