"""Streams on disk: one safetensors file each, memory-mapped, so that only the first run imports Avalanche.

A file is named by a hash of what defines the stream: benchmark, options, the seed where it matters, the code that
builds it (plugin, version, all source files of its package) and this format. With the tensors it stores their hash,
which is checked on reading, and size and time of the data files they were made from: if those files have changed, the
stream is built again.

Data files are known for built-in benchmarks only. A plugin's stream is therefore cached only if its declaration says
that nothing but its code and options defines it (`BenchmarkInfo.cached`). Never cached are a benchmark given as
`package.module:function` and one that was registered in this process only, since their code has no version, and a
stream with random transforms, which need the data set itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError, safe_open

from clbench.core import files as digests
from clbench.core.artifacts import save_tensors
from clbench.core.files import sweep
from clbench.core.registry import Registry
from clbench.data.datasets import MNIST_FILES, cifar_file, folder
from clbench.data.raw import RawStream
from clbench.experiment.trial import Resolved

FORMAT = 2
SOURCES = {"split-mnist": "MNIST", "permuted-mnist": "MNIST", "rotated-mnist": "MNIST",
           "split-fashion-mnist": "FashionMNIST", "split-cifar10": "CIFAR10", "split-cifar100": "CIFAR100",
           "split-cifar100-b50": "CIFAR100"}  # the data sets whose files built-in benchmarks read
Files = dict[str, list[int]]


class Unusable(Exception):
    """A cache file cannot be used, for the reason given."""


def depends_on_seed(benchmark: Resolved, registry: Registry) -> bool:
    """Tell whether a benchmark's stream differs from seed to seed."""
    return registry.benchmark(benchmark.name).seeded or benchmark.options.get("class_order") == "seed"


def read_or_build(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry,
                  build: Callable[[], RawStream]) -> RawStream:
    """Return a stream from its file, or build it and write the file.

    A file that cannot be read is built again; where the folder cannot be written, nothing is cached. Notes say so.
    """
    key = key_of(benchmark, seed, registry)
    if key is None:
        return build()
    path = data_dir / "streams" / f"{key}.safetensors"
    with contextlib.suppress(Unusable, FileNotFoundError):
        return read_stream(path, source_files(benchmark.name, data_dir))
    with _alone(path):
        return _fill(path, benchmark.name, data_dir, build)


def _fill(path: Path, name: str, data_dir: Path, build: Callable[[], RawStream]) -> RawStream:
    """Return the stream if another process has written it in the meantime, else build and write it."""
    notes = []
    sweep(path.parent.glob(".*.tmp"))
    try:
        return read_stream(path, source_files(name, data_dir))
    except FileNotFoundError:
        pass  # the usual first run
    except Unusable as reason:
        notes.append(f"the cached stream {path} was built again: {reason}")
    raw = build()
    if raw.is_stochastic:
        return raw
    files = source_files(name, data_dir)
    try:
        write_stream(path, raw, files)
        raw = read_stream(path, files)
    except (OSError, SafetensorError, Unusable) as error:
        notes.append(f"the stream could not be cached in {path.parent} ({' '.join(str(error).split())}); "
                     "every run builds it again")
    return replace(raw, notes=(*raw.notes, *notes))


def key_of(benchmark: Resolved, seed: int, registry: Registry) -> str | None:
    """Return the name of a stream's file, 16 hexadecimal digits; None for a benchmark that is not cached."""
    info = registry.benchmark(benchmark.name)
    if not info.cached:
        return None
    origin = registry.origins["benchmark", benchmark.name]
    try:
        code = digests.hash_code(_package(info.build))
    except Exception:  # any error of the module: building the stream will report it
        return None
    if not (origin.version and code):
        return None
    # Not the origin's distribution: for a plugin file it is the path, which differs between nodes of a cluster.
    parts = [FORMAT, benchmark.name, benchmark.options, seed if depends_on_seed(benchmark, registry) else None,
             origin.plugin, origin.version, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _package(build: str | Callable[..., Any]) -> ModuleType:
    """Return the package whose code builds a stream: the top-level one; for clbench's own, `clbench.data`."""
    module = build.partition(":")[0] if isinstance(build, str) else build.__module__
    outermost = module.partition(".")[0]
    return importlib.import_module("clbench.data" if outermost == "clbench" else outermost)


def source_files(name: str, data_dir: Path) -> Files:
    """Return size and time of the data files that a built-in benchmark reads, as far as they exist."""
    if name not in SOURCES:
        return {}
    dataset, found = SOURCES[name], {}
    paths = ([cifar_file(dataset, data_dir)] if dataset.startswith("CIFAR")
             else [folder(dataset, data_dir) / file for file in MNIST_FILES])
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found


def write_stream(path: Path, raw: RawStream, files: Files) -> None:
    """Write a stream, whole or not at all."""
    facts = {"format": FORMAT, "orders": raw.orders, "mean": raw.mean, "std": raw.std, "notes": raw.notes,
             "augment": raw.augment, "digest": raw.digest, "files": files}
    save_tensors(path, raw.tensors(), {"clbench": json.dumps(facts)})


def read_stream(path: Path, files: Files) -> RawStream:
    """Return the stream in a file, memory-mapped and checked against its hash.

    Raises:
        FileNotFoundError: there is none.
        Unusable: it is damaged, or the data files it was made from have changed since (`files`).
    """
    try:
        with safe_open(path, framework="pt") as handle:
            facts: dict[str, Any] = json.loads((handle.metadata() or {})["clbench"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        raw = RawStream.from_tensors(tensors, tuple(map(tuple, facts["orders"])), tuple(facts["mean"]),
                                     tuple(facts["std"]), tuple(facts["notes"]), facts["augment"])
        digest, made_from = facts["digest"], facts["files"]
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if raw.digest != digest:
        raise Unusable("its tensors are not those that were written")
    if any(made_from.get(name) != status for name, status in files.items()):
        raise Unusable("the data files it was made from have changed")
    return raw


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time build a stream; the others wait and then find it built. Without locks all build it."""
    lock = path.with_suffix(".lock")
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(lock, "w")  # noqa: SIM115 - closed below
    except (ImportError, OSError):  # no locks here: each process builds it, and the last one to finish is kept
        yield
        return
    with handle:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # processes that still wait for it find the stream built
