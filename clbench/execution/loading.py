"""Load the saved models of the trials of a run."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from clbench.core import seeds, tokens
from clbench.core.device import out_of_memory
from clbench.core.entry_points import resolve
from clbench.core.errors import DataError, SpecError, StoreError, typed_message
from clbench.core.files import Files, expand_home
from clbench.core.registry import Registry, discover
from clbench.core.renamed import old_classes
from clbench.data.stream import Stream
from clbench.execution.raw_samples import raw_samples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.models.network import Network
from clbench.persistence.snapshot import make_noise_stream, read_saved, restore
from clbench.report.analysis.readable import find_trials
from clbench.results.records import Record, predicts_tokens
from clbench.results.store import KEY_START, MODEL, Store, list_trials
from clbench.strategy.base import Prediction, Strategy
from clbench.strategy.objectives import predicted_numbers
from clbench.training import precision
from clbench.training.building import build_model, build_strategy, channels_last, stream_info_of
from clbench.training.evaluation import evaluate
from clbench.training.replica import Replica


class Answers(NamedTuple):
    """The predictions of a model for N samples."""

    classes: list[int]  # the output with the highest logit, by sample
    names: list[str]  # the names of these outputs
    logits: Tensor  # [N, C] on the CPU; -inf for excluded outputs
    tasks: list[int] | None  # inferred tasks of the samples; None if the method infers none
    numbers: list[float] | None = None  # of a regression model, in the target's unit; `classes` is empty then


class SavedModel(nn.Module):
    """The final model of a trial: `predict` takes raw samples, and calling it takes prepared inputs.

    `class_names` has a name for each of the C outputs. `sample_shape` is the shape of a raw sample, [C, H, W] for an
    image. `task_given` says whether predictions need the task. The model is on the CPU until `.to(device)` moves it.
    """

    def __init__(self, store: Store, record: Record, registry: Registry) -> None:
        """Read the model of a record's trial that `--keep models` saved in a run folder.

        Raises:
            StoreError: the file does not exist or does not fit the present code.
        """
        super().__init__()
        self.record = record
        self.registry = registry
        self.folder = store.artifacts / record.key
        snapshot, trial = read_saved(self.folder / MODEL, "models"), record.trial
        self.header, self.outline = snapshot.header, snapshot.header.outline
        stream = make_noise_stream(self.outline)
        try:
            with seeds.scope(trial.seed, "init"):
                model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
            channels_last(model)
            stream_info = stream_info_of(stream, trial.scenario, trial.seed, trial.weights is not None)
            with seeds.scope(trial.seed, "strategy"):
                strategy = Strategy(model, stream_info) if self.header.kind == "network" else build_strategy(
                    trial.method, model, stream_info, registry)
            restore(snapshot, Replica(strategy, stream, trial.seed), self.header.recipe(trial.trained_by))
        except Exception as error:  # any error of a plugin, whose code may have changed since
            if out_of_memory(error):
                raise
            raise StoreError(f"the saved model of {trial.method.name} does not fit the present code "
                             f"({typed_message(error, 200)}); run the trial again") from error
        self.strategy = strategy.requires_grad_(False).eval()
        self.task_given = stream_info.task_given
        self.prepare = self.outline.prepare
        self.register_buffer("offered", torch.tensor(self.outline.offered), persistent=False)
        self.offered: Tensor
        self.class_names, self.sample_shape = self.outline.class_names, self.outline.sample_shape

    @property
    def network(self) -> Network | None:
        """Return the plain network if it alone makes the predictions, or else None."""
        return self.strategy.model if self.header.kind == "network" else None

    @property
    def is_language_model(self) -> bool:
        """Return whether the model predicts tokens."""
        return not self.outline.outputs

    @property
    def not_exportable(self) -> str:
        """Return why a language model without a plain network cannot be used outside clbench."""
        return (f"{self.record.name} is a language model that clbench export cannot write for transformers, because "
                f"{self.record.trial.method.name} does not save one plain network; "
                f"{advise_language_model(self.record, self.folder, self.registry)}")

    def forward(self, inputs: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] of prepared inputs [N, *input_shape]; -inf for excluded outputs."""
        return self.answer(inputs, task).logits

    def answer(self, inputs: Tensor, task: int | Tensor | None = None) -> Prediction:
        """Return the prediction for prepared inputs [N, *input_shape], with logits of -inf for excluded outputs.

        For a plain network, `task` may also be a tensor with the task of each sample, int64 [N].

        Raises:
            SpecError: the scenario gives the task and `task` is None, there is no such task, or this is a language
                model.
        """
        self._require_predictions()
        if self.task_given and task is None:
            raise SpecError(f"{self.record.name} was trained in scenario task, which gives the task: say task=0 to "
                            f"task={len(self.offered) - 1}")
        single = None if isinstance(task, Tensor) else task
        if single is not None and not 0 <= single < len(self.offered):
            raise SpecError(f"{self.record.name} has learned tasks 0 to {len(self.offered) - 1}, not {single}")
        prediction = self.strategy.predict(inputs, single if self.task_given else None)
        offered = self.offered[0 if task is None else task]
        return Prediction(prediction.logits.masked_fill(~offered, float("-inf")), prediction.task)

    def _require_predictions(self) -> None:
        """Raise a `SpecError` if this is a language model."""
        if self.is_language_model:
            raise SpecError(f"{self.record.name} is a language model, which answers token by token: write it by "
                            "clbench export, and load the folder with transformers" if self.network is not None else
                            self.not_exportable)

    @torch.no_grad()
    def predict(self, images: Any, task: int | None = None, batch: int | None = None) -> Answers:
        """Return the predictions for raw samples.

        Args:
            images: [N, *sample_shape], a tensor or an array in the format of the benchmark: uint8 pixels (or numbers in
                [0, 1]), rows, or tokens. Texts may also be a list of strings. Photos may also be a path or a list of
                paths; they are decoded, resized and cropped as those of the benchmark.
            task: index of the task of all samples. Scenario `task` requires it, and only the classes of this task
                compete; the other scenarios ignore it.
            batch: batch size; by default that of the trial's evaluation.

        Raises:
            DataError: the samples are no numbers, have another shape or range, or are photos that cannot be read.
            SpecError: see `task`, or this is a language model.
        """
        self._require_predictions()
        dtype: torch.dtype = getattr(torch, self.outline.sample_dtype)
        raw = raw_samples(images, self.record, self.sample_shape, dtype, self.registry)
        recipe, device, parts = self.record.trial.trained_by, self.offered.device, []
        with precision.allow_tf32(recipe), precision.autocast_context(recipe, device, self.strategy):
            for part in torch.split(raw, batch or self.outline.batch):
                x = self.prepare(part.to(device))
                parts.append(self.answer(tokens.shortened([x])[0] if tokens.is_text(x) else x, task))
        logits = torch.cat([part.logits for part in parts]).float().cpu()
        inferred = [part.task for part in parts if part.task is not None]
        tasks = torch.cat(inferred).tolist() if inferred else None
        if self.strategy.stream_info.predicts_numbers:
            mean, deviation = self.outline.target
            values: list[float] = (predicted_numbers(logits).double() * deviation + mean).tolist()
            return Answers([], [], logits, tasks, values)
        classes: list[int] = logits.argmax(1).tolist()
        return Answers(classes, [self.class_names[c] for c in classes], logits, tasks)

    def evaluate(self, data_dir: str | os.PathLike[str] | None = None) -> list[float]:
        """Compute the last row of R again, with data in `data_dir`: accuracy in [0, 1] or another metric by task."""
        recipe, device = self.record.trial.trained_by, self.offered.device
        settings = ExecutionSettings.model_validate({"data": data_dir})
        runner = TrialRunner(settings, "cpu", "", self.registry)
        stream = learned_stream(self.record, runner).to(device)
        with precision.allow_tf32(recipe), precision.autocast_context(recipe, device, self.strategy):
            row = evaluate(self.strategy, stream, self.record.trial.scenario, len(stream.tasks))
        return row.scores[self.strategy.objective.info.primary]


