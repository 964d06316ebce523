"""Load the saved networks of the trials of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import overload

from clbench.core.entry_points import resolve
from clbench.core.errors import SpecError, StoreError
from clbench.core.registry import discover
from clbench.execution.kept_model import KeptModel, kept_model
from clbench.models.network import Network
from clbench.results.records import Record
from clbench.results.store import MODEL, Store, matching


@overload
def load_model(run: str | os.PathLike[str], trial: str | None = None, task: None = None) -> KeptModel | Network: ...


@overload
def load_model(run: str | os.PathLike[str], trial: str | None, task: int) -> Network: ...


@overload
def load_model(run: str | os.PathLike[str], trial: str | None = None, *, task: int) -> Network: ...


def load_model(run: str | os.PathLike[str], trial: str | None = None,
               task: int | None = None) -> KeptModel | Network:
    """Return the final model of a trial: on the CPU, in eval mode.

    Without `task` it is a `KeptModel`, which predicts as the trial did, for any method (`--keep models`). If no model
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
        trial: `label/seed`, or a prefix of a key; None if the folder has one trial only.
        task: index of the task.

    Raises:
        SpecError: the trial has no saved model, or no plain network for a task.
        StoreError: no trial or several trials fit, or files are missing or incomplete.
    """
    store = Store(Path(run))
    record = find_record(store, trial)
    registry = discover()
    info = registry.strategy(record.trial.method.name)
    is_saved, last = (store.artifacts / record.key / MODEL).is_file(), record.learned - 1
    if task is not None and not 0 <= task <= last:
        raise SpecError(f"{record.name} has learned tasks 0 to {last}, not {task}")
    if is_saved and (task is None or not info.load_model):
        model = kept_model(store, record, registry)
        if task is None:
            return model
        if model.network is None:
            raise SpecError(f"{record.name} has no plain network that answers: leave task out, and say it to predict")
        return model.network
    if not info.load_model:
        keeping = sorted(other.name for other in registry.strategies.values() if other.load_model)
        raise SpecError(f"the network of {record.label} was not saved. Without --keep models only "
                        f"{' and '.join(keeping)} save theirs: run the experiment again with it")
    network: Network = resolve(info.load_model, f"method {info.name!r}")(
        record, store.artifacts / record.key, last if task is None else task)
    return network.requires_grad_(False).eval()


def find_record(store: Store, trial: str | None) -> Record:
    """Return a folder's record of a finished trial, by `label/seed` or a prefix of its key.

    Raises:
        StoreError: no record or several records fit.
    """
    records = [record for record in store.read()[0] if record.status == "done"]
    fitting = matching(records, trial)
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{r.name} ({r.key})" for r in fitting or records)
    if not fitting:
        raise StoreError(f"{store.directory} has no finished trial {trial or ''!r}: name one of {known or '(none)'}")
    raise StoreError(f"{store.directory} has several trials that fit: name one of {known}")
