"""Trials on a tiny Llama and three tiny tasks of prompts and responses, and plain computations for comparison."""

from dataclasses import dataclass
from pathlib import Path

import torch

from clbench.core import seeds
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.base import Batch
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica
from helpers.language_models import CITIES, make_model, quiet, save, write_lines

BATCH = 4
ANSWERS = {"backwards": lambda city: city[::-1], "capital": lambda city: city[:1].upper(), "length": len}


@dataclass
class LanguageRuns:
    """A folder with a model and tasks, and a runner of trials on them."""

    folder: Path
    runner: TrialRunner

    @classmethod
    def make(cls, folder):
        """Make the model and the tasks, whose responses have different lengths."""
        quiet()
        save(folder / "model", make_model())
        (folder / "tasks").mkdir()
        for name, answer in ANSWERS.items():
            write_lines(folder / "tasks" / f"{name}.jsonl",
                        [{"prompt": f"{name}: {city} ", "response": str(answer(city))} for city in CITIES])
        return cls(folder, TrialRunner(ExecutionSettings(data=folder / "data"), "cpu", "a test"))

    @property
    def model(self):
        return self.folder / "model"

    def planned(self, method, seeds=1, scenario="task", model=None, **recipe):
        """Return trials of a method. By default they train for one epoch in batches of 4 with SGD."""
        spec = {"benchmark": f"instructions:{self.folder / 'tasks'}", "model": f"hf:{model or self.model}",
                "scenario": scenario, "methods": [method], "seeds": seeds,
                "recipe": {"epochs": 1, "batch_size": BATCH, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0.0,
                           **recipe}}
        return plan(build(spec), self.runner.registry)

    def replica(self, method, double=False, **values):
        """Return an untrained replica of a method, in float64 if `double` is true."""
        one = self.planned(method, **values)[0]
        return self.replicas([one], double)[0]

    def replicas(self, planned, double=False):
        """Return an untrained replica of each trial."""
        made = []
        for one in planned:
            stream = self.runner.stream(one.trial)
            strategy, _ = self.runner.build(one.trial, stream)
            made.append(Replica.of(one, strategy.double() if double else strategy, stream))
        return made

    def learned(self, method, tasks=3, **values):
        """Return a strategy that was trained on the first tasks, and its stream."""
        replica = self.replica(method, **values)
        learn([replica], tasks)
        return replica.strategy, replica.stream


def learn(replicas, tasks=3):
    """Train replicas together on the first tasks."""
    loop = TrainingLoop(replicas, replicas[0].trial.trained_by)
    for index in range(tasks):
        results = loop.train_task(index)
        assert all(result.diverged is None for result in results)


def task_batches(samples, seed, task, size=BATCH, epochs=1):
    """Yield raw samples of a task in the harness's order, which the documented seed determines."""
    generator = seeds.generator(seed, "data", task)
    for _ in range(epochs):
        for rows in torch.randperm(len(samples), generator=generator).split(size):
            yield samples.take(rows)


def as_transformers(samples):
    """Return raw samples as arguments for a model of transformers."""
    return {"input_ids": samples.x.clamp(min=0).long(), "attention_mask": (samples.x >= 0).long(),
            "labels": samples.y.long()}


def as_batch(strategy, samples, task):
    """Return raw samples as the batch that `loss` gets."""
    x = strategy.stream_info.prepare(samples.x)
    batch, = strategy.objective.collate([Batch(x, samples.y, samples.tasks, task)])
    return batch


@torch.no_grad()
def logits(strategy, samples, task):
    """Return a strategy's logits [N, L, V] for raw samples."""
    strategy.eval()
    return strategy.model.head(strategy.predict(strategy.stream_info.prepare(samples.x), task).logits)
