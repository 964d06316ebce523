"""The format of snapshots: one safetensors file with tensors and, as JSON in its metadata, a header.

- A training snapshot has what training continues with. It is the checkpoint of an interrupted trial, and what
  `--keep state` saves of a finished one.
- A model snapshot has what predictions need, which `--keep models` saves.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import StoreError
from clbench.data.prepare import Prepare
from clbench.experiment.spec import Recipe
from clbench.persistence.strategy_state import SnapshotError, StrategyState, capture, restore, retrace
from clbench.results.curve import Curve
from clbench.results.records import Costs, ErrorCounts, Probe, Timings
from clbench.strategy.base import Strategy
from clbench.training.replica import Replica

SCHEMA = 1
STRATEGY, OPTIMIZER, GENERATOR = "strategy/", "optimizer/", "generator"  # names of tensors in a training snapshot


class Version(BaseModel):
    """The version of a header's format."""

    schema_version: int = SCHEMA


class Header(StrategyState):
    """What every snapshot has apart from tensors."""

    schema_version: int = SCHEMA
    key: str = ""  # of the trial
    learned: int  # tasks
    problem: str = ""  # why there is no state in it


class TrainingHeader(Header):
    """What a training snapshot has apart from tensors; most of it continues the fields of a `Replica`."""

    code: str = ""  # of strategy, model and clbench
    data: str = ""  # fingerprint of the stream
    versions: dict[str, str] = Field({})
    device: str = "cpu"
    threads: int = 1
    started: datetime.datetime | None = None
    R: list[list[float]] = Field([])
    task_inference: list[list[float]] = Field([])
    costs: Costs = Field(default_factory=Costs)
    timings: Timings = Field(default_factory=Timings)
    errors: list[ErrorCounts] = Field([])
    probe: Probe | None = None
    notes: list[str] = Field([])
    last_losses: list[list[float]] = Field([])
    curve: Curve | None = None


class ModelHeader(Header):
    """What a model snapshot has apart from tensors."""

    kind: Literal["network", "strategy"]
    sample_shape: list[int]  # of a raw sample
    sample_dtype: Literal["uint8", "float32", "int32"]
    input_shape: list[int]  # of a prepared one
    prepare: Prepare
    outputs: int
    class_names: list[str]  # of each output; those of several tasks where it is another class in each
    classes: list[list[int]]  # of each task, as outputs
    taught: list[list[int]]  # those of its training samples
    offered: list[list[int]]  # outputs that take part in the answer to a sample of each task
    hidden: bool = False  # whether it was learned without boundaries
    batch: int  # samples that the trial predicted at once
    steps: int  # optimizer steps of its longest task
    names: dict[str, str] = Field({})  # in the file, of tensors that have another name in clbench
    left_out: dict[str, tuple[str, list[int]]] = Field({})  # dtype and shape of tensors that only training needs


AnyHeader = TypeVar("AnyHeader", bound=Header)
Contents = tuple[dict[str, Any], dict[str, Tensor]]  # fields of a header, and tensors


def write(path: Path, header: Header, collect: Callable[[], Contents]) -> None:
    """Write a snapshot, replacing an older one; where its contents cannot be saved, one that says why.

    Raises:
        OSError: it cannot be written.
    """
    try:
        fields, tensors = collect()
    except SnapshotError as error:
        fields, tensors = {"problem": str(error)}, {}
    save_tensors(path, tensors, {"format": "pt", "clbench": header.model_copy(update=fields).model_dump_json()})


def read(path: Path, kind: type[AnyHeader]) -> tuple[AnyHeader, dict[str, Tensor]]:
    """Return the header and the tensors of a snapshot.

    Raises:
        FileNotFoundError: there is none.
        SnapshotError: it is damaged, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("clbench", "")
            version = Version.model_validate_json(text).schema_version
            if version != SCHEMA:
                raise SnapshotError(f"the snapshot has format {version}, and this version of clbench reads {SCHEMA}")
            header = kind.model_validate_json(text)
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        cause = "is of another version of clbench" if isinstance(error, ValidationError) else type(error).__name__
        raise SnapshotError(f"the snapshot cannot be read ({cause})") from None


def read_saved(path: Path, kind: type[AnyHeader], keep: Literal["models", "state"]) -> tuple[AnyHeader,
                                                                                            dict[str, Tensor]]:
    """Return the header and the tensors of what `--keep` has saved of a finished trial.

    Raises:
        StoreError: it is not there, cannot be read, or says why there is no state in it.
    """
    again = f"run the experiment again with --keep {keep}"
    try:
        header, tensors = read(path, kind)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist: {again}") from None
    except SnapshotError as error:
        raise StoreError(f"{path}: {error}; remove it and {again}") from None
    if header.problem:
        raise StoreError(f"{path} is empty, because the method cannot be saved: {header.problem}")
    return header, tensors


def training_contents(strategy: Strategy, moments: Mapping[str, Tensor]) -> Contents:
    """Return the contents of a training snapshot: strategy, generator and state of the optimizer."""
    fields, state = capture(strategy)
    tensors = {f"{STRATEGY}{name}": tensor for name, tensor in state.items()}
    tensors.update({f"{OPTIMIZER}{name}": tensor for name, tensor in moments.items()})
    tensors[GENERATOR] = strategy.world.generator.get_state()
    return fields, tensors


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def resume(header: Header, tensors: Mapping[str, Tensor], replica: Replica, recipe: Recipe) -> dict[str, Tensor]:
    """Restore a new strategy from a training snapshot, and return the state of the optimizer.

    Raises:
        SnapshotError: that cannot be done; the strategy is then unusable.
    """
    if header.problem:
        raise SnapshotError(header.problem)
    retrace(replica, header.learned, recipe)
    restore(header, section(tensors, STRATEGY), replica.strategy, tensors.get(GENERATOR))
    return section(tensors, OPTIMIZER)