def learned_stream(record: Record, runner: TrialRunner) -> Stream:
    """Return the stream that a trial has learned.

    Raises:
        ClbenchError: the data are missing or have changed, or the trial continues another one.
    """
    trial = record.trial
    if trial.continues is not None:
        raise SpecError(f"{record.name} continues another trial: its tasks are of several benchmarks")
    stream = runner.stream(trial)
    if record.stream is None or stream.fingerprint != record.stream.fingerprint:
        raise DataError(f"benchmark {trial.benchmark.name} has other data here than {record.name} was trained on; use "
                        "the same data folder")
    return stream


@overload
def load_model(run: str | os.PathLike[str], trial: str | None = None, task: None = None,
               plugins: Files = ()) -> SavedModel | Network: ...


@overload
def load_model(run: str | os.PathLike[str], trial: str | None = None, *, task: int,
               plugins: Files = ()) -> Network: ...


def load_model(run: str | os.PathLike[str], trial: str | None = None, task: int | None = None,
               plugins: Files = ()) -> SavedModel | Network:
    """Return the final model of a trial: on the CPU, in eval mode.

    Without `task` it is a `SavedModel`, which predicts as the trial did, for any method (`--keep models`). If no model
    was saved and the method exports a network for each task (`lora`, `independent`), it is the network of the last
    task. With `task` it is the plain network that predicts for this task, if the method has one: the exported network
    of this task, or the saved network.

    A plain network takes prepared inputs [N, C, H, W] of the size of the trial's model; the record describes their
    preparation. The outputs of an exported network are -inf for classes outside its task. The keys of the `state_dict`
    are clbench's names; `network.published_name` returns the name in timm or torchvision.

    >>> model = clbench.load_model("runs/split-mnist-5k", "er/0")  # doctest: +SKIP
    >>> model.predict(images, task=2).names  # doctest: +SKIP
    >>> network = clbench.load_model("runs/split-mnist-5k", "lora/0", task=2)  # doctest: +SKIP

    Args:
        run: the run folder.
        trial: `label/seed`, `label/scenario/seed`, or the first 4 or more characters of a key; None if the folder has
            one trial only. A label may also be the name in the report.
        task: index of the task.
        plugins: files of plugins that are not installed, the same as for the run.

    Raises:
        SpecError: the trial has no saved model, or no plain network for a task.
        StoreError: no trial or several trials fit, or files are missing or incomplete.
    """
    store, registry = Store(expand_home(run)), discover(files=plugins)
    record = find_record(store, trial, registry)
    info = registry.strategy(record.trial.method.name)
    folder, last_task = store.artifacts / record.key, record.learned - 1
    is_saved = (folder / MODEL).is_file()
    if task is not None and not 0 <= task <= last_task:
        raise SpecError(f"{record.name} has learned tasks 0 to {last_task}, not {task}")
    # A trial that continues another has no files of the earlier tasks.
    if info.load_model and record.trial.continues is None and (task is not None or not is_saved):
        load = resolve(info.load_model, f"method {info.name!r}")
        plugin_arguments = {"registry": registry} if "registry" in inspect.signature(load).parameters else {}
        network: Network = load(record, folder, last_task if task is None else task, **plugin_arguments)
        return network.requires_grad_(False).eval()
    refuse_unsaved_language_model(record, folder, registry)
    if not is_saved:
        keeping = sorted(strategy.name for strategy in registry.strategies.values() if strategy.load_model)
        raise SpecError(f"the network of {record.label} was not saved. Without --keep models only "
                        f"{' and '.join(keeping)} save theirs: run the experiment again with it")
    model = SavedModel(store, record, registry)
    if task is None:
        return model
    if model.network is None:
        raise SpecError(model.not_exportable if model.is_language_model else
                        f"{record.name} has no plain network that answers: leave task out, and say it to predict")
    return model.network


