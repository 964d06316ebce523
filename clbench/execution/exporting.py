"""`clbench export`: write a trial's model in formats that other programs can read."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clbench.core.artifacts import save_tensors
from clbench.core.errors import SpecError, StoreError, typed_message
from clbench.core.files import write_atomically
from clbench.core.registry import discover
from clbench.execution.loading import (
    SavedModel,
    find_record,
    load_model,
    refuse_unsaved_language_model,
)
from clbench.models.hf_files import INDEX, folder_of, inner
from clbench.models.language_model import LanguageModel
from clbench.models.network import Network
from clbench.persistence.snapshot import make_noise_stream
from clbench.results.records import Record, matrices
from clbench.results.store import MODEL, Store

Format = Literal["safetensors", "torch-export", "onnx"]
PROGRAM, ONNX, ABOUT = "model.pt2", "model.onnx", "model.json"
OTHERS = (MODEL, INDEX, "config.json", PROGRAM, ONNX, ABOUT)  # files that another model may have
CONFIGURATION = (".json", ".jinja", ".model", ".txt")  # suffixes of a language model's files besides its weights
NEEDS = ("onnx", "onnxscript")  # packages of the extra clbench[onnx]


class Program(nn.Module):
    """A model with its preprocessing, from raw samples to logits, in the form that `torch.export` takes."""

    def __init__(self, model: SavedModel, task: int | None) -> None:
        """Predict for one task, or for the task of each sample if `task` is None."""
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Return logits [N, C] of raw samples [N, *sample_shape]; -inf for excluded outputs.

        `tasks` [N] has the task index of each sample if the scenario gives it.
        """
        return self.model.answer(self.model.prepare(images), self.task if tasks is None else tasks).logits


def export(run: Path, trial: str | None, to: Path, form: Format = "safetensors", task: int | None = None,
           plugins: Sequence[Path] = ()) -> list[Path]:
    """Write a trial's model and its description (`model.json`) to a folder, and return the paths of both files.

    Args:
        run: the run folder.
        trial: the trial, named as in `load_model`; None if the folder has one trial only.
        to: the folder to write to.
        form: `safetensors` (weights), `torch-export` or `onnx` (programs from raw samples to logits).
        task: index of the task to predict for; None for all tasks, which is not possible for a program of a method with
            separate parts for each task.
        plugins: files of plugins that are not installed, the same as for the run.

    Raises:
        SpecError: there is no such model, or it cannot be written as a program.
        StoreError: there is no such trial, its model was not saved, the folder has another model, or files cannot be
            written.
    """
    store, registry = Store(run), discover(files=plugins)
    record = find_record(store, trial, registry)
    if form == "onnx" and not all(map(importlib.util.find_spec, NEEDS)):
        raise SpecError("--format onnx needs the packages onnx and onnxscript, which are not installed: pip install "
                        "'clbench[onnx]', or use --format torch-export, which needs none")
    if task is not None and task >= record.learned:
        raise SpecError(f"{record.name} has learned tasks 1 to {record.learned}, not {task + 1}")
    try:
        _refuse_other_model(record, to)
        if form == "safetensors" and task is not None:
            network = load_model(run, record.key, task=task, plugins=plugins)
            path = _write_weights(network, record, to)
            # The record describes neither the preprocessing nor the tasks before a continued trial; a saved model does.
            is_described = (store.artifacts / record.key / MODEL).is_file() and not isinstance(network, LanguageModel)
            model, is_plain = SavedModel(store, record, registry) if is_described else None, True
        else:
            refuse_unsaved_language_model(record, store.artifacts / record.key, registry)
            model = SavedModel(store, record, registry)
            if model.is_language_model and model.network is None:
                raise SpecError(model.not_exportable)
            is_plain = model.network is not None
            if form != "safetensors":
                path = _write_program(model, to, form, task)
            elif model.network is not None:
                path = _write_weights(model.network, record, to)
            else:
                path = to / MODEL
                to.mkdir(parents=True, exist_ok=True)
                write_atomically(path, (store.artifacts / record.key / MODEL).read_bytes())
        return [path, _write_description(record, model, to, task, is_plain)]
    except OSError as error:
        raise StoreError(f"cannot write to {to}: {error.strerror or error}; choose another folder with --to") from None


def _refuse_other_model(record: Record, to: Path) -> None:
    """Check that writing to a folder replaces no other model; an earlier export of the same trial may be replaced.

    Raises:
        StoreError: the folder has the weights from which the trial started, or another model.
        OSError: the folder cannot be read.
    """
    weights = record.trial.weights
    if weights is not None and not weights.named and Path(weights.path).parent.resolve() == to.resolve():
        raise StoreError(f"{to} has the weights from which {record.name} started; choose another folder with --to")
    existing = next((name for name in OTHERS if (to / name).exists()), None)
    if existing is None:
        return
    try:
        is_same_trial = json.loads((to / ABOUT).read_text(encoding="utf-8"))["record"] == record.key
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # it is no export
        is_same_trial = False
    if not is_same_trial:
        raise StoreError(f"{to} has a {existing} that is not from an export of {record.name}; choose another folder "
                         "with --to")


