"""Streams on disk: one safetensors file each, memory-mapped, so that only the first run imports Avalanche.

A file is named by a hash of what defines the stream: benchmark, options, the seed where it matters, the code that
builds it (plugin, version, what its package says: `clbench.core.identity`), the folder of files that are the user's
own, and this format. With the tensors it stores their hash, which is checked on reading, and the hashes of the data
files they were made from (`contents`): if a content has changed, the stream is built again in place of the old one.

A stream is cached only if its declaration says that nothing but options, seed, code and the data files that it names
define it (`BenchmarkInfo.cached`, `files`). Never cached are a benchmark given as `package.module:function` and one
that was registered in this process only, since their code has no version, and a stream with random transforms, which
need the data set itself.
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
from clbench.core.files import locked, sweep
from clbench.core.objective import CLASSIFICATION
from clbench.core.registry import Registry
from clbench.data.contents import Contents, contents_of, data_files, index_of
from clbench.experiment.trial import Resolved

if TYPE_CHECKING:  # torch is imported by who reads or writes a stream, not by who asks what is known of one
    from clbench.data.raw import RawStream

FORMAT = 4


class Unusable(Exception):
    """A cache file cannot be used, for the reason given."""


def depends_on_seed(benchmark: Resolved, registry: Registry) -> bool:
    """Tell whether a benchmark's stream differs from seed to seed."""
    by_options = any(benchmark.options.get(name) == "seed" for name in ("class_order", "train_draw", "test_draw"))
    return registry.benchmark(benchmark.name).seeded or by_options


def read_or_build(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry,
                  build: Callable[[], RawStream], verify: bool = False) -> RawStream:
    """Return a stream from its file, or build it and write the file.

    A file that cannot be read is built again; where the folder cannot be written, nothing is cached. Notes say so.

    Args:
        benchmark: its name and all its options.
        seed: of the trial.
        data_dir: the folder of data sets, with the cache in `streams/`.
        registry: what is installed.
        build: makes the stream.
        verify: whether all data files are read to see if they are what the stream was made of, and not only those whose
            size or times have changed.

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
    with locked(path.with_suffix(".lock")):  # one process builds it, the others find it built
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
    files = data_files(registry.benchmark(benchmark.name), benchmark.options, data_dir)  # some may be there only now
    after = contents_of(files, index_of(path.parent, benchmark.name, files))
    if contents.differ_from(after.hashes):
        notes.append("data files changed while the stream was made of them, so it was not cached; run again when they "
                     "are complete")
        return _noting(raw, notes)
    try:
        write_stream(path, raw, after.hashes)
        raw = read_stream(path, after)
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
    code = identity.running(_package(info.build))
    if not (origin.version and code):
        return None
    # The version of a plugin file is the hash of its bytes, which a comment changes; its code is hashed above.
    version = "" if origin.version.startswith("sha256:") else origin.version
    # Not the origin's distribution: for a plugin file it is the path, which differs between nodes of a cluster.
    parts = [FORMAT, benchmark.name, benchmark.options, seed if depends_on_seed(benchmark, registry) else None,
             origin.plugin, version, code, place]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _package(build: str | Callable[..., Any]) -> str:
    """Return the package whose code builds a stream: the top-level one; for clbench's own, `clbench.data`."""
    package = package_of(build)
    return "clbench.data" if package == "clbench" else package


def known_digest(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry, verify: bool = False) -> str:
    """Return the hash of the stream that `read_or_build` would read from its file; empty where it would build it.

    Only the head of the file is read, without torch: its tensors are checked by who reads them.

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
    """Write a stream, made of files with these hashes, whole or not at all."""
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
        FileNotFoundError: there is none.
        Unusable: it is damaged, or the data files that it was made from have other contents now.
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
