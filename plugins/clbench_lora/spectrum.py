"""Measure the rank of fine-tuning: the singular values of the change of W by full fine-tuning, layer by layer.

LoRA is based on the hypothesis that this change has a low intrinsic rank (Hu et al. 2021, arXiv 2106.09685, section 1).
Here the rank is measured on the trials of `independent` and compared with the accuracy of `lora` at each rank. The
energy of a change is the sum of its squared singular values, which is its squared Frobenius norm. The best change of
rank r has the r largest singular values. Its share of the energy is the sum of their squares divided by the sum of all
squares (Eckart & Young 1936).

The weight of one layer for q, k and v is measured twice: as a whole, as one adapter on it changes it, and in thirds, as
adapters with `targets` change it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clbench.core.artifacts import BASE, task_folder
from clbench.core.errors import StoreError
from clbench.core.files import Files
from clbench.core.options import format_value
from clbench.core.registry import Registry, discover
from clbench.results import metrics
from clbench.results.records import Record
from clbench.results.stats import Interval, mean_interval
from clbench.results.store import Store
from clbench_lora import Target
from clbench_lora.layers import FUSED
from clbench_lora.run_adapters import TrialAdapters
from clbench_lora.selection import is_ordered_by_head, parts_of

SHARES = (0.90, 0.95, 0.99)  # shares of the energy
MODEL = "model.safetensors"  # the file that `independent` exports for each task


@dataclass(frozen=True)
class Change:
    """The change of a layer's weight by a task of a trial, as its singular values, largest first."""

    trial: str  # key
    seed: int
    task: int
    layer: str
    shape: tuple[int, ...]
    singular: tuple[float, ...]
    whole: str | None = None  # for a part of a layer: the whole layer

    @property
    def full_rank(self) -> int:
        """Return the largest rank that a change of the layer can have."""
        return len(self.singular)

    def rank(self, share: float) -> int:
        """Return the smallest rank that holds a share of the energy."""
        return rank_holding(self.singular, share)


@dataclass(frozen=True)
class Reached:
    """The result of a method at a rank: ACC over seeds, and the share of the energy that changes of this rank hold.

    Rank 0 is `frozen`. Rank None means no limit (`independent`, whose change is measured) or a rank that differs
    between layers.
    """

    label: str
    method: str
    rank: int | None
    accuracy: Interval
    energy: float | None


@dataclass
class Spectrum:
    """The changes by all trials of one configuration of `independent` in a setting, and results of other methods."""

    setting: str
    label: str
    changes: list[Change] = field(default_factory=list)
    reached: list[Reached] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """Return the layers, in the model's order."""
        return list(dict.fromkeys(c.layer for c in self.changes))

    @property
    def finest(self) -> list[str]:
        """Return the layers in the same order, with the parts of a layer instead of it if it has parts."""
        return list(dict.fromkeys(c.layer for c in parted(self.changes)))

    def of(self, layer: str) -> list[Change]:
        """Return a layer's changes, of all trials and tasks."""
        return [c for c in self.changes if c.layer == layer]


def singular_values(change: Tensor) -> Tensor:
    """Return the singular values [R], largest first, in float64, of a change of W as a matrix [out, all others]."""
    values: Tensor = torch.linalg.svdvals(change.double().flatten(1))
    return values


def energy_shares(singular: Sequence[float]) -> list[float]:
    """Return the share of the energy that the best changes of rank 1, 2, ... R hold; all 1 if there is no energy.

    >>> energy_shares([2.0, 1.0, 0.0])
    [0.8, 1.0, 1.0]
    """
    sums = list(accumulate(s * s for s in singular))
    return [part / sums[-1] if sums[-1] else 1.0 for part in sums]


def rank_holding(singular: Sequence[float], share: float) -> int:
    """Return the smallest rank whose best change holds a share in (0, 1] of the energy; 0 if nothing changed.

    >>> rank_holding([2.0, 1.0, 0.0], 0.8), rank_holding([2.0, 1.0, 0.0], 0.81), rank_holding([0.0, 0.0], 0.9)
    (1, 2, 0)
    """
    if not any(singular):
        return 0
    return 1 + sum(energy < share for energy in energy_shares(singular)[:-1])


def energy_at(changes: Sequence[Change], rank: int) -> float:
    """Return the share of the energy of all changes together that the best changes of a rank hold.

    If a layer has parts, `changes` should contain either the layer or its parts (`unparted`, `parted`).
    """
    total = _energy(c.singular for c in changes)
    energy = _energy(c.singular[:rank] for c in changes)
    return energy / total if total else 1.0


def _energy(singular: Iterable[Sequence[float]]) -> float:
    """Return the sum of the squared singular values of several changes."""
    return math.fsum(s * s for s in chain.from_iterable(singular))


def unparted(changes: Iterable[Change]) -> list[Change]:
    """Return the changes of whole layers."""
    return [c for c in changes if c.whole is None]


def parted(changes: Sequence[Change]) -> list[Change]:
    """Return the changes of layers, with the parts of a layer instead of it if it has parts."""
    wholes = {c.whole for c in changes}
    return [c for c in changes if c.layer not in wholes]


def measured_layers(record: Record, folder: Path, registry: Registry) -> dict[str, bool]:
    """Return the Linear and Conv2d layers in the blocks of a trial's model, by name, in the model's order.

    The value is False if q, k and v are not thirds of the layer's rows, because the rows are ordered by head. Heads are
    left out: each task has its own, and W has none to compare it with.
    """
    model = TrialAdapters(record, folder, registry).architecture()
    names = [f"blocks.{name}" for name, module in model.blocks.named_modules()
             if isinstance(module, nn.Linear | nn.Conv2d)]
    return {name: not is_ordered_by_head(model.get_submodule(name.rpartition(".")[0])) for name in names}


