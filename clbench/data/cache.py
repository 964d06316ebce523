"""Streams on disk: one safetensors file each, memory-mapped, so that only the first run imports Avalanche.

A file is named by a hash of what defines the stream: benchmark, options, the seed where it matters, the code that
builds it (plugin, version, what its package says: `clbench.core.identity`) and this format. With the tensors it stores
their hash, which is checked on reading, and size and time of the data files they were made from: if those files have
changed, the stream is built again.

A stream is cached only if its declaration says that nothing but options, seed, code and the data files that it names
define it (`BenchmarkInfo.cached`, `files`). Never cached are a benchmark given as `package.module:function` and one
that was registered in this process only, since their code has no version, and a stream with random transforms, which
need the data set itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from clbench.core import identity
from clbench.core.files import locked, sweep
from clbench.core.registry import Registry
from clbench.experiment.trial import Resolved

if TYPE_CHECKING:  # torch is imported by who reads or writes a stream, not by who asks what is known of one
    from clbench.data.raw import RawStream

FORMAT = 2
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
    path, sources = data_dir / "streams" / f"{key}.safetensors", registry.benchmark(benchmark.name).files
    with contextlib.suppress(Unusable, FileNotFoundError):
        return read_stream(path, state_of(sources, data_dir))
    with locked(path.with_suffix(".lock")):  # one process builds it, the others find it built
        return _fill(path, sources, data_dir, build)


def _fill(path: Path, sources: Sequence[str], data_dir: Path, build: Callable[[], RawStream]) -> RawStream:
    """Return the stream if another process has written it in the meantime, else build and write it."""
    notes = []
    sweep(path.parent.glob(".*.tmp"))
    try:
        return read_stream(path, state_of(sources, data_dir))
    except FileNotFoundError:
        pass  # the usual first run
    except Unusable as reason:
        notes.append(f"the cached stream {path} was built again: {reason}")
    raw = build()
    if raw.is_stochastic:
        return raw
    files = state_of(sources, data_dir)
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
    code = identity.running(_package(info.build))
    if not (origin.version and code):
        return None
    # Not the origin's distribution: for a plugin file it is the path, which differs between nodes of a cluster.
    parts = [FORMAT, benchmark.name, benchmark.options, seed if depends_on_seed(benchmark, registry) else None,
             origin.plugin, origin.version, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _package(build: str | Callable[..., Any]) -> str:
    """Return the package whose code builds a stream: the top-level one; for clbench's own, `clbench.data`."""
    package = identity.outermost(build)
    return "clbench.data" if package == "clbench" else package


def state_of(sources: Sequence[str], data_dir: Path) -> Files:
    """Return size and time of the data files that a benchmark reads, as far as they exist."""
    found = {}
    for name in sources:
        with contextlib.suppress(OSError):
            status = (data_dir / name).stat()
            found[name] = [status.st_size, status.st_mtime_ns]
    return found


def known_digest(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry) -> str:
    """Return the hash of the stream that `read_or_build` would read from its file; empty where it would build it.

    Only the head of the file is read, without torch: its tensors are checked by who reads them.
    """
    key = key_of(benchmark, seed, registry)
    try:
        with safe_open(data_dir / "streams" / f"{key}.safetensors", framework="numpy") as handle:
            facts = json.loads((handle.metadata() or {})["clbench"])
        state = state_of(registry.benchmark(benchmark.name).files, data_dir)
        same = all(facts["files"].get(name) == status for name, status in state.items())
        return str(facts["digest"]) if same else ""
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return ""  # `read_or_build` says what is wrong with the file


def write_stream(path: Path, raw: RawStream, files: Files) -> None:
    """Write a stream, whole or not at all."""
    from clbench.core.artifacts import save_tensors

    facts = {"format": FORMAT, "orders": raw.orders, "mean": raw.mean, "std": raw.std, "notes": raw.notes,
             "augment": raw.augment, "digest": raw.digest, "files": files}
    save_tensors(path, raw.tensors(), {"clbench": json.dumps(facts)})


def read_stream(path: Path, files: Files) -> RawStream:
    """Return the stream in a file, memory-mapped and checked against its hash.

    Raises:
        FileNotFoundError: there is none.
        Unusable: it is damaged, or the data files it was made from have changed since (`files`).
    """
    from clbench.data.raw import RawStream

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
