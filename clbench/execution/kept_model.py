"""KeptModel: a trial's final model as it answers, with preprocessing and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clbench.core import tokens
from clbench.core.errors import DataError, SpecError
from clbench.core.registry import Registry, discover
from clbench.core.scenario import scenario_rules
from clbench.data.stream import Stream
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.models.network import Network
from clbench.persistence.model_file import rebuild
from clbench.persistence.snapshot import ModelHeader, read_saved
from clbench.results.records import Record
from clbench.results.store import MODEL, Store
from clbench.strategy.base import Prediction
from clbench.training import precision
from clbench.training.evaluation import evaluate


class Answers(NamedTuple):
    """What a model answers to N samples."""

    classes: list[int]  # the winning output of each
    names: list[str]  # its name
    logits: Tensor  # [N, C], -inf for outputs that take no part; on the CPU
    tasks: list[int] | None  # of the samples, as a method inferred them; None for one that infers none


class KeptModel(nn.Module):
    """The final model of a trial: `predict` takes raw samples, and calling it takes prepared inputs.

    `network` is the plain network that it is, None where a method's own parts answer. `class_names` has a name for each
    of the C outputs. On an accelerator after `.to(device)`.
    """

    def __init__(self, record: Record, path: Path, registry: Registry) -> None:
        """Read a file that `--keep models` has kept of a record's trial.

        Raises:
            StoreError: it is not there or does not fit.
        """
        super().__init__()
        self.record = record
        self.registry = registry
        self.header, tensors = read_saved(path, ModelHeader, "models")
        self.strategy = rebuild(self.header, tensors, record.trial, registry)
        self.prepare = self.header.prepare
        offered = torch.zeros(len(self.header.offered), self.header.outputs, dtype=torch.bool)
        for row, outputs in zip(offered, self.header.offered, strict=True):
            row[outputs] = True
        self.register_buffer("offered", offered, persistent=False)
        self.offered: Tensor
        self.class_names = self.header.class_names

    @property
    def network(self) -> Network | None:
        """Return the plain network that answers, if there is one."""
        return self.strategy.model if self.header.kind == "network" else None

    @property
    def task_given(self) -> bool:
        """Tell whether it has to be told which task a sample is of."""
        return scenario_rules(self.record.trial.scenario).task_given

    def forward(self, inputs: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] of prepared inputs [N, *input_shape]; -inf for outputs that take no part."""
        return self.answer(inputs, task).logits

    def answer(self, inputs: Tensor, task: int | None = None) -> Prediction:
        """Return the prediction for prepared inputs [N, *input_shape], without outputs that take no part.

        Raises:
            SpecError: the scenario gives the task and it is not said, or there is none such.
        """
        if self.task_given and task is None:
            raise SpecError(f"{self.record.name} was trained in scenario task, which gives the task: say task=0 to "
                            f"task={len(self.offered) - 1}")
        if task is not None and not 0 <= task < len(self.offered):
            raise SpecError(f"{self.record.name} has learned tasks 0 to {len(self.offered) - 1}, not {task}")
        found = self.strategy.predict(inputs, task if self.task_given else None)
        return Prediction(found.logits.masked_fill(~self.offered[task or 0], float("-inf")), found.task)

    @torch.no_grad()
    def predict(self, images: Any, task: int | None = None, batch: int | None = None) -> Answers:
        """Return the answers to raw samples.

        Args:
            images: [N, *shape], as the benchmark has them: bytes of pixels (or numbers in [0, 1]), rows, or tokens.
            task: index of the task that all of them are of; needed in scenario `task`, where only its classes compete,
                and of no effect in the others.
            batch: samples that are predicted at once; by default as many as the trial did.

        Raises:
            DataError: they have another shape or range.
            SpecError: see `task`.
        """
        raw, recipe = self._raw(images), self.record.trial.trained_by
        device, parts = self.offered.device, []
        with precision.products(recipe), precision.forward(recipe, device, self.strategy):
            for part in torch.split(raw, batch or self.header.batch):
                x = self.prepare(part.to(device))
                parts.append(self.answer(tokens.shortened([x])[0] if tokens.is_text(x) else x, task))
        logits = torch.cat([part.logits for part in parts]).float().cpu()
        found = [part.task for part in parts]
        tasks = None if found[0] is None else torch.cat([t for t in found if t is not None]).tolist()
        classes: list[int] = logits.argmax(1).tolist()
        return Answers(classes, [self.class_names[c] for c in classes], logits, tasks)

    def _raw(self, images: Any) -> Tensor:
        """Return samples as the benchmark stores them."""
        raw, shape = torch.as_tensor(images), self.header.sample_shape
        if list(raw.shape[1:]) != shape or not len(raw):
            raise DataError(f"{self.record.name} takes samples [N, {', '.join(map(str, shape))}], not "
                            f"{list(raw.shape)}")
        if self.header.sample_dtype == "int32":
            return raw.to(torch.int32)
        if raw.dtype == torch.uint8 and self.header.sample_dtype == "uint8":
            return raw
        raw = raw.to(torch.float32)
        if self.header.sample_dtype == "uint8" and (float(raw.min()) < 0 or float(raw.max()) > 1):
            raise DataError(f"{self.record.name} takes images as uint8, or as numbers in [0, 1]; these go from "
                            f"{float(raw.min()):g} to {float(raw.max()):g}")
        return raw

    def stream(self, data_dir: Path) -> Stream:
        """Return the trial's stream, where its data are; a ClbenchError where they are not, or are others now."""
        trial = self.record.trial
        if trial.continues is not None:
            raise SpecError(f"{self.record.name} continues another trial: its tasks are of several benchmarks; predict "
                            "on the samples of one")
        stream = TrialRunner(ExecutionSettings(data=data_dir), "cpu", "", self.registry).stream(trial)
        if self.record.stream is None or stream.fingerprint != self.record.stream.fingerprint:
            raise DataError(f"benchmark {trial.benchmark.name} has other data here than {self.record.name} was trained "
                            "on; use the same data folder")
        return stream

    def evaluate(self, data_dir: Path) -> list[float]:
        """Return the accuracy in [0, 1] on the test samples of each task: the last row of the trial's R once more."""
        recipe, device = self.record.trial.trained_by, self.offered.device
        stream = self.stream(data_dir).to(device)
        with precision.products(recipe), precision.forward(recipe, device, self.strategy):
            return evaluate(self.strategy, stream, self.record.trial.scenario, len(stream.tasks)).accuracy


def kept_model(store: Store, record: Record, registry: Registry | None = None) -> KeptModel:
    """Return the model that a run folder has kept of a record's trial; StoreError where there is none."""
    return KeptModel(record, store.artifacts / record.key / MODEL, registry or discover())