def weight_changes(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor],
                   layers: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each layer in `layers` with the change of its weight, in this order.

    A layer whose weight the base does not have is left out.

    Raises:
        StoreError: the two belong to different models.
    """
    for layer in layers:
        name = f"{layer}.weight"
        if name not in base:
            continue
        weight = base[name]
        if name not in tuned or tuned[name].shape != weight.shape:
            raise StoreError(f"{name} of the base is missing or has another shape in the task's weights; run it again")
        yield layer, tuned[name].double() - weight.double()


def changes_of(record: Record, folder: Path, registry: Registry) -> Iterator[Change]:
    """Yield the changes of a trial of `independent`, task by task, from the weights that it has exported.

    Raises:
        StoreError: weights are missing or cannot be read.
    """
    base, layers = _read(folder / BASE), measured_layers(record, folder, registry)
    for task in range(len(record.R) - 1):
        for layer, change in weight_changes(base, _read(task_folder(folder, task) / MODEL), layers):
            parts = {f"{layer}.{part}": third for part, third in thirds(layer, change).items()} if layers[layer] else {}
            for name, tensor in {layer: change, **parts}.items():
                yield Change(record.key, record.trial.seed, task, name, tuple(tensor.shape),
                             tuple(singular_values(tensor).tolist()), layer if name in parts else None)


def thirds(layer: str, change: Tensor) -> dict[Target, Tensor]:
    """Return the changes of q, k and v in one layer for all three, as views; an empty dict for any other layer."""
    fused = parts_of(layer) == FUSED and change.dim() == 2 and len(change) == len(FUSED) * change.shape[1]
    return dict(zip(FUSED, change.chunk(len(FUSED)), strict=True)) if fused else {}


def spectra(run: Path, plugins: Files = ()) -> list[Spectrum]:
    """Return the spectra of a run folder: one for each setting and configuration of `independent` in it.

    Configurations differ in an option or in the training configuration of the method, as rows of reports do.

    Args:
        run: the run folder.
        plugins: files of plugins that are not installed, the same as for the run.

    Raises:
        StoreError: there is no finished trial of `independent` with its weights, or files cannot be read.
    """
    store, registry = Store(run), discover(files=plugins)
    records = [r for r in store.read()[0] if r.status == "done"]
    by_setting: dict[tuple[str, ...], Spectrum] = {}
    members: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.trial.method.name != "independent" or not (store.artifacts / record.key / BASE).is_file():
            continue
        key = (*record.trial.environment, record.trial.method_config)
        spectrum = by_setting.setdefault(key, Spectrum(_setting(record), record.label))
        spectrum.changes += changes_of(record, store.artifacts / record.key, registry)
        members.setdefault(key, []).append(record)
    if not by_setting and any(r.trial.method.name == "independent" and r.metric for r in records):
        raise StoreError(f"no spectrum of {run}: it needs the weights of each task's model, which independent saves "
                         "for classification only")
    if not by_setting:
        raise StoreError(f"no trial of independent with its weights in {run}; clbench run --methods independent,lora "
                         f"--set lora.rank=1,4,16 --out {run} makes some")
    for key, spectrum in by_setting.items():
        setting_records = [r for r in records if r.trial.environment == key[:-1]]
        _compare(spectrum, members[key], setting_records)
    return list(by_setting.values())


def _compare(spectrum: Spectrum, full: Sequence[Record], same: Sequence[Record]) -> None:
    """Add the results of frozen, lora and independent in a setting, by rank, and notes on their differences."""
    start = full[0].trial.method.options["base"]
    groups: dict[str, list[Record]] = {}
    for record in same:
        if record.trial.method.name in ("frozen", "lora"):
            groups.setdefault(record.trial.method_config, []).append(record)
    for group in (*groups.values(), list(full)):
        method, label = group[0].trial.method, group[0].label
        rank = {"frozen": 0, "independent": None}.get(method.name, method.options.get("rank"))
        if method.options.get("rank_pattern"):
            rank = None
        changes = (parted if {*FUSED} & {*method.options.get("targets", ())} else unparted)(spectrum.changes)
        energy = 1.0 if method.name == "independent" else None if rank is None else energy_at(changes, rank)
        spectrum.reached.append(Reached(label, method.name, rank, mean_interval([metrics.acc(r.R) for r in group]),
                                        energy))
        if method.options["base"] != start:
            spectrum.notes.append(f"{label} starts from another W (base = {method.options['base']}) than "
                                  f"{spectrum.label} (base = {start})")
        narrow = {name: value for name, value in method.options.items()
                  if (name == "layers" and value != "all") or (name == "targets" and value)}
        if narrow:
            which = ", ".join(f"{name} = {format_value(value)}" for name, value in narrow.items())
            spectrum.notes.append(f"{label} adapts some layers only ({which}); the energy next to it is that of all")
        spectrum.notes += [f"{label}: {note}; the energy next to it is that of all layers" for note in group[0].notes
                           if " leaves out what cannot be adapted: " in note]
    spectrum.reached.sort(key=lambda r: (r.method == "independent", math.inf if r.rank is None else r.rank, r.label))


def _setting(record: Record) -> str:
    """Return a setting as one line."""
    trial = record.trial
    weights = f", weights {trial.weights.sha256[:12]}" if trial.weights else ""
    return f"{trial.benchmark}, scenario {trial.scenario}, {trial.model}{weights}"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"weights {path} cannot be read: {error}; run the trial again") from None
