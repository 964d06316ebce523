"""Where a record comes from (versions, commit, machine, peak memory), and whether code or data have changed since."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.core import identity
from clbench.core.compat import usable_cores
from clbench.core.errors import SpecError
from clbench.core.files import PACKAGE
from clbench.core.registry import Registry
from clbench.experiment.trial import Trial
from clbench.models.hf_files import hash_configuration, inner
from clbench.results.records import Code, Provenance, Record

if TYPE_CHECKING:
    import torch


def collect(plugin: str, device: torch.device, command: str, code: Mapping[str, Code] | None = None) -> Provenance:
    """Return the provenance of a trial that starts now in this process, with this code, on `device`."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Provenance(versions=versions(), plugin=plugin, git=git_commit(), device=name, machine=machine(),
                      threads=torch.get_num_threads(), started=datetime.datetime.now(datetime.timezone.utc),
                      command=command, code=dict(code or {}))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    by_package = {"python": platform.python_version()}
    for package in ("clbench", "torch", "torchvision", "avalanche-lib", "numpy"):
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:  # running from a source tree that is not installed
            by_package[package] = "unknown"
    return by_package


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout that clbench runs from, or None outside a checkout.

    `+dirty` is appended if code of clbench or of a plugin in the checkout has changed since that commit. Other files,
    such as a report that a run has rewritten, do not count.
    """
    try:
        run = functools.partial(subprocess.run, cwd=PACKAGE, capture_output=True, text=True, timeout=10)
        top = run(["git", "rev-parse", "HEAD", "--show-toplevel"])
        if top.returncode:
            return None
        commit, folder = top.stdout.splitlines()[:2]
        if Path(folder) != PACKAGE.parent:
            return None
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", "../plugins"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+dirty" if dirty else "")


@functools.cache
def machine() -> str:
    """Return the processor, its usable cores, the system and preloaded libraries, in words.

    A library in LD_PRELOAD (a memory allocator, OpenMP, a library that selects MKL's code) can change all times by a
    factor. So runs with it and without it count as runs on different machines.
    """
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                  if line.startswith("model name")]
        processor = models[0] if models else processor
    preloaded = ", ".join(Path(library).name for library in os.environ.get("LD_PRELOAD", "").replace(":", " ").split())
    description = f"{processor}, {usable_cores()} cores, {platform.system()}"
    return description + (f", {preloaded} preloaded" if preloaded else "")


PARTS = ("method", "benchmark", "model")
CONFIGURATION = "configuration"  # of a text model, whose files determine its network as code does


def packages_of(trial: Trial, registry: Registry) -> dict[str, tuple[str, ...]]:
    """Return the packages (modules, files) that contain the code of a trial's method, benchmark and model, by part.

    The packages of a part contain its code and its options class. Parts that come with clbench have none, because the
    version and commit of clbench identify their code.

    Raises:
        SpecError: a name is not installed.
    """
    method, benchmark = registry.strategy(trial.method.name), registry.benchmark(trial.benchmark.name)
    model = registry.model(trial.model.name)
    packages = {"method": identity.packages_of((method.strategy, method.options)),
                "benchmark": identity.packages_of((benchmark.build, benchmark.options)),
                "model": identity.packages_of((model.build, model.options))}
    for part, info in (("method", method), ("benchmark", benchmark)):
        if info.names_code:
            packages[part] = (identity.package_of(info.name.rpartition(":")[0]),)
    return {part: names for part, names in packages.items() if names}


def code_of(trial: Trial, registry: Registry, hashed: Callable[..., str] = identity.hash_of) -> dict[str, Code]:
    """Return the identity of the code of a trial's parts, and of the configuration of a text model, as records have it.

    Args:
        trial: a trial whose method, benchmark and model are installed.
        registry: the installed methods, benchmarks and models.
        hashed: `identity.hash_of` for the code on disk, `identity.hash_running` for the code of this process.
    """
    code: dict[str, Code] = {}
    for part, names in packages_of(trial, registry).items():
        names_code = (registry.strategy(trial.method.name).names_code if part == "method" else
                      part == "benchmark" and registry.benchmark(trial.benchmark.name).names_code)
        release = "" if names_code else str(registry.origin(part, getattr(trial, part).name))
        code[part] = Code(packages=list(names), hash=hashed(*names), release=release)
    if registry.model(trial.model.name).text and (hashes := hash_configuration(inner(trial.model.name))):
        digest = hashlib.sha256(repr(hashes).encode()).hexdigest()[:identity.HEX]
        code[CONFIGURATION] = Code(packages=list(hashes), hash=digest)
    return code


class CodeNow:
    """The installed code, read once for all trials with the same names."""

    def __init__(self, registry: Registry) -> None:
        """Start with an empty cache."""
        self.registry = registry
        self._known: dict[tuple[str, ...], dict[str, Code]] = {}

    def of(self, trial: Trial) -> dict[str, Code]:
        """Return the code of a trial's parts (`code_of`)."""
        names = tuple(getattr(trial, part).name for part in PARTS)
        if names not in self._known:
            self._known[names] = code_of(trial, self.registry)
        return self._known[names]


def changed_parts(record: Record, code: Mapping[str, Code]) -> list[str]:
    """Return the parts of a record whose code has changed. `code` is the current code of the trial's parts."""
    return [part for part, old in record.provenance.code.items()
            if (new := code.get(part)) is not None and old.hash and new.hash and old.hash != new.hash]


def describe_changes(record: Record, code: Mapping[str, Code], data: str = "") -> list[str]:
    """Describe which code and data of a record have changed. Code and data of unknown origin are not compared.

    Args:
        record: a record with a result.
        code: current code of the trial's parts.
        data: current hash of the benchmark's data, or empty if it is not known.
    """
    changes = []
    for part in changed_parts(record, code):
        old, new = record.provenance.code[part], code[part]
        versions = [v for state in (old, new) if (v := _version(state))]
        releases = f", {versions[0]} -> {versions[1]}" if len(set(versions)) == 2 else ""
        changed = f"the model's {part}" if part == CONFIGURATION else f"the {part}'s code"
        changes.append(f"{changed} ({', '.join(new.packages)}{releases})")
    if record.stream and record.stream.data and data and record.stream.data != data:
        changes.append(f"the data of {record.trial.benchmark.name}")
    return changes


def _version(code: Code) -> str:
    """Return the release of installed code. A file has no release, since its hash changes with each comment."""
    return "" if "sha256:" in code.release else code.release


def group_by_reason(stale: Iterable[tuple[Record, list[str]]]) -> list[str]:
    """Return a line for each method and reason: `lora, seeds 0, 1: the method's code (clbench_lora)`."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for record, reasons in stale:
        scenario = record.trial.scenario
        groups.setdefault((record.label, scenario, " and ".join(reasons)), []).append(record.trial.seed)
    has_several_scenarios = len({scenario for _, scenario, _ in groups}) > 1
    return [f"{label}{f' ({scenario})' if has_several_scenarios else ''}, {_list_seeds(seeds)}: {reasons}"
            for (label, scenario, reasons), seeds in groups.items()]


def _list_seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


def commit_of(record: Record) -> str:
    """Return the commit of clbench that made a record, in words if there is none."""
    return record.provenance.git or "not from a checkout"


def results_by_commit(records: Sequence[Record]) -> list[str]:
    """Return a text for each commit of clbench: `0a1b2c (lora; seeds 1, 2 of ewc, er)`.

    The last text is that of the commit with the most results, and instead of names it has `all other results`.
    """
    by_commit: dict[str, dict[str, list[int]]] = {}
    for record in records:
        by_commit.setdefault(commit_of(record), {}).setdefault(record.label, []).append(record.trial.seed)
    counts = Counter(record.label for record in records)
    most = max(by_commit, key=lambda commit: sum(map(len, by_commit[commit].values())))
    texts = []
    for commit, by_label in by_commit.items():
        labels: dict[str, list[str]] = {}  # by the seeds of the commit; empty if a method has no others
        for label, seeds in by_label.items():
            part = "" if len(seeds) == counts[label] else f"{_list_seeds(seeds)} of "
            labels.setdefault(part, []).append(label)
        names = "; ".join(f"{part}{', '.join(group)}" for part, group in labels.items())
        texts += [f"{commit} ({names})"] if commit != most else []
    return [*texts, f"{most} (all other results)"]


def stale_records(records: Iterable[Record], registry: Registry) -> list[tuple[Record, list[str]]]:
    """Return the records whose result comes from other code than the installed code, each with what has changed.

    Records are left out if their code is not known or no longer installed. Data are not compared.
    """
    current_code = CodeNow(registry)
    return [(r, reasons) for r in records
            if r.status != "failed" and r.provenance.code and is_installed(r.trial, registry)
            and (reasons := describe_changes(r, current_code.of(r.trial)))]


def is_installed(trial: Trial, registry: Registry) -> bool:
    """Return whether a trial's method, benchmark and model are all installed."""
    try:
        packages_of(trial, registry)
    except SpecError:
        return False
    return True
