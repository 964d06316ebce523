"""Compute a frozen network's features of all samples of a benchmark once, and store them in a file to train heads on.

The features are the output of `network.features` in eval mode, for inputs that are prepared as in a trial. A batch
never contains samples of two tasks, and the output of an interrupted command is truncated to whole batches. So a
resumed command writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from clbench.core import seeds, tokens
from clbench.core.device import pick_device, send
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.core.registry import Registry
from clbench.data.feature_file import Array, Parts, check_suffix, write_features
from clbench.data.raw import RawStream
from clbench.data.samples import Samples
from clbench.data.stream import Stream, read_benchmark, to_stream
from clbench.execution.progress import clock, redraws
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Trial
from clbench.models.network import Network
from clbench.models.weights import hash_tensors
from clbench.training import precision
from clbench.training.building import build_model, channels_last, check_model, prepare_for_model, require_kind
from clbench.training.evaluation import batch_size

EVERY = 15.0  # seconds between progress lines if the output is not a terminal


class EmbeddingProgress:
    """Shows the number of finished samples, the elapsed time and the remaining time. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        """Start the clock."""
        self.console, self.total, self.draws = console, total, redraws(console)
        self.began = self.said = time.monotonic()
        self.bars = Bars(TextColumn("features", markup=False), BarColumn(bar_width=24),
                         TextColumn("{task.fields[state]}", markup=False), console=console, transient=True)
        self.bar = self.bars.add_task("", total=total, state="")

    def __enter__(self) -> EmbeddingProgress:
        """Start to draw the progress bar if the console can redraw lines."""
        if self.draws:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Remove the progress bar."""
        if self.draws:
            self.bars.stop()

    def __call__(self, done: int, reused: int) -> None:
        """Show that `done` samples are finished, of which `reused` come from an earlier call."""
        now = time.monotonic()
        state = self.state(done, reused, now - self.began)
        if self.draws:
            self.bars.update(self.bar, completed=done, state=state)
        elif now - self.said >= EVERY:
            self.said = now
            self.console.print(state, soft_wrap=True, markup=False)

    def state(self, done: int, reused: int, elapsed: float) -> str:
        """Return the progress as text; the remaining time is estimated from the samples that were not reused."""
        remaining = clock(elapsed * (self.total - done) / (done - reused)) if done > reused else "?"
        return (f"{done:,}/{self.total:,} samples, {clock(elapsed)} elapsed"
                + (f", about {remaining} left" if done < self.total else ""))


PARTS = ("train", "test")


@dataclass(frozen=True)
class Job:
    """A benchmark's samples and the network that computes their features; immutable."""

    raw: RawStream
    stream: Stream
    network: Network
    trial: Trial
    batch: int
    device: torch.device
    notes: tuple[str, ...]  # for the user

    @property
    def width(self) -> int:
        """Return D, the number of features."""
        return self.network.head.in_features

    def samples(self, part: str) -> list[Samples]:
        """Return the samples of each task; `part` is train or test."""
        return [getattr(task, part) for task in self.stream.tasks]

    def count(self, part: str) -> int:
        """Return N, the number of samples of a part."""
        return sum(map(len, self.samples(part)))

    @property
    def samples_in_all(self) -> int:
        """Return the number of samples of both parts."""
        return sum(map(self.count, PARTS))

    def identity(self) -> dict[str, Any]:
        """Return everything that the exact values of the features depend on."""
        body = {n: t for n, t in self.network.state_dict().items() if not n.startswith("head.")}
        return {"stream": self.stream.fingerprint, "weights": hash_tensors(body), "model": str(self.trial.model),
                "precision": self.trial.recipe.precision, "batch": self.batch, "device": self.device.type,
                "torch": torch.__version__, "clbench": version("clbench")}

    def facts(self) -> dict[str, str]:
        """Return the metadata of a file of features."""
        weights = self.trial.weights
        weights_facts = {"weights": "none"} if weights is None else {
            "weights": weights.path, "weights_sha256": self.network.weights_hash if weights.named else weights.sha256}
        return {"benchmark": str(self.trial.benchmark), "model": str(self.trial.model), **weights_facts,
                "features": str(self.width), "precision": self.trial.recipe.precision, "clbench": version("clbench")}

    def arrays(self, parts: Parts) -> dict[str, Array]:
        """Return the arrays of a file: features, the benchmark's own labels, the task of each sample, and groups.

        Training samples have groups if those of the benchmark have. A validation split of the features needs them.
        """
        arrays: dict[str, Array] = {}
        for part in PARTS:
            splits = getattr(self.raw, part)
            arrays |= {f"X_{part}": parts.array(part), f"y_{part}": np.concatenate([s.y.numpy() for s in splits]),
                       f"task_{part}": np.repeat(np.arange(len(splits)), [len(s.y) for s in splits])}
        groups = [split.groups.numpy() for split in self.raw.train if split.groups is not None]
        return arrays | ({"group_train": np.concatenate(groups)} if groups else {})


