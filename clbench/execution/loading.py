"""Networks given back from what the trials of a run have kept."""

from __future__ import annotations

import os
from pathlib import Path

from clbench.core.entry_points import resolve
from clbench.core.errors import SpecError, StoreError
from clbench.core.registry import discover
from clbench.models.network import Network
from clbench.results.records import Record
from clbench.results.store import Store, matching


def load_model(run: str | os.PathLike[str], trial: str | None = None, task: int | None = None) -> Network:
    """Return the network with which a trial of a run answers for a task: on the CPU, in eval mode.

    It takes prepared inputs [N, C, H, W] of the size that the trial's model has (the record says how they were made),
    and its outputs are those of all classes, -inf outside the task's. Its `state_dict` has clbench's names;
    `network.published_name` gives those of the library that a model of timm or torchvision is from.

    >>> network = clbench.load_model("runs/split-mnist-5k", "lora/0", task=2)  # doctest: +SKIP

    Args:
        run: the run folder.
        trial: `label/seed`, or the beginning of a key; None if the folder has one trial only.
        task: index of the task; None for the last that was learned.

    Raises:
        SpecError: the trial's method keeps no network after a run.
        StoreError: no such trial, several that fit, or its files are not there or not whole.
    """
    store = Store(Path(run))
    record = find_record(store, trial)
    registry = discover()
    info = registry.strategy(record.trial.method.name)
    if not info.load_model:
        keeping = sorted(other.name for other in registry.strategies.values() if other.load_model)
        raise SpecError(f"{record.label} keeps no network after a run; only trials of {' and '.join(keeping)} do")
    last = len(record.R) - 2
    if task is None:
        task = last
    if not 0 <= task <= last:
        raise SpecError(f"{record.name} has learned tasks 0 to {last}, not {task}")
    network: Network = resolve(info.load_model, f"method {info.name!r}")(record, store.artifacts / record.key, task)
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
        raise StoreError(f"no finished trial {trial or ''!r} in {store.directory}; there are {known or '(none)'}")
    raise StoreError(f"several trials of {store.directory} fit: name one of {known}")
