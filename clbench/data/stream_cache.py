"""Cache streams on disk, one memory-mapped safetensors file each, so that only the first run imports Avalanche.

A file is named by a hash of everything that defines the stream: benchmark, options, the seed if it matters, the code
that builds the stream (plugin, version and identity of its package: `clbench.core.identity`), the folder of the user's
own files, and the format of the cache. The file stores the tensors and their hash, which is checked on reading. It also
stores the hashes of the data files (`contents`). If a data file has changed, the stream is built again.

A stream is cached only if its declaration says that options, seed, code and the named data files alone define it
(`BenchmarkInfo.cached`, `files`). Benchmarks given as `package.module:function`, or registered only in this process,
are never cached, because their code has no version. Neither are streams with random transforms, which need the data
set itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from clbench.core import identity
from clbench.core.entry_points import package_of
from clbench.core.errors import message_of, typed_message
from clbench.core.files import hold_lock, sweep
from clbench.core.objective import CLASSIFICATION
from clbench.core.registry import Registry
from clbench.data.contents import Contents, contents_of, data_files, index_of
from clbench.experiment.trial import Resolved

if TYPE_CHECKING:  # torch is imported only to read or write a stream, not to look one up
    from clbench.data.raw import RawStream

FORMAT = 4
OWN_CODE = ("clbench.data", "clbench.core.seeds", "clbench.core.tokens", "clbench.models.causal_lm",
            "clbench.models.scoring")  # random draws, and how tokens and labels are made, are defined outside of data


class Unusable(Exception):
    """Raised if a cache file cannot be used; the message gives the reason."""


def depends_on_seed(benchmark: Resolved, registry: Registry) -> bool:
    """Return whether a benchmark's stream depends on the seed."""
    has_seed_option = any(benchmark.options.get(name) == "seed" for name in ("class_order", "train_draw", "test_draw"))
    return registry.benchmark(benchmark.name).seeded or has_seed_option


def read_or_build(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry,
                  build: Callable[[], RawStream], verify: bool = False) -> RawStream:
    """Return a stream from its file, or build it and write the file.

    If the file cannot be read, the stream is built again. If the folder cannot be written, nothing is cached. Notes
    report both.

    Args:
        benchmark: the benchmark's name and all its options.
        seed: the trial's seed.
        data_dir: the folder of data sets, with the cache in `streams/`.
        registry: the installed benchmarks.
        build: builds the stream.
        verify: whether to read all data files again to compare their hashes, and not only files whose size or times
            have changed.

    Raises:
        DataError: the data files cannot be listed or read.
    """
    info = registry.benchmark(benchmark.name)
    if not info.cached:
        return build()
    folder, files = data_dir / "streams", data_files(info, benchmark.options, data_dir)
    key = key_of(benchmark, seed, registry, files.place)
    if key is None:
        return build()
    contents = contents_of(files, index_of(folder, benchmark.name, files), verify)
    path = folder / f"{key}.safetensors"
    with contextlib.suppress(Unusable, FileNotFoundError):
        return _noting(read_stream(path, contents), contents.notes)
    with hold_lock(path.with_suffix(".lock")):  # one process builds the stream, the others read its file
        return _noting(_fill(path, benchmark, data_dir, registry, contents, build), contents.notes)


def _noting(raw: RawStream, notes: Sequence[str]) -> RawStream:
    """Return a stream with further notes."""
    return replace(raw, notes=(*raw.notes, *notes)) if notes else raw


def _fill(path: Path, benchmark: Resolved, data_dir: Path, registry: Registry, contents: Contents,
          build: Callable[[], RawStream]) -> RawStream:
    """Return the stream if another process has written it in the meantime, else build and write it."""
    notes = []
    sweep(path.parent.glob(".*.tmp"))
    try:
        return read_stream(path, contents)
    except FileNotFoundError:
        pass  # the usual first run
    except Unusable as reason:
        notes.append(f"the cached stream {path} was built again: {reason}")
    raw = build()
    if raw.is_stochastic:
        return raw
    files = data_files(registry.benchmark(benchmark.name), benchmark.options, data_dir)  # the build may have added some
    new_contents = contents_of(files, index_of(path.parent, benchmark.name, files))
    if contents.differ_from(new_contents.hashes):
        notes.append("data files changed while the stream was made of them, so it was not cached; run again when they "
                     "are complete")
        return _noting(raw, notes)
    try:
        write_stream(path, raw, new_contents.hashes)
        raw = read_stream(path, new_contents)
    except (OSError, SafetensorError, Unusable) as error:
        notes.append(f"the stream could not be cached in {path.parent} ({message_of(error)}); "
                     "every run builds it again")
    return _noting(raw, notes)