def refuse_unsaved_language_model(record: Record, folder: Path, registry: Registry) -> None:
    """Raise a `SpecError` if a trial is of a language model, and its folder has no plain network."""
    if predicts_tokens(record) and not (folder / MODEL).is_file():
        raise SpecError(f"{record.name} saved no plain network; {advise_language_model(record, folder, registry)}")


def advise_language_model(record: Record, folder: Path, registry: Registry) -> str:
    """Return what to do with a language model of which a trial's folder has no plain network."""
    if not any(folder.glob("task*")):
        return "methods that change only the weights of the network, such as naive and er, save one with --keep models"
    if registry.strategy(record.trial.method.name).load_model:
        return "clbench export --task N writes the model of task N"
    return "clbench adapters export writes its adapters"


def find_record(store: Store, trial: str | None, registry: Registry) -> Record:
    """Return a folder's record of a finished trial, named as in `load_model`.

    Raises:
        StoreError: no record or several records fit.
    """
    if not store.directory.is_dir():
        raise StoreError(f"there is no folder {store.directory}: check the path")
    records, _ = store.read()
    fitting = [record for record in find_trials(records, trial, registry) if record.status == "done"]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise StoreError(f"{store.directory} has several trials that fit: name one of {list_trials(fitting)}")
    named = "" if trial is None else f" {trial!r}"
    short = f" (a key needs at least {KEY_START} characters)" if trial and len(trial) < KEY_START else ""
    finished = [record for record in records if record.status == "done"]
    raise StoreError(f"{store.directory} has no finished trial{named}{short}: name one of "
                     f"{list_trials(finished, trial or '')}")


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"KeptModel": "SavedModel"})  # until 0.3