def prepare(trial: Trial, settings: ExecutionSettings, device: str, registry: Registry,
            batch: int | None = None) -> Job:
    """Read the benchmark, build the network and return the job.

    Args:
        trial: a trial of which benchmark, model, weights, precision and seed are used. The seed determines untrained
            weights and class orders that depend on it.
        settings: execution settings with the folder of data sets.
        device: device of the network (auto | cpu | cuda[:i] | mps).
        registry: the installed plugins.
        batch: batch size; None chooses one for the device.

    Raises:
        ClbenchError: the data are missing, the model does not fit them, or the model is only a head.
    """
    torch_device = pick_device(device)
    raw = read_benchmark(trial.benchmark, trial.seed, settings.data_dir, registry)
    if raw.common_test:
        raise SpecError(f"benchmark {trial.benchmark.name!r} has one test set for all tasks, and a file of features "
                        "has those of each task; choose another --benchmark")
    stream = prepare_for_model(to_stream(raw, "task", trial.benchmark.name), trial, registry)
    require_kind(trial.model, stream, registry)
    if stream.predicts_numbers:
        raise SpecError(f"benchmark {trial.benchmark.name!r} has numbers to predict, and a file of features has "
                        "classes; leave its target out")
    if stream.predicts_tokens:
        raise SpecError(f"benchmark {trial.benchmark.name!r} is for language models, which are not trained on "
                        "features; embed texts with labels instead (text:FILE.csv)")
    with seeds.scope(trial.seed, "init"):
        # Ignore its notes, because they are about the unused head.
        network, _ = build_model(trial.model, trial.weights, stream.input_shape, stream.classes, registry)
    if not network.has_body:
        raise SpecError(f"model {trial.model} is a head alone, which has no features but its inputs; choose another "
                        "--model")
    check_model(network, trial.model, stream, registry)
    network = channels_last(network.to(torch_device)).requires_grad_(False)
    network.eval()
    notes = [*stream.notes]
    if trial.weights is None:
        notes.append("no --weights: these are the features of an untrained network")
    if raw.is_stochastic:
        notes.append("training transforms are random: the features are those of one draw of each sample")
    if stream.augment:
        notes.append(f"training samples are embedded as they are, without the benchmark's augmentation ({raw.augment})")
    return Job(raw, stream, network, trial, batch or batch_size(stream, torch_device), torch_device, tuple(notes))


@dataclass(frozen=True)
class Embedded:
    """The numbers of samples that were computed and that were reused from an earlier call, and the seconds."""

    computed: int
    reused: int
    seconds: float


def embed(job: Job, out: Path, on_progress: Callable[[int, int], None] = lambda done, reused: None) -> Embedded:
    """Write the features of all samples to a file, in the format of its suffix: safetensors or npz.

    After an interruption, the finished parts stay in a folder next to the file, and the next call with the same job
    continues from them.

    Args:
        job: the job from `prepare`.
        out: the path of the file.
        on_progress: called after each batch with the number of finished samples and the number of reused ones.

    Raises:
        SpecError: the suffix does not name a supported format.
        StoreError: another process writes the same file, or the file cannot be written.
        DataError: features are not finite.
    """
    check_suffix(out)
    parts = Parts(out, job.identity(), job.width)
    began = time.monotonic()
    done = reused = 0
    try:
        with parts.lock_folder():
            for part in PARTS:
                sizes = [len(samples) for samples in job.samples(part)]
                reused_rows = whole_batches(sizes, job.batch, parts.rows(part))
                done, reused = done + reused_rows, reused + reused_rows
                on_progress(done, reused)
                with parts.appending(part, reused_rows) as append:
                    for features in batches(job, part, reused_rows):
                        append(features)
                        done += len(features)
                        on_progress(done, reused)
            write_features(out, job.arrays(parts), job.facts(), job.raw.class_names)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}; run the same command again to continue, or "
                         "choose another --out") from error
    return Embedded(done - reused, reused, time.monotonic() - began)


def whole_batches(sizes: list[int], batch: int, rows: int) -> int:
    """Return how many of the first `rows` samples form whole batches; the last batch of each task may be smaller.

    >>> whole_batches([5, 5], 2, 4), whole_batches([5, 5], 2, 5), whole_batches([5, 5], 2, 6)
    (4, 5, 5)
    """
    offset = 0
    for size in sizes:
        if rows < offset + size:
            return offset + (rows - offset) // batch * batch
        offset += size
    return offset


@torch.no_grad()
def batches(job: Job, part: str, skip: int = 0) -> Iterator[Array]:
    """Yield the features [n, D] of a part's batches, float32 and in order, after the first `skip` samples.

    Raises:
        DataError: features are not finite.
    """
    recipe, network = job.trial.recipe, job.network
    autocast = precision.autocast_context(recipe, job.device, network)
    with precision.allow_tf32(recipe):
        for index, samples in enumerate(job.samples(part)):
            begin = min(skip, len(samples))
            skip -= begin
            if begin == len(samples):
                continue
            for chunk in samples.chunks(job.batch, math.ceil(begin / job.batch)):
                x = job.stream.prepare(send(chunk.x, job.device))
                x = tokens.shortened([x])[0] if job.stream.is_text else x
                with autocast:
                    features = network.features(x)
                features = features.float().cpu()
                if not bool(torch.isfinite(features).all()):
                    hint = "" if recipe.precision == "fp32" else ", and does --precision fp32 mend it"
                    raise DataError(f"features of task {index + 1}'s {part} samples are not finite; are the weights "
                                    f"whole{hint}?")
                yield features.numpy()
