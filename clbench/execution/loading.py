"""Networks given back from what the trials of a run have kept."""

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

    Without `task` it is a `KeptModel`, which answers as the trial did, of any method (`--keep models`); where none was
    kept and the method has exported a network for each task (`lora`, `independent`), that of the last one. With `task`
    it is the plain network that answers for this task, where the method has one: such an exported one, or the kept
    network.

    A plain network takes prepared inputs [N, C, H, W] of the size that the trial's model has (the record says how they
    were made); an exported one has -inf for outputs outside its task. Its `state_dict` has clbench's names;
    `network.published_name` gives those of the library that a model of timm or torchvision is from.

    >>> model = clbench.load_model("runs/split-mnist-5k", "er/0")  # doctest: +SKIP
    >>> model.predict(images, task=2).names  # doctest: +SKIP
    >>> network = clbench.load_model("runs/split-mnist-5k", "lora/0", task=2)  # doctest: +SKIP

    Args:
        run: the run folder.
        trial: `label/seed`, or the beginning of a key; None if the folder has one trial only.
        task: index of the task.

    Raises:
        SpecError: the trial has kept no model, or has no plain network for a task.
        StoreError: no such trial, several that fit, or its files are not there or not whole.
    """
    store = Store(Path(run))
    record = find_record(store, trial)
    registry = discover()
    info = registry.strategy(record.trial.method.name)
    kept, last = (store.artifacts / record.key / MODEL).is_file(), record.learned - 1
    if task is not None and not 0 <= task <= last:
        raise SpecError(f"{record.name} has learned tasks 0 to {last}, not {task}")
    if kept and (task is None or not info.load_model):
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
    """Return a folder's record of a finished trial, by `label/seed` or the beginning of its key.

    Raises:
        StoreError: there is none, or several fit.
    """
    records = [record for record in store.read()[0] if record.status == "done"]
    fitting = matching(records, trial)
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{r.name} ({r.key})" for r in fitting or records)
    if not fitting:
        raise StoreError(f"{store.directory} has no finished trial {trial or ''!r}: name one of {known or '(none)'}")
    raise StoreError(f"{store.directory} has several trials that fit: name one of {known}")