def key_of(benchmark: Resolved, seed: int, registry: Registry, place: str = "") -> str | None:
    """Return the name of a stream's file, 16 hexadecimal digits; None for a benchmark that is not cached.

    `place` is the folder of the files that the benchmark lists (`DataFiles.place`).
    """
    info = registry.benchmark(benchmark.name)
    if not info.cached:
        return None
    origin = registry.origin("benchmark", benchmark.name)
    code = identity.hash_running(*_packages(info.build))
    if not (origin.version and code):
        return None
    # The version of a plugin file is the hash of its bytes, which a comment changes; its code is hashed above.
    version = "" if origin.version.startswith("sha256:") else origin.version
    # Not the origin's distribution: for a plugin file it is the path, which differs between nodes of a cluster.
    parts = [FORMAT, benchmark.name, benchmark.options, seed if depends_on_seed(benchmark, registry) else None,
             origin.plugin, version, code, place]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _packages(build: str | Callable[..., Any]) -> tuple[str, ...]:
    """Return the top-level package whose code builds a stream, or the modules that build clbench's own benchmarks."""
    package = package_of(build)
    return OWN_CODE if package == "clbench" else (package,)


def known_digest(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry, verify: bool = False) -> str:
    """Return the hash of the stream that `read_or_build` would read from its file; empty if it would build the stream.

    Only the header of the file is read, without torch. The tensors are checked when they are read.

    Raises:
        DataError: the data files cannot be listed or read.
    """
    info, folder = registry.benchmark(benchmark.name), data_dir / "streams"
    if not info.cached:
        return ""
    files = data_files(info, benchmark.options, data_dir)
    key = key_of(benchmark, seed, registry, files.place)
    try:
        with safe_open(folder / f"{key}.safetensors", framework="numpy") as handle:
            facts = json.loads((handle.metadata() or {})["clbench"])
        contents = contents_of(files, index_of(folder, benchmark.name, files), verify)
        return "" if contents.differ_from(facts["files"]) else str(facts["digest"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return ""  # `read_or_build` says what is wrong with the file


def write_stream(path: Path, raw: RawStream, hashes: Mapping[str, str]) -> None:
    """Write a stream, with the hashes of the files that it was made from, atomically."""
    from clbench.core.artifacts import save_tensors

    facts = {"format": FORMAT, "orders": raw.orders, "mean": raw.mean, "std": raw.std, "notes": raw.notes,
             "augment": raw.augment, "class_names": raw.class_names, "digest": raw.digest, "rows": raw.side_digest,
             "files": dict(hashes)}
    if not raw.has_classes:
        facts |= {"objective": raw.objective, "task_names": raw.task_names, "target": raw.target}
    if raw.photos is not None:
        facts["photos"] = {"root": raw.photos.table.root, "format": asdict(raw.photos.format)}
    save_tensors(path, {**raw.tensors(), **raw.side_tensors()}, {"clbench": json.dumps(facts)})


def read_stream(path: Path, contents: Contents) -> RawStream:
    """Return the stream in a file, memory-mapped and checked against its hash.

    Raises:
        FileNotFoundError: the file does not exist.
        Unusable: the file is damaged, or the data files that it was made from have changed.
    """
    from clbench.data.own.pixels import PhotoFormat
    from clbench.data.raw import NO_SCALE, RawStream

    try:
        with safe_open(path, framework="pt") as handle:
            facts: dict[str, Any] = json.loads((handle.metadata() or {})["clbench"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        photos = facts.get("photos")
        raw = RawStream.from_tensors(tensors, tuple(map(tuple, facts["orders"])), tuple(facts["mean"]),
                                     tuple(facts["std"]), tuple(facts["notes"]), facts["augment"],
                                     tuple(facts["class_names"]), facts.get("objective", CLASSIFICATION.name),
                                     tuple(facts.get("task_names", ())), tuple(facts.get("target", NO_SCALE)),
                                     photos and (photos["root"], PhotoFormat(**photos["format"])))
        digest, rows, made_from = facts["digest"], facts["rows"], facts["files"]
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"it cannot be read ({typed_message(error)})") from error
    if (raw.digest, raw.side_digest) != (digest, rows):
        raise Unusable("its tensors are not those that were written")
    if contents.differ_from(made_from):
        raise Unusable("the data files it was made from have changed")
    return raw