def _write_weights(network: Network, record: Record, to: Path) -> Path:
    """Write the weights of a plain network under their published names.

    For a language model, also copy its configuration and tokenizer, so that transformers loads the folder.
    """
    tensors = network.state_dict()
    if isinstance(network, LanguageModel) and network.tied:
        del tensors["head.weight"]
    weights = {network.published_name(name): tensor for name, tensor in tensors.items()}
    save_tensors(to / MODEL, weights, {"format": "pt", "method": record.label, "model": str(record.trial.model),
                                       "key": record.key})
    if isinstance(network, LanguageModel):
        for path in folder_of(inner(record.trial.model.name)).iterdir():
            if path.suffix in CONFIGURATION and not path.name.endswith(".index.json"):
                content = path.read_bytes()
                write_atomically(to / path.name, _with_dtype(content, network.head.weight.dtype)
                                 if path.name == "config.json" else content)
    return to / MODEL


def _with_dtype(content: bytes, dtype: torch.dtype) -> str:
    """Return a model's configuration with the dtype of its weights, because transformers rounds them to that dtype."""
    configuration = json.loads(content)
    for key in {"dtype", "torch_dtype"} & configuration.keys():  # the second in older releases
        configuration[key] = str(dtype).removeprefix("torch.")
    return json.dumps(configuration, indent=2) + "\n"


def _write_description(record: Record, model: SavedModel | None, to: Path, task: int | None, is_plain: bool) -> Path:
    """Write a description of the model: its trial, inputs, names of outputs, and results.

    `is_plain` says whether what was exported is a plain network.
    """
    stream, continued, earlier = record.stream, record.trial.continues, record.earlier
    assert stream is not None
    earlier_row: list[float | None] = []  # accuracy on the tasks of the trial that this one continues, if known
    if continued is not None:
        earlier_row = [None] * continued.tasks if earlier is None else [*earlier.after[-1]]
    description: dict[str, Any] = {
        "method": record.label, "model": str(record.trial.model), "benchmark": str(record.trial.benchmark),
        "scenario": record.trial.scenario, "seed": record.trial.seed, "record": record.key,
        "tasks": stream.classes, "class_names": stream.class_names,
        **{metric: [*earlier_row, *matrix[-1]] for metric, matrix in matrices(record).items()},
        "input_shape": stream.input_shape}
    if task is not None:
        description["task"] = task
    if model is not None:
        outline = model.outline.model_dump(mode="json")
        description |= {"plain_network": is_plain, "classes": model.class_names, "tasks": outline["classes"],
                        "samples": {"shape": outline["sample_shape"], "dtype": outline["sample_dtype"],
                                    **outline["prepare"]}}
        if model.strategy.stream_info.predicts_numbers:  # outputs are standardized
            mean, deviation = model.outline.target
            description["target"] = {"mean": mean, "deviation": deviation}
        if continued is not None:  # the record's stream has the new tasks only
            description["class_names"] = [[model.class_names[c] for c in classes] for classes in outline["classes"]]
    write_atomically(to / ABOUT, json.dumps(description, indent=1, allow_nan=False) + "\n")
    return to / ABOUT


def _write_program(model: SavedModel, to: Path, form: Format, task: int | None) -> Path:
    """Write a model as a program, and check that the program gives the same logits as the model.

    An earlier program in the folder is replaced only after the check.

    Raises:
        SpecError: the model cannot be written as a program.
    """
    name = model.record.name
    if task is not None and not model.task_given:
        raise SpecError(f"{name} was trained in scenario {model.record.trial.scenario}, where the task is not given: "
                        "leave --task out")
    of_tasks = model.task_given and task is None  # whether the program takes the task of each sample
    if of_tasks and model.network is None:
        raise SpecError(f"{name} is no plain network, so its program answers for one task: name it, --task 1 to "
                        f"{len(model.offered)}")
    program = Program(model, task).eval()
    examples = [make_noise_stream(model.outline).tasks[task or 0].test.x[:count] for count in (4, 3)]
    args = [(x, torch.full((len(x),), 0)) if of_tasks else (x,) for x in examples]
    path = to / (PROGRAM if form == "torch-export" else ONNX)
    to.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _quiet(), TemporaryDirectory(prefix=".export-", dir=to) as folder:
        unchecked = Path(folder) / path.name
        expected = program(*args[1])  # first, so that the program does not fill caches of preprocessing
        batch = {0: torch.export.Dim("batch", min=1, max=2**20)}
        shapes = {"images": batch, "tasks": batch} if of_tasks else {"images": batch}
        try:
            exported = torch.export.export(program, args[0], dynamic_shapes=shapes)
            if form == "torch-export":
                torch.export.save(exported, unchecked)
                logits = torch.export.load(unchecked).module()(*args[1])
            else:
                torch.onnx.export(exported, f=unchecked, external_data=False, dynamo=True, verbose=False)
                logits = _onnx_logits(unchecked, args[1])
            if not torch.allclose(logits, expected, rtol=1e-4, atol=1e-5):
                raise ValueError("its logits differ from the model's")
        except Exception as error:  # of any type, because methods may run Python code that cannot be exported
            raise SpecError(f"{name} cannot be written as one program ({typed_message(error, 160)}); choose "
                            "--format safetensors and clbench.load_model") from None
        os.replace(unchecked, path)
    return path


def _onnx_logits(path: Path, inputs: Sequence[Tensor]) -> Tensor:
    """Return the logits of an ONNX program, as the reference implementation of ONNX computes them."""
    from onnx.reference import ReferenceEvaluator

    program = ReferenceEvaluator(str(path))
    arrays = dict(zip(program.input_names, [tensor.numpy() for tensor in inputs], strict=True))
    outputs: Any = program.run(None, arrays)
    return torch.from_numpy(outputs[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporter, which are meant for its developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
